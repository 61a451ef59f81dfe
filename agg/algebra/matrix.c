#include "agg/algebra/matrix.h"

#include "base/bytes.h"

#include <cblas.h>
#include <errno.h>
#include <lapacke.h>
#include <stdlib.h>
#include <string.h>

err matrix_take(double **out, size_t rows, size_t cols)
{
    size_t count, bytes;
    if (!size_mul(&count, rows ? rows : 1, cols ? cols : 1) ||
        !size_mul(&bytes, count, sizeof **out) || bytes > SIZE_MAX - 64)
        return err_sys(ENOMEM, "a matrix of %zu x %zu", rows, cols);
    double *p = aligned_alloc(64, (bytes + 63) / 64 * 64);
    if (!p) return err_sys(ENOMEM, "a matrix of %zu x %zu", rows, cols);
    memset(p, 0, bytes);
    *out = p;
    return ERR_NONE;
}

err matrix_orthonormalise(double *x, size_t d, size_t r)
{
    double *tau = NULL;
    TRY(matrix_take(&tau, r, 2));
    double *sign = tau + r;
    int info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (int)d, (int)r, x, (int)d, tau);
    for (size_t j = 0; j < r; j++)
        sign[j] = x[j * d + j] < 0 ? -1 : 1;
    if (!info) info = LAPACKE_dorgqr(LAPACK_COL_MAJOR, (int)d, (int)r, (int)r, x, (int)d, tau);
    for (size_t j = 0; j < r && !info; j++)
        cblas_dscal((int)d, sign[j], x + j * d, 1);
    free(tau);
    return info ? matrix_failed("QR (dgeqrf, dorgqr)", info) : ERR_NONE;
}

err matrix_failed(const char *what, int info)
{
    if (info == LAPACK_WORK_MEMORY_ERROR || info == LAPACK_TRANSPOSE_MEMORY_ERROR)
        return err_sys(ENOMEM, "%s", what);
    return err_make(ERR_MACHINE, "%s failed with %d", what, info);
}
