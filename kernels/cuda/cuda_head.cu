/* Cross-entropy through the head. The logits of a block of rows are one product; one block of
 * threads then takes a row of them to its loss and writes the gradient over it, and a second
 * product gives the gradient of the hidden states.
 *
 *   e_v = exp(z_v - max)    sum = sum_v e_v    nll = log(sum) + max - z_target
 *   dz_v = (e_v / sum - [v is target]) * gradient_scale
 *
 * With a cap, z are the capped logits, and dz_v has the factor 1 - (z_v / cap)^2.
 *
 * All of a row is one sum in a fixed order, so it does not depend on the other rows. A row with the
 * target -1 only fills the batch: its nll and dz are zeros. */
#include "kernels/cuda/cuda_vector.cuh"

/* LOGITS_BYTES: of the logits of one block of rows. */
enum { HEAD_THREADS = 256, HEAD_EACH = 4, HEAD_STEP = HEAD_THREADS * HEAD_EACH };
enum { LOGITS_BYTES = 256 << 20 };
/* Rows of W in one product of float32 with dz. A single sum over a large vocabulary would collect
 * the roundings of all its terms; sums of slices that are added are four times as exact. */
enum { SLICE = 4096 };

struct head_args {
    float *logits; /* (rows, ld) */
    size_t vocab, ld;
    bool back, narrow;           /* write dz; as bfloat16, into the first half of the row */
    const int32_t *target;       /* (rows) or -1 */
    double *nll;                 /* (rows) */
    const float *gradient_scale; /* (rows) */
    float cap;
};

static __device__ __forceinline__ float block_max(float v)
{
    SHARED(float, part, HEAD_THREADS / 32);
    v = warp_max(v);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    for (unsigned i = 0; i < HEAD_THREADS / 32; i++)
        v = fmaxf(v, part[i]);
    return v;
}

/* dz over the logits. Values of bfloat16 lie at half the distance from the start of the row, so a
 * step only overwrites logits that have been read: its own, and those of the steps before. */
static __device__ __forceinline__ void write_gradient(const struct head_args &a, float *z,
                                                      float max, double sum, size_t target)
{
    double factor = (double)a.gradient_scale[blockIdx.x] / sum;
    for (size_t first = 0; first < a.vocab; first += HEAD_STEP) {
        float dz[HEAD_EACH];
        for (unsigned i = 0; i < HEAD_EACH; i++) {
            size_t v = first + i * HEAD_THREADS + threadIdx.x;
            float e = v < a.vocab ? formula_exp(z[v] - max) : 0.0f;
            dz[i] = v == target ? (float)(((double)e - sum) * factor) : e * (float)factor;
            if (a.cap > 0.0f && v < a.vocab) dz[i] *= 1.0f - z[v] / a.cap * (z[v] / a.cap);
        }
        __syncthreads();
        for (unsigned i = 0; i < HEAD_EACH; i++) {
            size_t v = first + i * HEAD_THREADS + threadIdx.x;
            if (v >= a.vocab) continue;
            if (a.narrow)
                reinterpret_cast<bf16 *>(z)[v] = float_bf16(dz[i]);
            else
                z[v] = dz[i];
        }
    }
}

static __device__ __forceinline__ void write_zeros(const struct head_args &a, float *z)
{
    for (size_t v = threadIdx.x; v < a.vocab; v += HEAD_THREADS) {
        if (a.narrow)
            reinterpret_cast<bf16 *>(z)[v] = 0;
        else
            z[v] = 0.0f;
    }
}

__global__ void __launch_bounds__(HEAD_THREADS) head_kernel(struct head_args a)
{
    size_t row = blockIdx.x;
    float *z = a.logits + row * a.ld, max = -INFINITY;
    if (a.target[row] < 0) {
        if (threadIdx.x == 0) a.nll[row] = 0.0;
        if (a.back) write_zeros(a, z);
        return;
    }
    for (size_t v = threadIdx.x; v < a.vocab && a.cap > 0.0f; v += HEAD_THREADS)
        z[v] = a.cap * formula_tanh(z[v] / a.cap);
    for (size_t v = threadIdx.x; v < a.vocab; v += HEAD_THREADS)
        max = fmaxf(max, z[v]);
    max = block_max(max);
    double sum = 0.0;
    for (size_t v = threadIdx.x; v < a.vocab; v += HEAD_THREADS)
        sum += (double)formula_exp(z[v] - max);
    sum = threads_sum<HEAD_THREADS>(sum);
    size_t target = (size_t)a.target[row];
    if (threadIdx.x == 0) a.nll[row] = log(sum) + (double)max - (double)z[target];
    __syncthreads(); /* before z[target] is overwritten */
    if (a.back) write_gradient(a, z, max, sum, target);
}

/* dhidden (rows, d) = dz (rows, vocab) W */
static void multiply_back(struct backend_context *c, struct mat dhidden, struct mat dz,
                          const struct backend_weight *w, size_t rows)
{
    size_t slice = dz.type == DTYPE_F32 ? (size_t)SLICE : w->n;
    for (size_t first = 0; first < w->n; first += slice) {
        struct cuda_product p = {rows, true, first > 0, first,
                                 w->n - first < slice ? w->n - first : slice};
        cuda_multiply(c, dhidden, mat_at(dz, 0, first), w, &p);
    }
}

/* Rows whose logits are computed at once. */
static size_t head_rows(size_t vocab, size_t rows)
{
    size_t most = LOGITS_BYTES / (cuda_padded(vocab) * sizeof(float));
    most = most < BACKEND_ROWS ? (size_t)BACKEND_ROWS : most / BACKEND_ROWS * BACKEND_ROWS;
    return most < rows ? most : rows;
}

size_t cuda_head_bytes(size_t vocab, size_t rows)
{
    return head_rows(vocab, rows) * cuda_padded(vocab) * sizeof(float);
}

void cuda_head_loss(struct backend_context *c, struct mat dhidden, struct mat hidden,
                    const struct backend_weight *w, struct backend_batch *b, size_t first,
                    size_t rows)
{
    double since = cuda_begin(c);
    size_t ld = cuda_padded(w->n), most = head_rows(w->n, rows);
    float *logits = rows ? (float *)cuda_scratch(c, cuda_head_bytes(w->n, rows)) : NULL;
    bool back = dhidden.data != NULL, narrow = c->precision != DTYPE_F32;
    for (size_t row = 0; row < rows && logits; row += most) {
        size_t n = rows - row < most ? rows - row : most;
        struct mat z = {logits, DTYPE_F32, ld};
        struct mat dz = {logits, c->precision, narrow ? 2 * ld : ld};
        struct cuda_product forward = {n, false, false, 0, 0};
        cuda_multiply(c, z, mat_at(hidden, row, 0), w, &forward);
        struct head_args a = {logits,
                              w->n,
                              ld,
                              back,
                              narrow,
                              b->target + first + row,
                              b->nll + first + row,
                              b->gradient_scale + first + row,
                              w->cap};
        launch(head_kernel, dim3((unsigned)n), dim3(HEAD_THREADS), 0, c->stream, a);
        if (back) multiply_back(c, mat_at(dhidden, row, 0), dz, w, n);
    }
    cuda_done(c, OP_HEAD, since);
}
