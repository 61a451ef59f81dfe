/* Attention of one new token per sequence over the cached keys and values of the sequence.
 *
 * A few sequences do not fill a GPU with one block for each head, so longer contexts are divided
 * into parts of SPAN positions, whose results are put together afterwards. The parts depend only on
 * the positions of the row itself, and so its bits do not depend on the other rows. */
#include "kernels/cuda/cuda_vector.cuh"

#include <cmath>

static constexpr unsigned THREADS = 128;
/* Rows of one launch: their caches are part of its arguments, which have 4,096 bytes at most. */
static constexpr unsigned ROWS = 64;
static constexpr unsigned SPAN = 512;

struct decode_args {
    struct rows8 q, k, v, out; /* (rows, ...) */
    struct decode_row row[ROWS];
    unsigned rows, heads, kv_heads, head_dim, window;
    float scale, inner; /* as cuda_attention_scale() gives them */
    /* (rows, heads, spans, head_dim + 2): sums of weighted values, the largest score, the sum of
     * the weights; for rows of more than one span. */
    float *part;
    unsigned spans;
};
static_assert(sizeof(struct decode_args) <= 4096, "arguments of a launch");

/* The positions that a row attends to, which include the new one. */
static __host__ __device__ __forceinline__ unsigned end_of(const struct decode_args &a, unsigned i)
{
    return a.row[i].positions + 1;
}
static __host__ __device__ __forceinline__ unsigned from_of(const struct decode_args &a, unsigned i)
{
    return a.window && end_of(a, i) > a.window ? end_of(a, i) - a.window : 0;
}
static __host__ __device__ __forceinline__ unsigned spans_of(const struct decode_args &a,
                                                             unsigned i)
{
    return (end_of(a, i) - from_of(a, i) + SPAN - 1) / SPAN;
}
static __device__ __forceinline__ float *part_of(const struct decode_args &a, unsigned span)
{
    size_t head = (size_t)blockIdx.x * a.heads + blockIdx.y;
    return a.part + (head * a.spans + span) * (a.head_dim + 2);
}

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

/* One block a row, head and span, with an online softmax over tiles of 128 positions: a thread
 * computes the score of one position, and then the sums of one or two columns of the output. */
static __global__ void __launch_bounds__(THREADS) decode_kernel(struct decode_args a)
{
    SHARED(float, q, CUDA_HEAD_DIM_MAX);
    SHARED(float, weight, THREADS);
    SHARED(float, part, THREADS / 32);
    unsigned i = blockIdx.x, head = blockIdx.y, hd = a.head_dim;
    size_t first = (size_t)(head / (a.heads / a.kv_heads)) * hd;
    struct rows8 keys = rows8_of(a.row[i].keys, hd), values = rows8_of(a.row[i].values, hd);
    unsigned from = from_of(a, i) + blockIdx.z * SPAN, end = end_of(a, i);
    if (from >= end) return;
    if (end - from > SPAN) end = from + SPAN;
    for (unsigned d = threadIdx.x; d < hd; d += THREADS)
        q[d] = load1(a.q, i, (size_t)head * hd + d);
    __syncthreads();
    float out[CUDA_HEAD_DIM_MAX / THREADS] = {}, top = -INFINITY, sum = 0.0f;
    for (unsigned at = from; at < end; at += THREADS) {
        unsigned key = at + threadIdx.x, count = end - at < THREADS ? end - at : THREADS;
        float s = key < end ? key_dot(q, keys, key, first, hd) : 0.0f;
        if (a.inner > 0.0f) s = formula_tanh(s * a.inner);
        s = key < end ? s * a.scale : -INFINITY;
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
    bool alone = spans_of(a, i) == 1;
    float *all = alone ? NULL : part_of(a, blockIdx.z);
#pragma unroll
    for (unsigned n = 0; n < CUDA_HEAD_DIM_MAX / THREADS; n++) {
        unsigned d = n * THREADS + threadIdx.x;
        if (d >= hd) continue;
        if (alone)
            store1(a.out, i, (size_t)head * hd + d, out[n] / sum);
        else
            all[d] = out[n];
    }
    if (alone || threadIdx.x) return;
    all[hd] = top;
    all[hd + 1] = sum;
}

/* One block a row and head; the spans are added in their order. */
static __global__ void __launch_bounds__(THREADS) join_kernel(struct decode_args a)
{
    unsigned i = blockIdx.x, hd = a.head_dim, spans = spans_of(a, i);
    if (spans == 1) return;
    float top = -INFINITY, sum = 0.0f;
    for (unsigned s = 0; s < spans; s++)
        top = fmaxf(top, part_of(a, s)[hd]);
    for (unsigned s = 0; s < spans; s++)
        sum += part_of(a, s)[hd + 1] * formula_exp(part_of(a, s)[hd] - top);
    for (unsigned d = threadIdx.x; d < hd; d += THREADS) {
        float out = 0.0f;
        for (unsigned s = 0; s < spans; s++)
            out += part_of(a, s)[d] * formula_exp(part_of(a, s)[hd] - top);
        store1(a.out, i, (size_t)blockIdx.y * hd + d, out / sum);
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
    a.scale = cuda_attention_scale(&a.inner, s);
    double since = cuda_begin(c);
    for (size_t first = 0; first < rows; first += ROWS) {
        a.rows = (unsigned)(rows - first < ROWS ? rows - first : ROWS);
        a.q = rows8_of(mat_at(t->q, first, 0), s->head_dim);
        a.k = rows8_of(mat_at(t->k, first, 0), 8);
        a.v = rows8_of(mat_at(t->v, first, 0), 8);
        a.out = rows8_of(mat_at(t->out, first, 0), s->head_dim);
        a.spans = 1;
        for (unsigned i = 0; i < a.rows; i++) {
            a.row[i] = row[first + i];
            if (spans_of(a, i) > a.spans) a.spans = spans_of(a, i);
        }
        size_t parts = (size_t)a.rows * s->heads * a.spans * (s->head_dim + 2);
        a.part = a.spans > 1 ? (float *)cuda_scratch(c, parts * sizeof(float)) : NULL;
        if (a.spans > 1 && !a.part) break;
        launch(append_kernel, dim3(a.rows), dim3(THREADS), 0, c->stream, a);
        launch(decode_kernel, dim3(a.rows, s->heads, a.spans), dim3(THREADS), 0, c->stream, a);
        if (a.spans > 1)
            launch(join_kernel, dim3(a.rows, s->heads), dim3(THREADS), 0, c->stream, a);
    }
    cuda_done(c, OP_ATTENTION, since);
}
