/* Rows alone: cuBLASLt does not tell whether the order in which an algorithm sums a row depends on
 * the number of rows. So each is tried before it is used: rows that are multiplied with few, with
 * more and with many others must have the same bits. */
#include "kernels/cuda/cuda_product.h"
#include "kernels/cuda/cuda_vector.cuh"

enum { TRY_THREADS = 256, TRY_FEW = 8, TRY_MORE = 200, TRY_MOST = 2048, TRY_FIRST = 37 };

/* x (rows, cols) = numbers in [-1, 1) */
__global__ void __launch_bounds__(TRY_THREADS) noise_kernel(struct mat x, size_t rows, size_t cols)
{
    size_t step = (size_t)gridDim.x * TRY_THREADS;
    for (size_t i = (size_t)blockIdx.x * TRY_THREADS + threadIdx.x; i < rows * cols; i += step) {
        uint32_t z = (uint32_t)i * 0x9e3779b9u;
        z = (z ^ (z >> 16)) * 0x85ebca6bu;
        z = (z ^ (z >> 13)) * 0xc2b2ae35u;
        float v = (float)(int32_t)(z ^ (z >> 16)) * (1.0f / 2147483648.0f);
        store1(x, i / cols, i % cols, v);
    }
}

/* differs[row] = 1 if the two tensors have other bits in that row, else 0. One block a row. */
__global__ void __launch_bounds__(TRY_THREADS)
    compare_kernel(uint32_t *differs, struct mat x, struct mat y, size_t cols)
{
    SHARED(uint32_t, each, TRY_THREADS);
    uint32_t mine = 0;
    for (size_t i = threadIdx.x; i < cols; i += TRY_THREADS) {
        size_t at = blockIdx.x * x.ld + i, to = blockIdx.x * y.ld + i;
        mine |= x.type == DTYPE_F32 ? static_cast<const uint32_t *>(x.data)[at] !=
                                          static_cast<const uint32_t *>(y.data)[to]
                                    : static_cast<const bf16 *>(x.data)[at] !=
                                          static_cast<const bf16 *>(y.data)[to];
    }
    each[threadIdx.x] = mine;
    __syncthreads();
    if (threadIdx.x) return;
    for (unsigned i = 1; i < TRY_THREADS; i++)
        mine |= each[i];
    differs[blockIdx.x] = mine;
}

struct trial {
    const struct blas_kind *kind;
    const cublasLtMatmulAlgo_t *algorithm;
    struct mat w, x, all, some; /* all: of all rows of x, some: of at most TRY_MORE of them */
    uint32_t *differs;          /* (TRY_MORE) */
    size_t rows;
};

/* to (rows, n) = the product of rows first .. first + rows - 1 of x. */
static cublasStatus_t try_rows(struct backend_context *c, const struct trial *t, struct mat to,
                               size_t first, size_t rows)
{
    struct blas_key key = {rows, t->x.ld, to.ld, *t->kind};
    struct blas_shape s = {};
    cublasLtMatmulHeuristicResult_t result;
    cublasStatus_t status = cuda_shape_describe(&s, &key);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoCheck(c->products->handle, s.product, s.w, s.in, s.out, s.out,
                                         t->algorithm, &result);
    s.algorithm = *t->algorithm;
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cuda_shape_run(c, &s, to, mat_at(t->x, first, 0), t->w, false);
    cuda_shape_clear(&s);
    return status;
}

/* The rows of a product have the same bits with any number of rows. */
static bool try_algorithm(struct backend_context *c, const struct trial *t)
{
    static const size_t counts[] = {TRY_FEW, TRY_MORE};
    bool good = try_rows(c, t, t->all, 0, t->rows) == CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < 2 && good; i++) {
        uint32_t differs[TRY_MORE];
        good = try_rows(c, t, t->some, TRY_FIRST, counts[i]) == CUBLAS_STATUS_SUCCESS;
        if (!good) break;
        launch(compare_kernel, dim3((unsigned)counts[i]), dim3(TRY_THREADS), 0, c->stream,
               t->differs, mat_at(t->all, TRY_FIRST, 0), t->some, t->kind->n);
        cuda_receive(c, differs, t->differs, counts[i] * sizeof *differs);
        cuda_wait(c);
        for (size_t row = 0; row < counts[i] && !err_is(c->first); row++)
            good = good && !differs[row];
    }
    return good;
}

/* As many rows as give each processor of the GPU two tiles of 128 x 128: with fewer tiles some
 * algorithms share a tile among processors. */
static size_t try_most(const struct backend_context *c, size_t n)
{
    int processors = 0;
    if (cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, c->device))
        processors = 0;
    size_t wide = (n + 127) / 128, high = (2 * (size_t)processors + wide - 1) / wide;
    size_t rows = 128 * high, least = TRY_FIRST + TRY_MORE;
    return rows < least ? least : rows < TRY_MOST ? rows : (size_t)TRY_MOST;
}

/* Puts the first algorithm whose rows do not depend on their number in front. False after a
 * recorded failure. */
bool cuda_trial_order(struct backend_context *c, struct blas_algorithms *a, struct mat w)
{
    const struct blas_kind *k = &a->kind;
    size_t rows = try_most(c, k->n);
    size_t in = cuda_padded(k->k) * cuda_size(k->in), out = cuda_padded(k->n) * cuda_size(k->out);
    size_t x_at = 1024, all_at = x_at + (rows * in + 255) / 256 * 256; /* after t.differs */
    size_t some_at = all_at + (rows * out + 255) / 256 * 256;
    char *memory = NULL;
    err e = cuda_take(&memory, c, some_at + TRY_MORE * out);
    if (err_is(e)) {
        cuda_fail(c, e);
        return false;
    }
    struct trial t = {};
    t.kind = k;
    t.w = w;
    t.x = {memory + x_at, k->in, cuda_padded(k->k)};
    t.all = {memory + all_at, k->out, cuda_padded(k->n)};
    t.some = {memory + some_at, k->out, cuda_padded(k->n)};
    t.differs = (uint32_t *)(void *)memory;
    t.rows = rows;
    launch(noise_kernel, dim3(TRY_THREADS), dim3(TRY_THREADS), 0, c->stream, t.x, rows, k->k);
    for (int i = 0; i < a->choices && !a->tried; i++) {
        t.algorithm = &a->choice[i];
        if (!try_algorithm(c, &t)) continue;
        cublasLtMatmulAlgo_t good = a->choice[i];
        a->choice[i] = a->choice[0];
        a->choice[0] = good;
        a->tried = true;
    }
    cuda_give(c, memory);
    return !err_is(c->first);
}
