/* Rows alone: cuBLASLt does not tell whether the order in which an algorithm sums a row depends on
 * the number of rows. So each is tried before it is used: rows that are multiplied with few, with
 * more and with many others must have the same bits.
 *
 * A result that is rounded to bfloat16 hides most differences of its float32 sum. So the product is
 * subtracted from its rounded result once more: the difference shows the sum to about 2^-17. */
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
    /* Of all rows of x, and of at most TRY_MORE of them: results, and with bfloat16 what was lost
     * in rounding them, else data NULL. */
    struct mat w, x, all, some, all_left, some_left;
    uint32_t *differs; /* (TRY_MORE) */
    size_t rows;
};

/* to, left (rows, n) = the product of rows first .. first + rows - 1 of x, and what was lost in
 * rounding it, unless left.data is NULL. */
static cublasStatus_t try_rows(struct backend_context *c, const struct trial *t, struct mat to,
                               struct mat left, size_t first, size_t rows)
{
    struct blas_key key = {rows, t->x.ld, to.ld, *t->kind};
    struct blas_shape s = {};
    cublasLtMatmulHeuristicResult_t result;
    cublasStatus_t status = cuda_shape_describe(&s, &key);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoCheck(c->products->handle, s.product, s.w, s.in, s.out, s.out,
                                         t->algorithm, &result);
    s.algorithm = *t->algorithm;
    struct mat x = mat_at(t->x, first, 0);
    if (status == CUBLAS_STATUS_SUCCESS) status = cuda_shape_run(c, &s, to, x, t->w, 1.0f, false);
    if (status == CUBLAS_STATUS_SUCCESS && left.data)
        status = cuda_shape_run(c, &s, left, x, t->w, 1.0f, false);
    if (status == CUBLAS_STATUS_SUCCESS && left.data)
        status = cuda_shape_run(c, &s, left, x, t->w, -1.0f, true);
    cuda_shape_clear(&s);
    return status;
}

static bool same_rows(struct backend_context *c, const struct trial *t, struct mat all,
                      struct mat some, size_t rows)
{
    uint32_t differs[TRY_MORE];
    bool same = true;
    launch(compare_kernel, dim3((unsigned)rows), dim3(TRY_THREADS), 0, c->stream, t->differs,
           mat_at(all, TRY_FIRST, 0), some, t->kind->n);
    cuda_receive(c, differs, t->differs, rows * sizeof *differs);
    cuda_wait(c);
    for (size_t row = 0; row < rows && !err_is(c->first); row++)
        same = same && !differs[row];
    return same;
}

/* The rows of a product have the same bits with any number of rows. */
static bool try_algorithm(struct backend_context *c, const struct trial *t)
{
    static const size_t counts[] = {TRY_FEW, TRY_MORE};
    bool good = try_rows(c, t, t->all, t->all_left, 0, t->rows) == CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < 2 && good; i++) {
        size_t rows = counts[i];
        good = try_rows(c, t, t->some, t->some_left, TRY_FIRST, rows) == CUBLAS_STATUS_SUCCESS;
        good = good && same_rows(c, t, t->all, t->some, rows);
        if (t->all_left.data) good = good && same_rows(c, t, t->all_left, t->some_left, rows);
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

/* Places the parts of `memory`; only counts with NULL. */
static size_t place_trial(struct trial *t, const struct blas_kind *k, size_t rows, char *memory)
{
    size_t at = 0, x_ld = cuda_padded(k->k), ld = cuda_padded(k->n);
    size_t all = rows * ld * cuda_size(k->out), some = TRY_MORE * ld * cuda_size(k->out);
    t->rows = rows;
    t->differs = (uint32_t *)cuda_place(memory, &at, TRY_MORE * sizeof *t->differs);
    t->x = {cuda_place(memory, &at, rows * x_ld * cuda_size(k->in)), k->in, x_ld};
    t->all = {cuda_place(memory, &at, all), k->out, ld};
    t->some = {cuda_place(memory, &at, some), k->out, ld};
    if (k->out == DTYPE_BF16) {
        t->all_left = {cuda_place(memory, &at, all), k->out, ld};
        t->some_left = {cuda_place(memory, &at, some), k->out, ld};
    }
    return at;
}

size_t cuda_trial_bytes(const struct backend_context *c, const struct blas_kind *k)
{
    struct trial t = {};
    return place_trial(&t, k, try_most(c, k->n), NULL);
}

/* Puts the first algorithm whose rows do not depend on their number in front. False after a
 * recorded failure. */
bool cuda_trial_order(struct backend_context *c, struct blas_algorithms *a, struct mat w)
{
    const struct blas_kind *k = &a->kind;
    size_t rows = try_most(c, k->n);
    char *memory = NULL;
    struct trial t = {};
    err e = cuda_take(&memory, c, place_trial(&t, k, rows, NULL));
    if (err_is(e)) {
        cuda_fail(c, e);
        return false;
    }
    place_trial(&t, k, rows, memory);
    t.kind = k;
    t.w = w;
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
