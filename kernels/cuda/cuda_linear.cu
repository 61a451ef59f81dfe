/* Products with the frozen weights, by cuBLASLt.
 *
 * A row-major matrix is a column-major one transposed, so cuBLASLt computes y^T = W x^T, and dx^T =
 * W^T dy^T. One copy of W serves both.
 *
 * cuBLASLt usually chooses another algorithm for another number of rows, and sums in another order
 * then. Here an algorithm is chosen once for each W and kept for any number of rows, without
 * splitting sums over k, so that the bits of a row do not depend on the other rows. */
#include "kernels/cuda/cuda.h"

#include <cublasLt.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    WORKSPACE_BYTES = 32 << 20,
    CHOICE_ROWS = 2048, /* the number of rows that algorithms are chosen for */
    CHOICES = 8,
    SHAPES = 512, /* a power of two */
    PACK_BYTES = 64 << 20,
    ALIGNMENT = 16, /* of all operands and of their rows, in bytes */
};

/* A kind of product, apart from its number of rows: out (rows, n) = in (rows, k) W^T or W. */
struct kind {
    size_t n, k, ldw;
    enum dtype in, w, out;
    bool back;
};
struct algorithms { /* in the order of cuBLASLt's estimate of their speed */
    struct kind kind;
    cublasLtMatmulAlgo_t choice[CHOICES];
    int choices;
    bool tried; /* rows multiplied by the first one do not depend on their number */
};
struct key {
    size_t rows, ld_in, ld_out;
    struct kind kind;
};
struct shape {
    bool used;
    struct key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, in, out;
    cublasLtMatmulAlgo_t algorithm;
};
struct growing { /* device memory */
    void *data;
    size_t bytes;
};
struct cuda_products {
    cublasLtHandle_t handle;
    void *workspace; /* our own, so that results do not depend on other users of the library */
    struct algorithms *algorithms;
    size_t kinds;
    struct shape shape[SHAPES];   /* by a hash of the key; a new one replaces an old one there */
    uint64_t wide_number;         /* of the weight in `wide`, or 0 */
    struct growing wide;          /* a weight that is kept as in the file, converted */
    struct growing input, output; /* operands that are not aligned, and x in the precision */
};

static size_t size_of(enum dtype t)
{
    return t == DTYPE_F32 ? sizeof(float) : sizeof(bf16);
}

/* Columns of a row that is a multiple of ALIGNMENT. */
static size_t padded(size_t cols)
{
    return (cols + 7) / 8 * 8;
}

static cudaDataType_t cuda_type(enum dtype t)
{
    return t == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static err blas_error(const struct backend_context *c, cublasStatus_t status, const char *what)
{
    return err_make(ERR_MACHINE, "cuda:%d: cuBLAS: %s: status %d", c->device, what, (int)status);
}

static void shape_clear(struct shape *s)
{
    if (s->product) (void)cublasLtMatmulDescDestroy(s->product);
    if (s->w) (void)cublasLtMatrixLayoutDestroy(s->w);
    if (s->in) (void)cublasLtMatrixLayoutDestroy(s->in);
    if (s->out) (void)cublasLtMatrixLayoutDestroy(s->out);
    memset(s, 0, sizeof *s);
}

void cuda_products_close(struct cuda_products *p)
{
    if (!p) return;
    for (size_t i = 0; i < SHAPES; i++)
        shape_clear(&p->shape[i]);
    if (p->handle) (void)cublasLtDestroy(p->handle);
    (void)cudaFree(p->workspace);
    (void)cudaFree(p->wide.data);
    (void)cudaFree(p->input.data);
    (void)cudaFree(p->output.data);
    free(p->algorithms);
    free(p);
}

err cuda_products_open(struct cuda_products **out, struct backend_context *c)
{
    struct cuda_products *p = (struct cuda_products *)calloc(1, sizeof *p);
    if (!p) return err_sys(ENOMEM, "cuda");
    err e = cuda_take(&p->workspace, c, WORKSPACE_BYTES);
    if (!err_is(e)) {
        cublasStatus_t status = cublasLtCreate(&p->handle);
        if (status != CUBLAS_STATUS_SUCCESS) e = blas_error(c, status, "starting the library");
    }
    if (err_is(e))
        cuda_products_close(p);
    else
        *out = p;
    return e;
}

/* Makes room, or returns NULL after a recorded failure. */
static void *grow(struct backend_context *c, struct growing *g, size_t bytes)
{
    if (bytes > g->bytes) {
        cuda_give(c, g->data);
        g->data = NULL;
        g->bytes = 0;
        err e = cuda_take(&g->data, c, bytes);
        if (err_is(e))
            cuda_fail(c, e);
        else
            g->bytes = bytes;
    }
    return g->data;
}

/* ---- Shapes and algorithms */

static cublasStatus_t matrix(cublasLtMatrixLayout_t *out, enum dtype t, size_t rows, size_t cols,
                             size_t ld)
{
    return cublasLtMatrixLayoutCreate(out, cuda_type(t), rows, cols, (int64_t)ld);
}

/* The descriptors of a product. PEDANTIC keeps float32 from being computed in TF32. */
static cublasStatus_t shape_describe(struct shape *s, const struct key *k)
{
    const struct kind *kind = &k->kind;
    bool f32 = kind->w == DTYPE_F32;
    cublasOperation_t turn = kind->back ? CUBLAS_OP_N : CUBLAS_OP_T;
    cublasStatus_t status = cublasLtMatmulDescCreate(
        &s->product, f32 ? CUBLAS_COMPUTE_32F_PEDANTIC : CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulDescSetAttribute(s->product, CUBLASLT_MATMUL_DESC_TRANSA, &turn,
                                                sizeof turn);
    if (status == CUBLAS_STATUS_SUCCESS) /* W, column-major: (k, n) with y, and (n, k) with dx */
        status = matrix(&s->w, kind->w, kind->back ? kind->n : kind->k,
                        kind->back ? kind->k : kind->n, kind->ldw);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = matrix(&s->in, kind->in, kind->k, k->rows, k->ld_in);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = matrix(&s->out, kind->out, kind->n, k->rows, k->ld_out);
    return status;
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t p)
{
    uint64_t workspace = WORKSPACE_BYTES;
    uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE, alignment = ALIGNMENT;
    const struct {
        cublasLtMatmulPreferenceAttributes_t what;
        const void *value;
        size_t bytes;
    } set[] = {
        {CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace},
        {CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof scheme},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &alignment, sizeof alignment},
        {CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &alignment, sizeof alignment},
    };
    cublasStatus_t status = CUBLAS_STATUS_SUCCESS;
    for (size_t i = 0; i < sizeof set / sizeof *set && status == CUBLAS_STATUS_SUCCESS; i++)
        status = cublasLtMatmulPreferenceSetAttribute(p, set[i].what, set[i].value, set[i].bytes);
    return status;
}

/* The scheme excludes algorithms that have to add parts of a sum over k; this also excludes those
 * that split it and do without a scheme. */
static bool splits_k(const cublasLtMatmulAlgo_t *a)
{
    int32_t parts = 1;
    size_t written = 0;
    cublasStatus_t status = cublasLtMatmulAlgoConfigGetAttribute(a, CUBLASLT_ALGO_CONFIG_SPLITK_NUM,
                                                                 &parts, sizeof parts, &written);
    return status == CUBLAS_STATUS_SUCCESS && parts > 1;
}

/* Keeps the algorithms that cuBLASLt proposes for many rows. */
static cublasStatus_t choose(struct algorithms *out, struct cuda_products *p, const struct key *k)
{
    struct shape many = {};
    struct key key = *k;
    key.rows = CHOICE_ROWS;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found[CHOICES];
    int count = 0;
    cublasStatus_t status = shape_describe(&many, &key);
    if (status == CUBLAS_STATUS_SUCCESS) status = cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS) status = prefer(preference);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(p->handle, many.product, many.w, many.in, many.out,
                                                many.out, preference, CHOICES, found, &count);
    memcpy(&out->kind, &k->kind, sizeof out->kind);
    out->choices = 0;
    out->tried = false;
    for (int i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && !splits_k(&found[i].algo))
            out->choice[out->choices++] = found[i].algo;
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    shape_clear(&many);
    return status;
}

/* Runs a product with the algorithm of its shape. */
static cublasStatus_t run(struct backend_context *c, const struct shape *s, struct mat out,
                          struct mat in, struct mat w, bool add)
{
    static const float one = 1.0f, zero = 0.0f;
    return cublasLtMatmul(c->products->handle, s->product, &one, w.data, s->w, in.data, s->in,
                          add ? &one : &zero, out.data, s->out, out.data, s->out, &s->algorithm,
                          c->products->workspace, WORKSPACE_BYTES, c->stream);
}

/* ---- Rows alone. cuBLASLt does not tell whether the order in which an algorithm sums a row depends
 * on the number of rows. So each is tried before it is used: rows that are multiplied with few, with
 * more and with many others must have the same bits. */

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
        size_t at = i / cols * x.ld + i % cols;
        if (x.type == DTYPE_F32)
            static_cast<float *>(x.data)[at] = v;
        else
            static_cast<bf16 *>(x.data)[at] = float_bf16(v);
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
    const struct kind *kind;
    const cublasLtMatmulAlgo_t *algorithm;
    struct mat w, x, all, some; /* all: of all rows of x, some: of at most TRY_MORE of them */
    uint32_t *differs;          /* (TRY_MORE) */
    size_t rows;
};

/* to (rows, n) = the product of rows first .. first + rows - 1 of x. */
static cublasStatus_t try_rows(struct backend_context *c, const struct trial *t, struct mat to,
                               size_t first, size_t rows)
{
    struct key key = {rows, t->x.ld, to.ld, *t->kind};
    struct shape s = {};
    cublasLtMatmulHeuristicResult_t result;
    cublasStatus_t status = shape_describe(&s, &key);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoCheck(c->products->handle, s.product, s.w, s.in, s.out, s.out,
                                         t->algorithm, &result);
    s.algorithm = *t->algorithm;
    if (status == CUBLAS_STATUS_SUCCESS)
        status = run(c, &s, to, mat_at(t->x, first, 0), t->w, false);
    shape_clear(&s);
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

/* Puts the first algorithm whose rows do not depend on their number in front. False after a recorded
 * failure. */
static bool put_tried_first(struct backend_context *c, struct algorithms *a, struct mat w)
{
    const struct kind *k = &a->kind;
    size_t rows = try_most(c, k->n);
    size_t in = padded(k->k) * size_of(k->in), out = padded(k->n) * size_of(k->out);
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
    t.x = {memory + x_at, k->in, padded(k->k)};
    t.all = {memory + all_at, k->out, padded(k->n)};
    t.some = {memory + some_at, k->out, padded(k->n)};
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

static const struct algorithms *algorithms_of(struct backend_context *c, const struct key *k,
                                              struct mat w)
{
    struct cuda_products *p = c->products;
    for (size_t i = 0; i < p->kinds; i++)
        if (!memcmp(&p->algorithms[i].kind, &k->kind, sizeof k->kind)) return &p->algorithms[i];
    void *more = realloc(p->algorithms, (p->kinds + 1) * sizeof *p->algorithms);
    if (!more) {
        cuda_fail(c, err_sys(ENOMEM, "cuda"));
        return NULL;
    }
    p->algorithms = (struct algorithms *)more;
    struct algorithms *a = &p->algorithms[p->kinds];
    cublasStatus_t status = choose(a, p, k);
    if (status == CUBLAS_STATUS_SUCCESS && !a->choices) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(c, blas_error(c, status, "choosing an algorithm"));
        return NULL;
    }
    if (!put_tried_first(c, a, w)) return NULL;
    p->kinds++;
    return a;
}

/* An algorithm may refuse some numbers of rows. Then the next one is taken, and the context
 * remembers that it makes no promise about rows, as it does if none could be found. */
static cublasStatus_t shape_algorithm(struct shape *s, struct backend_context *c,
                                      const struct algorithms *a)
{
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < a->choices && status != CUBLAS_STATUS_SUCCESS; i++) {
        cublasLtMatmulHeuristicResult_t result;
        status = cublasLtMatmulAlgoCheck(c->products->handle, s->product, s->w, s->in, s->out,
                                         s->out, &a->choice[i], &result);
        if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize > WORKSPACE_BYTES)
            status = CUBLAS_STATUS_NOT_SUPPORTED;
        s->algorithm = a->choice[i];
        if (status == CUBLAS_STATUS_SUCCESS && (i || !a->tried)) c->rows_depend = true;
    }
    return status;
}

/* FNV-1a */
static size_t hash(const void *bytes, size_t n)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n; i++)
        h = (h ^ ((const unsigned char *)bytes)[i]) * 0x100000001b3u;
    return (size_t)(h ^ (h >> 32));
}

static const struct shape *shape_find(struct backend_context *c, const struct key *k, struct mat w)
{
    struct shape *s = &c->products->shape[hash(k, sizeof *k) % SHAPES];
    if (s->used && !memcmp(&s->key, k, sizeof *k)) return s;
    const struct algorithms *a = algorithms_of(c, k, w);
    if (!a) return NULL;
    shape_clear(s);
    cublasStatus_t status = shape_describe(s, k);
    if (status == CUBLAS_STATUS_SUCCESS) status = shape_algorithm(s, c, a);
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(c, blas_error(c, status, "preparing a product"));
        shape_clear(s);
        return NULL;
    }
    memcpy(&s->key, k, sizeof s->key);
    s->used = true;
    return s;
}

/* ---- Products */

/* W in the precision. A weight that is kept as in the file is converted at each use, but not again
 * if it was the last one, as between the products of a head. */
static struct mat whole(struct backend_context *c, const struct backend_weight *w)
{
    if (w->packed.data) return w->packed;
    struct cuda_products *p = c->products;
    size_t row = 0;
    struct mat to = {NULL, c->precision, padded(w->k)};
    to.data = grow(c, &p->wide, w->n * to.ld * size_of(to.type));
    if (p->wide_number == w->number) return to;
    p->wide_number = to.data ? w->number : 0;
    for (size_t i = 0; i < w->parts && to.data; i++) {
        cuda_dequantise(c, mat_at(to, row, 0), w->part[i].data, &w->part[i], w->k, 0,
                        w->part[i].rows);
        row += w->part[i].rows;
    }
    return to;
}

/* The fast algorithms need rows that start at multiples of 16 bytes. */
static bool aligned(struct mat m)
{
    return ((uintptr_t)m.data | m.ld * size_of(m.type)) % ALIGNMENT == 0;
}

/* x itself, or a copy of the type of W and aligned. */
static struct mat fitting_input(struct backend_context *c, struct mat x, enum dtype type,
                                size_t rows, size_t cols)
{
    if (x.type == type && aligned(x)) return x;
    struct mat to = {NULL, type, padded(cols)};
    to.data = grow(c, &c->products->input, rows * to.ld * size_of(type));
    if (to.data) cuda_convert(c, to, x, rows, cols, 1.0f);
    return to;
}

/* y itself, or aligned memory in its place, with `add` holding its values. float32 products have
 * float32 results. */
static struct mat fitting_output(struct backend_context *c, struct mat y, enum dtype w, size_t rows,
                                 size_t cols, bool add)
{
    enum dtype type = w == DTYPE_F32 ? DTYPE_F32 : y.type;
    if (y.type == type && aligned(y)) return y;
    struct mat to = {NULL, type, padded(cols)};
    to.data = grow(c, &c->products->output, rows * to.ld * size_of(type));
    if (to.data && add) cuda_convert(c, to, y, rows, cols, 1.0f);
    return to;
}

void cuda_multiply(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, const struct cuda_product *p)
{
    if (!p->rows || err_is(c->first)) return;
    size_t used = p->w_rows ? p->w_rows : w->n;
    size_t n = p->back ? w->k : used, k = p->back ? used : w->k;
    struct mat m = whole(c, w);
    if (!m.data) return;
    m = mat_at(m, p->w_first, 0);
    struct mat in = fitting_input(c, x, m.type, p->rows, k);
    struct mat out = fitting_output(c, y, m.type, p->rows, n, p->add);
    if (!in.data || !out.data) return;
    struct key key;
    memset(&key, 0, sizeof key); /* the bytes between members too, which are compared */
    key.rows = p->rows;
    key.ld_in = in.ld;
    key.ld_out = out.ld;
    key.kind.n = n;
    key.kind.k = k;
    key.kind.ldw = m.ld;
    key.kind.in = in.type;
    key.kind.w = m.type;
    key.kind.out = out.type;
    key.kind.back = p->back;
    const struct shape *s = shape_find(c, &key, m);
    if (!s) return;
    cublasStatus_t status = run(c, s, out, in, m, p->add);
    if (status != CUBLAS_STATUS_SUCCESS)
        cuda_fail(c, blas_error(c, status, "a product"));
    else if (out.data != y.data)
        cuda_convert(c, y, out, p->rows, n, 1.0f);
}

void cuda_linear(struct backend_context *c, struct mat y, struct mat x,
                 const struct backend_weight *w, const struct low_rank_site *l,
                 const struct backend_batch *b, size_t rows, bool add)
{
    double since = cuda_begin(c);
    bool set = cuda_low_rank_forward(c, y, x, w, l, b, rows, add);
    struct cuda_product p = {rows, false, add || set, 0, 0};
    cuda_multiply(c, y, x, w, &p);
    cuda_done(c, OP_LINEAR, since);
}

void cuda_linear_back(struct backend_context *c, struct mat dx, struct mat dy,
                      const struct backend_weight *w, const struct low_rank_site *l,
                      const struct backend_batch *b, size_t rows)
{
    double since = cuda_begin(c);
    bool set = cuda_low_rank_back(c, dx, dy, l, b, rows, w->k);
    struct cuda_product p = {rows, true, set, 0, 0};
    if (dx.data) cuda_multiply(c, dx, dy, w, &p);
    cuda_done(c, OP_LINEAR_BACK, since);
}

/* ---- Packing */

void cuda_weight_close(struct backend_weight *w)
{
    if (!w) return;
    cuda_give(w->context, w->packed.data);
    cuda_give(w->context, w->kept);
    cuda_give(w->context, w->bias);
    free(w);
}

static err part_bytes(size_t *out, const struct weight_part *p, size_t k)
{
    size_t row;
    if (!dtype_bytes(&row, p->type, k))
        return err_make(ERR_INPUT, "cuda: a weight of type %s has rows of %zu values",
                        dtype_name(p->type), k);
    *out = p->rows * row;
    return ERR_NONE;
}

/* Converts a part while it is copied, in pieces, because a whole head can have gigabytes. Rows that
 * are permuted stay within their head, so a piece is a number of whole heads. */
static err pack_part(struct backend_context *c, struct mat to, const struct weight_part *p,
                     size_t k)
{
    size_t bytes = 0, unit = p->rope_heads ? p->rows / p->rope_heads : 1;
    TRY(part_bytes(&bytes, p, k));
    size_t row_bytes = p->rows ? bytes / p->rows : 0, units = row_bytes * unit;
    size_t most = units && units < PACK_BYTES ? PACK_BYTES / units * unit : unit;
    for (size_t row = 0; row < p->rows; row += most) {
        struct weight_part piece = *p;
        piece.rows = (uint32_t)(p->rows - row < most ? p->rows - row : most);
        if (p->rope_heads) piece.rope_heads = (uint32_t)(piece.rows / unit);
        void *staged = cuda_scratch(c, piece.rows * row_bytes);
        if (!staged) break;
        cuda_good(c,
                  cudaMemcpyAsync(staged, (const char *)p->data + row * row_bytes,
                                  piece.rows * row_bytes, cudaMemcpyHostToDevice, c->stream),
                  "copying a weight to the device");
        cuda_dequantise(c, mat_at(to, row, 0), staged, &piece, k, 0, piece.rows);
    }
    return ERR_NONE;
}

static err pack_all(struct backend_weight *w, struct backend_context *c,
                    const struct weight_source *s)
{
    size_t row = 0;
    w->packed.type = c->precision;
    w->packed.ld = padded(s->k);
    TRY(cuda_take(&w->packed.data, c, s->n * w->packed.ld * size_of(c->precision)));
    for (size_t i = 0; i < s->parts; i++) {
        TRY(pack_part(c, mat_at(w->packed, row, 0), &s->part[i], s->k));
        row += s->part[i].rows;
    }
    REQUIRE(row == s->n);
    return ERR_NONE;
}

/* Copies the bytes of the file; parts start at multiples of 256 bytes. */
static err keep_all(struct backend_weight *w, struct backend_context *c,
                    const struct weight_source *s)
{
    size_t at[WEIGHT_PARTS_MAX], bytes[WEIGHT_PARTS_MAX], all = 0;
    for (size_t i = 0; i < s->parts; i++) {
        TRY(part_bytes(&bytes[i], &s->part[i], s->k));
        at[i] = all;
        all += (bytes[i] + 255) / 256 * 256;
    }
    TRY(cuda_take(&w->kept, c, all));
    for (size_t i = 0; i < s->parts; i++) {
        w->part[i].data = (char *)w->kept + at[i];
        cuda_good(c,
                  cudaMemcpyAsync((char *)w->kept + at[i], s->part[i].data, bytes[i],
                                  cudaMemcpyHostToDevice, c->stream),
                  "copying a weight to the device");
    }
    return ERR_NONE;
}

/* Parts in the precision need no conversion, so keeping them as in the file would save nothing. */
static bool keeps(const struct backend_context *c, const struct weight_source *s)
{
    bool other = false;
    for (size_t i = 0; i < s->parts; i++)
        other |= s->part[i].type != c->precision;
    return (s->products & BACKEND_KEEP) && other;
}

/* Waits, so that another context may use the weight at once, and so that a failure of its copies is
 * known. */
err cuda_weight_pack(struct backend_weight **out, struct backend_context *c,
                     const struct weight_source *s)
{
    cuda_begin(c);
    REQUIRE(s->parts <= WEIGHT_PARTS_MAX);
    struct backend_weight *w = (struct backend_weight *)calloc(1, sizeof *w);
    if (!w) return err_sys(ENOMEM, "cuda");
    static uint64_t weights;
    bool good = !err_is(c->first);
    w->context = c;
    w->number = __atomic_add_fetch(&weights, 1, __ATOMIC_RELAXED);
    w->n = s->n;
    w->k = s->k;
    w->products = s->products;
    w->parts = s->parts;
    for (size_t i = 0; i < s->parts; i++) {
        w->part[i] = s->part[i];
        w->part[i].data = NULL;
    }
    err e = keeps(c, s) ? keep_all(w, c, s) : pack_all(w, c, s);
    if (!err_is(e) && s->bias) e = cuda_take(&w->bias, c, s->n * sizeof(float));
    if (!err_is(e) && s->bias) cuda_send(c, w->bias, s->bias, s->n * sizeof(float));
    cuda_wait(c);
    if (!err_is(e) && good && err_is(c->first)) {
        e = c->first;
        c->first = ERR_NONE;
    }
    if (err_is(e))
        cuda_weight_close(w);
    else
        *out = w;
    return e;
}
