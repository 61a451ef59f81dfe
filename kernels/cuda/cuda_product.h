/* Between the files of the products by cuBLASLt: their descriptors and algorithms. */
#ifndef KERNELS_CUDA_CUDA_PRODUCT_H
#define KERNELS_CUDA_CUDA_PRODUCT_H

#include "kernels/cuda/cuda.h"

#include <cublasLt.h>

enum { BLAS_WORKSPACE_BYTES = 32 << 20, BLAS_CHOICES = 8, BLAS_SHAPES = 512 /* a power of two */ };

/* A kind of product, apart from its number of rows: out (rows, n) = in (rows, k) W^T or W. */
struct blas_kind {
    size_t n, k, ldw;
    enum dtype in, w, out;
    bool back;
};
struct blas_algorithms { /* in the order of cuBLASLt's estimate of their speed */
    struct blas_kind kind;
    cublasLtMatmulAlgo_t choice[BLAS_CHOICES];
    int choices;
    bool tried; /* rows multiplied by the first one do not depend on their number */
};
struct blas_key {
    size_t rows, ld_in, ld_out;
    struct blas_kind kind;
};
struct blas_shape {
    bool used;
    struct blas_key key;
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t w, in, out;
    cublasLtMatmulAlgo_t algorithm;
};
struct cuda_products {
    cublasLtHandle_t handle;
    void *workspace; /* our own, so that results do not depend on other users of the library */
    struct blas_algorithms *algorithms;
    size_t kinds;
    struct blas_shape shape[BLAS_SHAPES]; /* by a hash; a new one replaces an old one there */
    uint64_t wide_number;                 /* of the weight in `wide`, or 0 */
    struct cuda_room wide;                /* a weight that is kept as in the file, converted */
    struct cuda_room input, output;       /* operands that are not aligned, x in the precision */
};

/* The descriptors of a product, without its algorithm. */
cublasStatus_t cuda_shape_describe(struct blas_shape *s, const struct blas_key *k);
void cuda_shape_clear(struct blas_shape *s);
/* Queues out = factor * product [+ out] with the algorithm of its shape. */
cublasStatus_t cuda_shape_run(struct backend_context *c, const struct blas_shape *s, struct mat out,
                              struct mat in, struct mat w, float factor, bool add);
/* cuda_trial.cu: puts the first algorithm whose rows do not depend on their number in front. False
 * after a recorded failure. */
bool cuda_trial_order(struct backend_context *c, struct blas_algorithms *a, struct mat w);
size_t cuda_trial_bytes(const struct backend_context *c, const struct blas_kind *k); /* it takes */
#endif
