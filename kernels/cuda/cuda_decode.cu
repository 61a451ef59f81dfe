/* Attention of one new token per sequence over the cached keys and values of the sequence. */
#include "kernels/cuda/cuda_vector.cuh"

#include <cmath>

static constexpr unsigned THREADS = 128;
/* Rows of one launch: their caches are part of its arguments, which have 4,096 bytes at most. */
static constexpr unsigned ROWS = 64;

struct decode_args {
    struct rows8 q, k, v, out; /* (rows, ...) */
    struct decode_row row[ROWS];
    unsigned rows, heads, kv_heads, head_dim, window;
    float scale;
};
static_assert(sizeof(struct decode_args) <= 4096, "arguments of a launch");

/* One block a row. */
static __global__ void __launch_bounds__(THREADS) append_kernel(struct decode_args a)
{
    unsigned i = blockIdx.x, width = a.kv_heads * a.head_dim;
    struct rows8 keys = rows8_of(a.row[i].keys, 8), values = rows8_of(a.row[i].values, 8);
    for (unsigned at = threadIdx.x * 8; at < width; at += THREADS * 8) {
        float v[8];
        load8(v, a.k, i, at, width - at);
        store8(keys, a.row[i].positions, at, width - at, v);
        load8(v, a.v, i, at, width - at);
        store8(values, a.row[i].positions, at, width - at, v);
    }
}

/* q . row `key` of the cache */
static __device__ __forceinline__ float key_dot(const float *q, const struct rows8 &keys,
                                                unsigned key, size_t col, unsigned head_dim)
{
    float sum[8] = {};
    for (unsigned at = 0; at < head_dim; at += 8) {
        float v[8];
        load8(v, keys, key, col + at, head_dim - at);
#pragma unroll
        for (int j = 0; j < 8; j++)
            if (at + j < head_dim) sum[j] += q[at + j] * v[j];
    }
    return ((sum[0] + sum[4]) + (sum[1] + sum[5])) + ((sum[2] + sum[6]) + (sum[3] + sum[7]));
}

/* One block a row and head, with an online softmax over tiles of 128 positions: a thread computes
 * the score of one position, and then the sums of one or two columns of the output. */
static __global__ void __launch_bounds__(THREADS) decode_kernel(struct decode_args a)
{
    SHARED(float, q, CUDA_HEAD_DIM_MAX);
    SHARED(float, weight, THREADS);
    SHARED(float, part, THREADS / 32);
    unsigned i = blockIdx.x, head = blockIdx.y, hd = a.head_dim;
    size_t first = (size_t)(head / (a.heads / a.kv_heads)) * hd;
    struct rows8 keys = rows8_of(a.row[i].keys, hd), values = rows8_of(a.row[i].values, hd);
    unsigned end = a.row[i].positions + 1, from = a.window && end > a.window ? end - a.window : 0;
    for (unsigned d = threadIdx.x; d < hd; d += THREADS)
        q[d] = load1(a.q, i, (size_t)head * hd + d);
    __syncthreads();
    float out[CUDA_HEAD_DIM_MAX / THREADS] = {}, top = -INFINITY, sum = 0.0f;
    for (unsigned at = from; at < end; at += THREADS) {
        unsigned key = at + threadIdx.x, count = end - at < THREADS ? end - at : THREADS;
        float s = key < end ? key_dot(q, keys, key, first, hd) * a.scale : -INFINITY;
        float largest = warp_max(s);
        if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = largest;
        __syncthreads();
        largest = top;
#pragma unroll
        for (unsigned w = 0; w < THREADS / 32; w++)
            largest = fmaxf(largest, part[w]);
        float keep = formula_exp(top - largest);
        top = largest;
        weight[threadIdx.x] = formula_exp(s - top);
        sum = sum * keep + weight[threadIdx.x];
        __syncthreads();
#pragma unroll
        for (unsigned n = 0; n < CUDA_HEAD_DIM_MAX / THREADS; n++) {
            unsigned d = n * THREADS + threadIdx.x;
            out[n] *= keep;
            if (d >= hd) continue;
            for (unsigned j = 0; j < count; j++)
                out[n] += weight[j] * load1(values, at + j, first + d);
        }
        __syncthreads(); /* weight and part may be written again */
    }
    sum = threads_sum<THREADS>(sum);
#pragma unroll
    for (unsigned n = 0; n < CUDA_HEAD_DIM_MAX / THREADS; n++) {
        unsigned d = n * THREADS + threadIdx.x;
        if (d < hd) store1(a.out, i, (size_t)head * hd + d, out[n] / sum);
    }
}

void cuda_attention_decode(struct backend_context *c, const struct attention_tensors *t,
                           const struct decode_row *row, size_t rows,
                           const struct attention_shape *s)
{
    if (!cuda_attention_known(c, s)) return;
    struct decode_args a = {};
    a.heads = s->heads;
    a.kv_heads = s->kv_heads;
    a.head_dim = s->head_dim;
    a.window = s->window;
    a.scale = 1.0f / sqrtf((float)s->head_dim);
    double since = cuda_begin(c);
    for (size_t first = 0; first < rows; first += ROWS) {
        a.rows = (unsigned)(rows - first < ROWS ? rows - first : ROWS);
        a.q = rows8_of(mat_at(t->q, first, 0), s->head_dim);
        a.k = rows8_of(mat_at(t->k, first, 0), 8);
        a.v = rows8_of(mat_at(t->v, first, 0), 8);
        a.out = rows8_of(mat_at(t->out, first, 0), s->head_dim);
        for (unsigned i = 0; i < a.rows; i++)
            a.row[i] = row[first + i];
        launch(append_kernel, dim3(a.rows), dim3(THREADS), 0, c->stream, a);
        launch(decode_kernel, dim3(a.rows, s->heads), dim3(THREADS), 0, c->stream, a);
    }
    cuda_done(c, OP_ATTENTION, since);
}
