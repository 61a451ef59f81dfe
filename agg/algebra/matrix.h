/* What the linear algebra of this folder shares: float64 matrices for LAPACK, and its failures. */
#ifndef AGG_MATRIX_H
#define AGG_MATRIX_H

#include "base/err.h"

#include <stddef.h>

/* (rows, cols), zeroed, aligned to 64 so that bits do not depend on where memory lies; free() it.
 */
err matrix_take(double **out, size_t rows, size_t cols);
/* x (d, r) column-major, d >= r: its columns become orthonormal (Householder QR), spanning what
 * they spanned, with the signs that make the diagonal of the triangle positive: columns that are
 * orthonormal already stay as they are. Columns without rank become others that are orthonormal. */
err matrix_orthonormalise(double *x, size_t d, size_t r);
/* The error of a LAPACK routine that returned `info` != 0. */
err matrix_failed(const char *what, int info);

#endif
