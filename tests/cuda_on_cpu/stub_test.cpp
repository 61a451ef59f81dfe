/* The stub of cuBLASLt: its products, its refusals and the algorithms that it offers. */
#include "cublasLt.h"
#include "shim_test.h"

static void product_good(cublasStatus_t s)
{
    cr_assert(s == CUBLAS_STATUS_SUCCESS, "%s", cublasLtGetStatusName(s));
}

struct shape {
    size_t m, n, k;
    bool ta, tb;
    int32_t order;
    cudaDataType_t in, out;
    size_t ld; /* 0: the smallest; else this for all */
};
struct product {
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulPreference_t preference;
    cudaStream_t s;
    void *workspace;
    cublasLtMatmulHeuristicResult_t found[8];
    int count;
};
static cublasLtMatrixLayout_t layout_open(const struct shape *t, cudaDataType_t type, size_t rows,
                                          size_t cols)
{
    cublasLtMatrixLayout_t l;
    size_t least = t->order == CUBLASLT_ORDER_ROW ? cols : rows;
    product_good(
        cublasLtMatrixLayoutCreate(&l, type, rows, cols, (int64_t)(t->ld ? t->ld : least)));
    product_good(cublasLtMatrixLayoutSetAttribute(l, CUBLASLT_MATRIX_LAYOUT_ORDER, &t->order,
                                                  sizeof t->order));
    return l;
}
static struct product product_open(const struct shape *t, uint32_t schemes)
{
    struct product p = {};
    uint64_t bytes = 1 << 16;
    int32_t ta = t->ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = t->tb ? CUBLAS_OP_T : CUBLAS_OP_N;
    p.s = stream_open();
    p.workspace = device_take<char>(bytes);
    product_good(cublasLtCreate(&p.handle));
    product_good(cublasLtMatmulDescCreate(&p.desc, CUBLAS_COMPUTE_32F_PEDANTIC, CUDA_R_32F));
    product_good(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSA, &ta, 4));
    product_good(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_TRANSB, &tb, 4));
    p.a = layout_open(t, t->in, t->ta ? t->k : t->m, t->ta ? t->m : t->k);
    p.b = layout_open(t, t->in, t->tb ? t->n : t->k, t->tb ? t->k : t->n);
    p.d = layout_open(t, t->out, t->m, t->n);
    product_good(cublasLtMatmulPreferenceCreate(&p.preference));
    product_good(cublasLtMatmulPreferenceSetAttribute(
        p.preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &bytes, sizeof bytes));
    product_good(cublasLtMatmulPreferenceSetAttribute(
        p.preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &schemes, sizeof schemes));
    cublasLtMatmulAlgoGetHeuristic(p.handle, p.desc, p.a, p.b, p.d, p.d, p.preference, 8, p.found,
                                   &p.count);
    return p;
}
static void product_close(struct product *p)
{
    cudaFree(p->workspace);
    cublasLtMatmulPreferenceDestroy(p->preference);
    cublasLtMatrixLayoutDestroy(p->a);
    cublasLtMatrixLayoutDestroy(p->b);
    cublasLtMatrixLayoutDestroy(p->d);
    cublasLtMatmulDescDestroy(p->desc);
    cublasLtDestroy(p->handle);
    cudaStreamDestroy(p->s);
}
static cublasStatus_t multiply(struct product *p, int algo, const void *a, const void *b, void *d)
{
    float alpha = 0.5f, beta = 2.0f;
    return cublasLtMatmul(p->handle, p->desc, &alpha, a, p->a, b, p->b, &beta, d, p->d, d, p->d,
                          &p->found[algo].algo, p->workspace, 1 << 16, p->s);
}
static std::vector<char> values(size_t n, cudaDataType_t type, size_t from)
{
    std::vector<char> v(n * (type == CUDA_R_32F ? 4 : 2));
    for (size_t i = 0; i < n; i++) {
        float f = value(i + from);
        bf16 h = bf16_from_f32(f);
        if (type == CUDA_R_32F)
            memcpy(&v[4 * i], &f, 4);
        else
            memcpy(&v[2 * i], &h, 2);
    }
    return v;
}
static double at(const std::vector<char> &v, cudaDataType_t type, size_t i)
{
    float f;
    bf16 h;
    memcpy(&h, &v[2 * i], 2);
    if (type == CUDA_R_32F)
        memcpy(&f, &v[4 * i], 4);
    else
        f = f32_from_bf16(h);
    return (double)f;
}
/* Where element (row, col) of a matrix lies. */
static size_t place(const struct shape *t, size_t rows, size_t cols, size_t row, size_t col)
{
    if (t->order == CUBLASLT_ORDER_ROW) return row * (t->ld ? t->ld : cols) + col;
    return col * (t->ld ? t->ld : rows) + row;
}
static void check_product(const struct shape *t)
{
    struct product p = product_open(t, CUBLASLT_REDUCTION_SCHEME_MASK);
    size_t most = std::max(std::max(t->m, t->n), std::max(t->k, t->ld)), n = most * most;
    std::vector<char> a = values(n, t->in, 0), b = values(n, t->in, 9), c = values(n, t->out, 5);
    char *da = device_copy(a, p.s), *db = device_copy(b, p.s);
    cr_assert(p.count >= 2);
    for (int g = 0; g < p.count; g++) {
        char *dd = device_copy(c, p.s);
        product_good(multiply(&p, g, da, db, dd));
        std::vector<char> got = host_copy(dd, c.size(), p.s);
        for (size_t i = 0; i < t->m; i++)
            for (size_t j = 0; j < t->n; j++) {
                size_t d = place(t, t->m, t->n, i, j);
                double want = 2.0 * at(c, t->out, d);
                for (size_t k = 0; k < t->k; k++)
                    want += 0.5 *
                            at(a, t->in,
                               t->ta ? place(t, t->k, t->m, k, i) : place(t, t->m, t->k, i, k)) *
                            at(b, t->in,
                               t->tb ? place(t, t->n, t->k, j, k) : place(t, t->k, t->n, k, j));
                double limit = t->out == CUDA_R_32F ? 1e-5 : 1e-2 * (1 + fabs(want));
                cr_assert_float_eq(at(got, t->out, d), want, limit, "algorithm %d (%zu, %zu)", g, i,
                                   j);
            }
        cudaFree(dd);
    }
    cudaFree(da);
    cudaFree(db);
    product_close(&p);
}
Test(cublas, multiplies_all_layouts_and_types)
{
    for (unsigned i = 0; i < 8; i++)
        for (size_t ld = 0; ld < 64; ld += 48) {
            struct shape t = {17,           35,           21,
                              (i & 1) != 0, (i & 2) != 0, (int32_t)(i >> 2),
                              CUDA_R_32F,   CUDA_R_32F,   ld};
            check_product(&t);
            t.in = CUDA_R_16BF;
            check_product(&t);
            t.out = CUDA_R_16BF;
            check_product(&t);
        }
}

/* The bits of row 0 of a product of `rows` rows, row by row in memory. */
static std::vector<char> first_row(size_t rows, unsigned id)
{
    struct shape t = {rows, 48, 160, false, true, CUBLASLT_ORDER_ROW, CUDA_R_32F, CUDA_R_32F, 0};
    struct product p = product_open(&t, CUBLASLT_REDUCTION_SCHEME_NONE);
    char *a = device_copy(values(rows * 160, CUDA_R_32F, 0), p.s);
    char *b = device_copy(values(48 * 160, CUDA_R_32F, 1), p.s);
    char *d = device_copy(values(rows * 48, CUDA_R_32F, 2), p.s);
    std::vector<char> row;
    for (int g = 0; g < p.count; g++) {
        uint32_t each = 0, splits = 0;
        product_good(cublasLtMatmulAlgoConfigGetAttribute(&p.found[g].algo, CUBLASLT_ALGO_CONFIG_ID,
                                                          &each, sizeof each, nullptr));
        product_good(cublasLtMatmulAlgoConfigGetAttribute(
            &p.found[g].algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &splits, sizeof splits, nullptr));
        cr_expect(splits == 1, "no reduction is allowed");
        if (each != id) continue;
        product_good(multiply(&p, g, a, b, d));
        row = host_copy(d, 48 * 4, p.s);
    }
    cr_assert(!row.empty());
    cudaFree(a);
    cudaFree(b);
    cudaFree(d);
    product_close(&p);
    return row;
}
Test(cublas, one_algorithm_depends_on_the_number_of_rows)
{
    enum { BY_ROWS = 2, RIGHT_16, RIGHT_ANY };
    cr_expect(first_row(8, BY_ROWS) != first_row(256, BY_ROWS));
    cr_expect(first_row(8, RIGHT_16) == first_row(256, RIGHT_16));
    cr_expect(first_row(8, RIGHT_16) == first_row(2048, RIGHT_ANY));
}

Test(cublas, heuristics_offer_what_is_set)
{
    struct shape t = {16, 16, 16, false, false, 0, CUDA_R_32F, CUDA_R_32F, 0};
    static const struct {
        unsigned mask, schemes;
        int count;
        size_t ld;
    } list[] = {{SHIM_PRODUCT_ALL, CUBLASLT_REDUCTION_SCHEME_MASK, 4, 0},
                {SHIM_PRODUCT_ALL, CUBLASLT_REDUCTION_SCHEME_NONE, 3, 0},
                {SHIM_PRODUCT_ALL, CUBLASLT_REDUCTION_SCHEME_MASK, 2, 17},
                {SHIM_PRODUCT_BY_ROWS, CUBLASLT_REDUCTION_SCHEME_MASK, 1, 0},
                {SHIM_PRODUCT_RIGHT_F32, CUBLASLT_REDUCTION_SCHEME_MASK, 2, 0},
                {0, CUBLASLT_REDUCTION_SCHEME_MASK, 0, 0}};
    for (auto &l : list) {
        shim_products(l.mask);
        t.ld = l.ld;
        struct product p = product_open(&t, l.schemes);
        cr_expect(p.count == l.count, "%d, expected %d", p.count, l.count);
        product_close(&p);
    }
    shim_products(SHIM_PRODUCT_ALL);
}

Test(cublas, refuses_what_would_not_run)
{
    struct shape t = {16, 16, 16, false, false, 0, CUDA_R_32F, CUDA_R_32F, 0};
    struct product p = product_open(&t, CUBLASLT_REDUCTION_SCHEME_NONE);
    float *x = device_take<float>(4 * 256);
    cublasComputeType_t plain = CUBLAS_COMPUTE_32F;
    int64_t ld = 15, odd = 17;
    cr_expect(multiply(&p, 1, x, x + 256, x + 512) == CUBLAS_STATUS_SUCCESS);
    cr_expect(multiply(&p, 1, x + 1, x + 256, x + 512) == CUBLAS_STATUS_NOT_SUPPORTED, "address");
    cr_expect(multiply(&p, 1, x, x + 256, x + 252) == CUBLAS_STATUS_INVALID_VALUE, "overlap");
    product_good(cublasLtMatrixLayoutSetAttribute(p.a, CUBLASLT_MATRIX_LAYOUT_LD, &odd, 8));
    cr_expect(multiply(&p, 1, x, x + 512, x + 768) == CUBLAS_STATUS_NOT_SUPPORTED, "pinned for 16");
    cr_expect(multiply(&p, 2, x, x + 512, x + 768) == CUBLAS_STATUS_SUCCESS);
    product_good(cublasLtMatrixLayoutSetAttribute(p.a, CUBLASLT_MATRIX_LAYOUT_LD, &ld, 8));
    cr_expect(multiply(&p, 2, x, x + 512, x + 768) == CUBLAS_STATUS_NOT_SUPPORTED, "ld");
    ld = 16;
    product_good(cublasLtMatrixLayoutSetAttribute(p.a, CUBLASLT_MATRIX_LAYOUT_LD, &ld, 8));
    product_good(cublasLtMatmulDescSetAttribute(p.desc, CUBLASLT_MATMUL_DESC_COMPUTE_TYPE, &plain,
                                                sizeof plain));
    cr_expect(multiply(&p, 1, x, x + 256, x + 512) == CUBLAS_STATUS_NOT_SUPPORTED, "TF32");
    good(cudaStreamSynchronize(p.s));
    cudaFree(x);
    product_close(&p);
}
