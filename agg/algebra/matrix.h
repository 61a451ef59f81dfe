/* Float64 matrices for LAPACK, and the errors of its routines. */
#ifndef AGG_MATRIX_H
#define AGG_MATRIX_H

#include "base/err.h"

#include <stddef.h>

/* Before a function: it is compiled for wider registers too, and the processor's version is chosen
 * when the program starts. Only for loops that round each product and sum by itself (the build
 * forbids fused ones), so that every version gives the same bits. Empty under the address
 * sanitizer. */
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__SANITIZE_ADDRESS__)
#define MATRIX_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define MATRIX_CLONES
#endif

/* (rows, cols), zeroed; free() it. Aligned to 64 bytes, because the last bits of BLAS results
 * depend on the alignment. */
err matrix_take(double **out, size_t rows, size_t cols);
/* Makes the columns of x (d, r), column-major, d >= r, orthonormal by Householder QR; their span
 * stays. Signs make the diagonal of the triangle positive, so columns that are orthonormal already
 * do not change. Columns that depend on earlier ones are replaced by other orthonormal ones. */
err matrix_orthonormalise(double *x, size_t d, size_t r);
/* The error of a LAPACK routine that returned `info` != 0. */
err matrix_failed(const char *what, int info);

#endif
