/* Products with the frozen weights, by cuBLASLt.
 *
 * A row-major matrix is a column-major one transposed, so cuBLASLt computes y^T = W x^T, and dx^T =
 * W^T dy^T. One copy of W serves both.
 *
 * cuBLASLt usually chooses another algorithm for another number of rows, and sums in another order
 * then. Here an algorithm is chosen once for each W and kept for any number of rows, without
 * splitting sums over k, so that the bits of a row do not depend on the other rows. */
#include "kernels/cuda/cuda_product.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum {
    CHOICE_ROWS = 2048, /* the number of rows that algorithms are chosen for */
    ALIGNMENT = 16,     /* of all operands and of their rows, in bytes */
};

static cudaDataType_t cuda_type(enum dtype t)
{
    return t == DTYPE_F32 ? CUDA_R_32F : CUDA_R_16BF;
}

static err blas_error(const struct backend_context *c, cublasStatus_t status, const char *what)
{
    return err_make(ERR_MACHINE, "cuda:%d: cuBLAS: %s: status %d", c->device, what, (int)status);
}

void cuda_shape_clear(struct blas_shape *s)
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
    for (size_t i = 0; i < BLAS_SHAPES; i++)
        cuda_shape_clear(&p->shape[i]);
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
    err e = cuda_take(&p->workspace, c, BLAS_WORKSPACE_BYTES);
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

void cuda_products_forget(struct cuda_products *p)
{
    p->wide_number = 0;
}

size_t cuda_products_bytes(const struct cuda_products *p)
{
    return BLAS_WORKSPACE_BYTES + p->input.bytes + p->output.bytes;
}

/* ---- Shapes and algorithms */

static cublasStatus_t matrix(cublasLtMatrixLayout_t *out, enum dtype t, size_t rows, size_t cols,
                             size_t ld)
{
    return cublasLtMatrixLayoutCreate(out, cuda_type(t), rows, cols, (int64_t)ld);
}

/* The descriptors of a product. PEDANTIC keeps float32 from being computed in TF32. */
cublasStatus_t cuda_shape_describe(struct blas_shape *s, const struct blas_key *k)
{
    const struct blas_kind *kind = &k->kind;
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
    uint64_t workspace = BLAS_WORKSPACE_BYTES;
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
static cublasStatus_t choose(struct blas_algorithms *out, struct cuda_products *p,
                             const struct blas_key *k)
{
    struct blas_shape many = {};
    struct blas_key key = *k;
    key.rows = CHOICE_ROWS;
    cublasLtMatmulPreference_t preference = NULL;
    cublasLtMatmulHeuristicResult_t found[BLAS_CHOICES];
    int count = 0;
    cublasStatus_t status = cuda_shape_describe(&many, &key);
    if (status == CUBLAS_STATUS_SUCCESS) status = cublasLtMatmulPreferenceCreate(&preference);
    if (status == CUBLAS_STATUS_SUCCESS) status = prefer(preference);
    if (status == CUBLAS_STATUS_SUCCESS)
        status = cublasLtMatmulAlgoGetHeuristic(p->handle, many.product, many.w, many.in, many.out,
                                                many.out, preference, BLAS_CHOICES, found, &count);
    memcpy(&out->kind, &k->kind, sizeof out->kind);
    out->choices = 0;
    out->tried = false;
    for (int i = 0; i < count && status == CUBLAS_STATUS_SUCCESS; i++)
        if (found[i].state == CUBLAS_STATUS_SUCCESS && !splits_k(&found[i].algo))
            out->choice[out->choices++] = found[i].algo;
    if (preference) (void)cublasLtMatmulPreferenceDestroy(preference);
    cuda_shape_clear(&many);
    return status;
}

cublasStatus_t cuda_shape_run(struct backend_context *c, const struct blas_shape *s, struct mat out,
                              struct mat in, struct mat w, float factor, bool add)
{
    float beta = add ? 1.0f : 0.0f;
    return cublasLtMatmul(c->products->handle, s->product, &factor, w.data, s->w, in.data, s->in,
                          &beta, out.data, s->out, out.data, s->out, &s->algorithm,
                          c->products->workspace, BLAS_WORKSPACE_BYTES, c->stream);
}

static const struct blas_algorithms *algorithms_of(struct backend_context *c,
                                                   const struct blas_key *k, struct mat w)
{
    struct cuda_products *p = c->products;
    for (size_t i = 0; i < p->kinds; i++)
        if (!memcmp(&p->algorithms[i].kind, &k->kind, sizeof k->kind)) return &p->algorithms[i];
    if (c->capturing) { /* an algorithm is tried on the device */
        c->uncapturable = true;
        return NULL;
    }
    void *more = realloc(p->algorithms, (p->kinds + 1) * sizeof *p->algorithms);
    if (!more) {
        cuda_fail(c, err_sys(ENOMEM, "cuda"));
        return NULL;
    }
    p->algorithms = (struct blas_algorithms *)more;
    struct blas_algorithms *a = &p->algorithms[p->kinds];
    cublasStatus_t status = choose(a, p, k);
    if (status == CUBLAS_STATUS_SUCCESS && !a->choices) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(c, blas_error(c, status, "choosing an algorithm"));
        return NULL;
    }
    if (!cuda_trial_order(c, a, w)) return NULL;
    p->kinds++;
    return a;
}

/* An algorithm may refuse some numbers of rows. Then the next one is taken, and the context
 * remembers that it makes no promise about rows, as it does if none could be found. */
static cublasStatus_t shape_algorithm(struct blas_shape *s, struct backend_context *c,
                                      const struct blas_algorithms *a)
{
    cublasStatus_t status = CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < a->choices && status != CUBLAS_STATUS_SUCCESS; i++) {
        cublasLtMatmulHeuristicResult_t result;
        status = cublasLtMatmulAlgoCheck(c->products->handle, s->product, s->w, s->in, s->out,
                                         s->out, &a->choice[i], &result);
        if (status == CUBLAS_STATUS_SUCCESS && result.workspaceSize > BLAS_WORKSPACE_BYTES)
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

static const struct blas_shape *shape_find(struct backend_context *c, const struct blas_key *k,
                                           struct mat w)
{
    struct blas_shape *s = &c->products->shape[hash(k, sizeof *k) % BLAS_SHAPES];
    if (s->used && !memcmp(&s->key, k, sizeof *k)) return s;
    const struct blas_algorithms *a = algorithms_of(c, k, w);
    if (!a) return NULL;
    cuda_shape_clear(s);
    cublasStatus_t status = cuda_shape_describe(s, k);
    if (status == CUBLAS_STATUS_SUCCESS) status = shape_algorithm(s, c, a);
    if (status != CUBLAS_STATUS_SUCCESS) {
        cuda_fail(c, blas_error(c, status, "preparing a product"));
        cuda_shape_clear(s);
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
    struct mat to = {NULL, c->precision, cuda_padded(w->k)};
    to.data = cuda_grow(c, &p->wide, w->n * to.ld * cuda_size(to.type));
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
    return ((uintptr_t)m.data | m.ld * cuda_size(m.type)) % ALIGNMENT == 0;
}

/* x itself, or a copy of the type of W and aligned. */
static struct mat fitting_input(struct backend_context *c, struct mat x, enum dtype type,
                                size_t rows, size_t cols)
{
    if (x.type == type && aligned(x)) return x;
    struct mat to = {NULL, type, cuda_padded(cols)};
    to.data = cuda_grow(c, &c->products->input, rows * to.ld * cuda_size(type));
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
    struct mat to = {NULL, type, cuda_padded(cols)};
    to.data = cuda_grow(c, &c->products->output, rows * to.ld * cuda_size(type));
    if (to.data && add) cuda_convert(c, to, y, rows, cols, 1.0f);
    return to;
}

void cuda_multiply(struct backend_context *c, struct mat y, struct mat x,
                   const struct backend_weight *w, const struct cuda_product *p)
{
    if (!p->rows || err_is(c->first)) return;
    size_t used = p->w_rows ? p->w_rows : w->n;
    size_t n = p->back ? w->k : used, k = (p->back ? used : w->k) + p->margin;
    struct mat m = whole(c, w);
    if (!m.data) return;
    m = mat_at(m, p->w_first, 0);
    struct mat in = fitting_input(c, x, m.type, p->rows, k);
    struct mat out = fitting_output(c, y, m.type, p->rows, n, p->add);
    if (!in.data || !out.data) return;
    struct blas_key key;
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
    const struct blas_shape *s = shape_find(c, &key, m);
    if (!s) return;
    cublasStatus_t status = cuda_shape_run(c, s, out, in, m, 1.0f, p->add);
    if (status != CUBLAS_STATUS_SUCCESS)
        cuda_fail(c, blas_error(c, status, "a product"));
    else if (out.data != y.data)
        cuda_convert(c, y, out, p->rows, n, 1.0f);
}
