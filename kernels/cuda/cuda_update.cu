/* One step of AdamW in two launches: the sum of the squared gradients, in a fixed number of parts
 * that are added in a fixed order, and the update of all values. The host learns the sum later. */
#include "kernels/cuda/cuda_vector.cuh"

#include <math.h>

enum { UPDATE_THREADS = 256, UPDATE_BLOCKS = 1024 };

struct update_args {
    struct optimizer o;
    double *sums; /* (CUDA_SUMS) the parts of both sums, and the two sums */
    double clip, prox;
    float rate, root, keep, beta1, beta2, one1, one2, eps;
};

/* Adds the proximal term to the gradient. Sums the squares of the gradient, and those of the
 * distance from the start, in float64. */
__global__ void __launch_bounds__(UPDATE_THREADS) squares_kernel(struct update_args a)
{
    size_t n = a.o.n, share = (n + CUDA_SUM_PARTS - 1) / CUDA_SUM_PARTS;
    size_t begin = blockIdx.x * share, end = begin + share < n ? begin + share : n;
    double sum = 0.0, distance = 0.0;
    for (size_t i = begin + threadIdx.x; i < end; i += UPDATE_THREADS) {
        float g = a.o.gradient[i];
        if (a.prox != 0.0) {
            double away = (double)a.o.value[i] - (double)a.o.start[i];
            distance += away * away;
            g = g + (float)(a.prox * away);
            a.o.gradient[i] = g;
        }
        sum += (double)g * (double)g;
    }
    sum = threads_sum<UPDATE_THREADS>(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
    if (a.prox == 0.0) return;
    distance = threads_sum<UPDATE_THREADS>(distance);
    if (threadIdx.x == 0) a.sums[CUDA_SUM_PARTS + blockIdx.x] = distance;
}

/* The sum of all parts, by all threads of a block. */
static __device__ double sum_parts(const double *part)
{
    double sum = 0.0;
    for (unsigned i = threadIdx.x; i < CUDA_SUM_PARTS; i += UPDATE_THREADS)
        sum += part[i];
    return threads_sum<UPDATE_THREADS>(sum);
}

/* The order of operations of PyTorch, so results agree: weight decay, moments, then
 *
 *   value -= lr / bias1 * m / (sqrt(v) / sqrt(bias2) + eps)
 *
 * Each block adds the parts of the sum by itself. */
__global__ void __launch_bounds__(UPDATE_THREADS) adamw_kernel(struct update_args a)
{
    double squares = sum_parts(a.sums);
    if (blockIdx.x == 0) {
        double distance = a.prox != 0.0 ? sum_parts(a.sums + CUDA_SUM_PARTS) : 0.0;
        if (threadIdx.x == 0) a.sums[2 * CUDA_SUM_PARTS] = squares;
        if (threadIdx.x == 0) a.sums[2 * CUDA_SUM_PARTS + 1] = distance;
    }
    if (!(squares - squares == 0.0)) return; /* not finite */
    double coefficient = a.clip > 0.0 ? a.clip / (sqrt(squares) + 1e-6) : 1.0;
    float scale = (float)(coefficient < 1.0 ? coefficient : 1.0);
    size_t step = (size_t)gridDim.x * UPDATE_THREADS;
    for (size_t i = (size_t)blockIdx.x * UPDATE_THREADS + threadIdx.x; i < a.o.n; i += step) {
        float g = a.o.gradient[i] * scale;
        float first = a.beta1 * a.o.first[i] + a.one1 * g;
        float second = a.beta2 * a.o.second[i] + a.one2 * (g * g);
        a.o.first[i] = first;
        a.o.second[i] = second;
        a.o.value[i] = a.o.value[i] * a.keep - a.rate * first / (sqrtf(second) / a.root + a.eps);
    }
}

void cuda_adamw(struct backend_context *c, double norm2[2], const struct optimizer *o,
                const struct adamw *a)
{
    double since = cuda_begin(c);
    double bias1 = 1.0 - pow(a->beta1, (double)a->step);
    double bias2 = 1.0 - pow(a->beta2, (double)a->step);
    struct update_args u = {};
    u.o = *o;
    u.sums = c->sums;
    u.clip = a->clip;
    u.prox = o->start ? o->prox : 0.0;
    u.rate = (float)(a->lr / bias1);
    u.root = (float)sqrt(bias2);
    u.keep = (float)(1.0 - a->lr * a->weight_decay);
    u.beta1 = (float)a->beta1;
    u.beta2 = (float)a->beta2;
    u.one1 = (float)(1.0 - a->beta1);
    u.one2 = (float)(1.0 - a->beta2);
    u.eps = (float)a->eps;
    size_t blocks = (o->n + UPDATE_THREADS - 1) / UPDATE_THREADS;
    blocks = blocks < 1 ? 1 : blocks < UPDATE_BLOCKS ? blocks : (size_t)UPDATE_BLOCKS;
    launch(squares_kernel, dim3(CUDA_SUM_PARTS), dim3(UPDATE_THREADS), 0, c->stream, u);
    launch(adamw_kernel, dim3((unsigned)blocks), dim3(UPDATE_THREADS), 0, c->stream, u);
    cuda_receive(c, norm2, c->sums + 2 * CUDA_SUM_PARTS, 2 * sizeof *norm2);
    cuda_done(c, OP_ADAMW, since);
}
