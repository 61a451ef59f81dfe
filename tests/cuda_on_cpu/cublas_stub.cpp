/* The stub of cuBLASLt. Compiled without instrumentation: it checks that operands lie in device
 * memory by itself, and products would be slow. */
#include "cublasLt.h"
#include "cuda_on_cpu.h"
#include "shim.h"

#include <cstdio>
#include <vector>

struct stub_handle {
    int device;
};
struct stub_desc {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t pointer_mode, transpose[2], epilogue;
};
struct stub_layout {
    cudaDataType_t type;
    int32_t order, batch;
    uint64_t rows, cols;
    int64_t ld;
};
struct stub_preference {
    uint64_t workspace;
    uint32_t schemes;
};

namespace
{
/* The parts of an algorithm; they lie in cublasLtMatmulAlgo_t.data[0]. */
struct algo {
    uint32_t id, splits;
};
enum { SPLIT_K = 1, BY_ROWS, RIGHT_16, RIGHT_ANY, WORKSPACE = 4096, FILLED = 64 << 10 };
unsigned offered = SHIM_PRODUCT_ALL;

size_t size_of(const stub_layout *l)
{
    return l->type == CUDA_R_32F ? 4 : 2;
}
size_t bytes_of(const stub_layout *l)
{
    bool col = l->order == CUBLASLT_ORDER_COL;
    uint64_t along = col ? l->rows : l->cols, across = col ? l->cols : l->rows;
    return across ? (size_t)((across - 1) * (uint64_t)l->ld + along) * size_of(l) : 0;
}
bool rows_of_16(const stub_layout *l)
{
    return (size_t)l->ld * size_of(l) % 16 == 0;
}

/* Why the library or this project does not compute it, or NULL. */
const char *problem(const stub_desc *t, const stub_layout *a, const stub_layout *b,
                    const stub_layout *c, const stub_layout *d)
{
    const stub_layout *all[4] = {a, b, c, d};
    for (const stub_layout *l : all) {
        if (!l) return "a layout is missing";
        if (l->type != CUDA_R_32F && l->type != CUDA_R_16BF) return "a type";
        if (l->batch != 1) return "a batch";
        if (l->rows == 0 || l->cols == 0) return "an empty matrix";
        if (l->ld < (int64_t)(l->order == CUBLASLT_ORDER_COL ? l->rows : l->cols))
            return "a leading dimension is too small";
    }
    bool ta = t->transpose[0] != CUBLAS_OP_N, tb = t->transpose[1] != CUBLAS_OP_N;
    uint64_t m = ta ? a->cols : a->rows, ka = ta ? a->rows : a->cols;
    uint64_t n = tb ? b->rows : b->cols, kb = tb ? b->cols : b->rows;
    if (d->rows != m || d->cols != n || c->rows != m || c->cols != n || ka != kb)
        return "sizes do not match";
    if (a->type != b->type) return "A and B have different types";
    if (c->type != d->type || c->order != d->order) return "C and D differ in type or order";
    if (d->type == CUDA_R_16BF && a->type == CUDA_R_32F) return "a bf16 result of float32";
    if (t->scale != CUDA_R_32F || t->pointer_mode != CUBLASLT_POINTER_MODE_HOST)
        return "alpha and beta must be float32 on the host";
    if (t->epilogue != CUBLASLT_EPILOGUE_DEFAULT) return "an epilogue";
    if (t->compute != CUBLAS_COMPUTE_32F_PEDANTIC &&
        (t->compute != CUBLAS_COMPUTE_32F || a->type == CUDA_R_32F))
        return "the compute type allows less than float32";
    return nullptr;
}
bool is_offered(const algo *g, const stub_layout *a)
{
    if (g->id == SPLIT_K) return offered & SHIM_PRODUCT_SPLIT_K;
    if (g->id == BY_ROWS) return offered & SHIM_PRODUCT_BY_ROWS;
    return offered & SHIM_PRODUCT_RIGHT ||
           (offered & SHIM_PRODUCT_RIGHT_F32 && a->type == CUDA_R_32F);
}
bool supports(const algo *g, const stub_layout *a, const stub_layout *b, const stub_layout *d)
{
    return g->id == RIGHT_ANY || g->id == BY_ROWS ||
           (rows_of_16(a) && rows_of_16(b) && rows_of_16(d));
}

/* ---- The product. */
struct operand {
    const void *data;
    bool f32;
    size_t row, col; /* strides */
};
float element(const operand *x, size_t i, size_t j)
{
    size_t at = i * x->row + j * x->col;
    if (x->f32) return static_cast<const float *>(x->data)[at];
    return __uint_as_float((unsigned)static_cast<const uint16_t *>(x->data)[at] << 16);
}
operand operand_of(const void *data, const stub_layout *l, bool transposed)
{
    bool along_rows = (l->order == CUBLASLT_ORDER_COL) != transposed;
    size_t ld = (size_t)l->ld;
    return {data, l->type == CUDA_R_32F, along_rows ? 1 : ld, along_rows ? ld : 1};
}

enum { M = 4, N = 16 }; /* a tile in registers */
typedef float line __attribute__((vector_size(4 * N)));
/* tile (M, N) += a (k, M)^T b (k, N): each element is summed in ascending k, whatever is beside. */
#ifndef SHIM_TSAN /* which cannot run the choice of a clone */
__attribute__((target_clones("avx512f", "avx2", "default")))
#endif
void multiply_tile(float *tile, const float *a, const float *b, size_t k)
{
    line sum[M] = {}, right, old;
    for (size_t p = 0; p < k; p++) {
        memcpy(&right, b + p * N, sizeof right);
        for (size_t i = 0; i < M; i++)
            sum[i] += a[p * M + i] * right;
    }
    for (size_t i = 0; i < M; i++) {
        memcpy(&old, tile + i * N, sizeof old);
        old += sum[i];
        memcpy(tile + i * N, &old, sizeof old);
    }
}
/* to = x (lines, k) as panels (k, width), the last filled up with zeros. */
void panels(std::vector<float> *to, operand x, size_t lines, size_t k, size_t width)
{
    to->assign((lines + width - 1) / width * width * k, 0.0f);
    for (size_t first = 0; first < lines; first += width) {
        float *panel = to->data() + first * k;
        size_t have = std::min(width, lines - first);
        if (x.col == 1) /* as it lies in memory */
            for (size_t i = 0; i < have; i++)
                for (size_t p = 0; p < k; p++)
                    panel[p * width + i] = element(&x, first + i, p);
        else
            for (size_t p = 0; p < k; p++)
                for (size_t i = 0; i < have; i++)
                    panel[p * width + i] = element(&x, first + i, p);
    }
}
void product(operand a, operand b, operand c, operand d, size_t m, size_t n, size_t k, float alpha,
             float beta, size_t parts)
{
    std::swap(b.row, b.col);
    static std::vector<float> pa, pb; /* kept: one product runs at a time */
    panels(&pa, a, m, k, M);
    panels(&pb, b, n, k, N);
    for (size_t i = 0; i < m; i += M)
        for (size_t j = 0; j < n; j += N) {
            float tile[M * N] = {};
            for (size_t part = 0; part < parts; part++) {
                size_t from = k * part / parts, to = k * (part + 1) / parts;
                multiply_tile(tile, &pa[i * k + from * M], &pb[j * k + from * N], to - from);
            }
            for (size_t y = 0; y < std::min<size_t>(M, m - i); y++)
                for (size_t x = 0; x < std::min<size_t>(N, n - j); x++) {
                    float v = alpha * tile[y * N + x];
                    if (beta != 0) v += beta * element(&c, i + y, j + x);
                    size_t at = (i + y) * d.row + (j + x) * d.col;
                    void *to = const_cast<void *>(d.data);
                    if (d.f32)
                        static_cast<float *>(to)[at] = v;
                    else
                        static_cast<uint16_t *>(to)[at] = (uint16_t)pack_bf16(v, 0);
                }
        }
}
size_t parts_of(const algo *g, uint64_t m, uint64_t n)
{
    if (g->id == SPLIT_K) return g->splits;
    if (g->id != BY_ROWS) return 1;
    return 1 + (m >= 64) + (m >= 1024) + (n >= 64) + (n >= 1024);
}
bool overlap(const void *p, size_t bytes, const void *q, size_t more)
{
    uintptr_t a = reinterpret_cast<uintptr_t>(p), b = reinterpret_cast<uintptr_t>(q);
    return a < b + more && b < a + bytes;
}
cublasStatus_t refuse(cublasStatus_t status, const char *why)
{
    fprintf(stderr, "cuda_on_cpu: cublasLtMatmul refused: %s\n", why);
    return status;
}
template <class T> cublasStatus_t store(T *to, const void *value, size_t bytes)
{
    if (bytes != sizeof *to) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(to, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}
algo algo_of(const cublasLtMatmulAlgo_t *from)
{
    algo g;
    memcpy(&g, from->data, sizeof g);
    return g;
}
} // namespace

void shim_products(unsigned mask)
{
    offered = mask;
}

size_t cublasLtGetVersion()
{
    return 130000;
}
const char *cublasLtGetStatusName(cublasStatus_t status)
{
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH:
        return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_EXECUTION_FAILED:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR:
        return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    }
    return "unknown";
}
const char *cublasLtGetStatusString(cublasStatus_t status)
{
    return cublasLtGetStatusName(status);
}
cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    int device;
    if (cudaGetDevice(&device) != cudaSuccess) return CUBLAS_STATUS_NOT_INITIALIZED;
    *handle = new stub_handle{device};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    *desc = new stub_desc{compute, scale, 0, {0, 0}, CUBLASLT_EPILOGUE_DEFAULT};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes)
{
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return store(&d->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return store(&d->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return store(&d->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return store(&d->transpose[0], value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return store(&d->transpose[1], value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return store(&d->epilogue, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    *layout = new stub_layout{type, CUBLASLT_ORDER_COL, 1, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes)
{
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return store(&l->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return store(&l->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return store(&l->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return store(&l->cols, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return store(&l->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        return store(&l->batch, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return CUBLAS_STATUS_SUCCESS;
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}
cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = new stub_preference{0, CUBLASLT_REDUCTION_SCHEME_MASK};
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    uint32_t alignment;
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return store(&p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return store(&p->schemes, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return store(&alignment, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc,
                                       cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                       cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *from,
                                       cublasLtMatmulHeuristicResult_t *out)
{
    algo g = algo_of(from);
    if (g.id < SPLIT_K || g.id > RIGHT_ANY) return CUBLAS_STATUS_INVALID_VALUE;
    if (problem(desc, a, b, c, d) || !supports(&g, a, b, d) || !is_offered(&g, a))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    cublasLtMatmulAlgo_t copy = *from; /* `from` may lie in *out */
    *out = {};
    out->algo = copy;
    out->workspaceSize = WORKSPACE;
    out->state = CUBLAS_STATUS_SUCCESS;
    out->wavesCount = 1.0f;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t *out, int *count)
{
    static const algo list[] = {{SPLIT_K, 4}, {BY_ROWS, 1}, {RIGHT_16, 1}, {RIGHT_ANY, 1}};
    *count = 0;
    for (const algo &g : list) {
        if (*count == most || preference->workspace < WORKSPACE) continue;
        if (g.id == SPLIT_K && !(preference->schemes & CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE))
            continue;
        cublasLtMatmulAlgo_t each = {};
        memcpy(each.data, &g, sizeof g);
        if (cublasLtMatmulAlgoCheck(handle, desc, a, b, c, d, &each, &out[*count]) ==
            CUBLAS_STATUS_SUCCESS)
            ++*count;
    }
    return *count ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *from,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    void *value, size_t bytes, size_t *written)
{
    algo g = algo_of(from);
    uint32_t v = 0;
    if (attribute == CUBLASLT_ALGO_CONFIG_ID) v = g.id;
    if (attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM) v = g.splits;
    if (attribute == CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME && g.splits > 1)
        v = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    if (written) *written = sizeof v;
    if (bytes != sizeof v) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(value, &v, sizeof v);
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasLtMatmulAlgoConfigSetAttribute(cublasLtMatmulAlgo_t *to,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute,
                                                    const void *value, size_t bytes)
{
    algo g = algo_of(to);
    if (attribute != CUBLASLT_ALGO_CONFIG_SPLITK_NUM || g.id != SPLIT_K)
        return CUBLAS_STATUS_NOT_SUPPORTED;
    cublasStatus_t status = store(&g.splits, value, bytes);
    memcpy(to->data, &g, sizeof g);
    return status;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t a_layout, const void *b,
                              cublasLtMatrixLayout_t b_layout, const void *beta, const void *c,
                              cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *from,
                              void *workspace, size_t workspace_bytes, cudaStream_t stream)
{
    const char *why = problem(desc, a_layout, b_layout, c_layout, d_layout);
    if (why) return refuse(CUBLAS_STATUS_NOT_SUPPORTED, why);
    algo g = from ? algo_of(from) : algo{BY_ROWS, 1};
    if (!supports(&g, a_layout, b_layout, d_layout))
        return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "a leading dimension is not 16 n bytes");
    if (!handle || !stream) return refuse(CUBLAS_STATUS_INVALID_VALUE, "no handle or no stream");
    const void *pointers[] = {a, b, c, d, workspace};
    for (const void *p : pointers)
        if (reinterpret_cast<uintptr_t>(p) & 15)
            return refuse(CUBLAS_STATUS_NOT_SUPPORTED, "an address is not 16 n");
    if (workspace_bytes < WORKSPACE)
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "the workspace is too small");
    float one, other;
    memcpy(&one, alpha, sizeof one);
    memcpy(&other, beta, sizeof other);
    shim_device_range("A", a, bytes_of(a_layout));
    shim_device_range("B", b, bytes_of(b_layout));
    shim_device_range("D", d, bytes_of(d_layout));
    if (other != 0) shim_device_range("C", c, bytes_of(c_layout));
    shim_workspace(workspace, workspace_bytes);
    if (overlap(d, bytes_of(d_layout), a, bytes_of(a_layout)) ||
        overlap(d, bytes_of(d_layout), b, bytes_of(b_layout)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "D lies over A or B");
    if (c != d && other != 0 && overlap(d, bytes_of(d_layout), c, bytes_of(c_layout)))
        return refuse(CUBLAS_STATUS_INVALID_VALUE, "D lies over C, and is not C");
    operand x = operand_of(a, a_layout, desc->transpose[0] != CUBLAS_OP_N);
    operand y = operand_of(b, b_layout, desc->transpose[1] != CUBLAS_OP_N);
    operand z = operand_of(c, c_layout, false), to = operand_of(d, d_layout, false);
    size_t m = d_layout->rows, n = d_layout->cols, parts = parts_of(&g, m, n);
    size_t k = desc->transpose[0] != CUBLAS_OP_N ? a_layout->rows : a_layout->cols;
    cudaError_t e = shim_enqueue(stream, "cublasLtMatmul", SHIM_PRODUCT, [=] {
        memset(workspace, 0xff, std::min<size_t>(workspace_bytes, FILLED));
        product(x, y, z, to, m, n, k, one, other, parts);
    });
    return e == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
