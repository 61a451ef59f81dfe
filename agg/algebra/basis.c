#include "agg/algebra/basis.h"

#include "agg/algebra/matrix.h"
#include "base/rng.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>

/* Below this ratio of singular values the eigenvectors of W^T W are less exact than float32,
 * because forming W^T W squares the condition number. */
static const double gram_ratio_least = 1e-4;

static err check_shape(const struct basis_shape *s)
{
    if (s->r >= 1 && s->r <= s->d_out && s->r <= s->d_in) return ERR_NONE;
    return err_make(ERR_INPUT, "a basis of rank %u for a %u x %u weight, expected 1 to %u", s->r,
                    s->d_out, s->d_in, s->d_out < s->d_in ? s->d_out : s->d_in);
}

static void store_left(float *B, const double *u, size_t d, size_t r)
{
    for (size_t j = 0; j < r; j++)
        for (size_t i = 0; i < d; i++)
            B[i * r + j] = (float)u[j * d + i];
}

static void store_right(float *A, const double *v, size_t d, size_t r)
{
    for (size_t i = 0; i < d * r; i++)
        A[i] = (float)v[i];
}

static err seeded_side(double *x, size_t d, size_t r, const char *purpose,
                       const struct basis_key *key)
{
    struct rng rng;
    rng_init(&rng, purpose, key->seed, key->label, 0);
    for (size_t i = 0; i < d * r; i++)
        x[i] = rng_normal(&rng);
    return matrix_orthonormalise(x, d, r);
}

err basis_seeded(float *A, float *B, const struct basis_shape *shape, const struct basis_key *key)
{
    double *u = NULL, *v = NULL;
    size_t r = shape->r;
    err e = ERR_NONE;
    TRY(check_shape(shape));
    TRY_OUT(e, matrix_take(&u, shape->d_out, r));
    TRY_OUT(e, matrix_take(&v, shape->d_in, r));
    TRY_OUT(e, seeded_side(u, shape->d_out, r, "basis_B", key));
    TRY_OUT(e, seeded_side(v, shape->d_in, r, "basis_A", key));
    store_left(B, u, shape->d_out, r);
    store_right(A, v, shape->d_in, r);
out:
    free(u);
    free(v);
    return e;
}

/* ---- singular vectors of a weight ---- */

/* Fixes the signs: the largest |entry| of each left vector is made positive. */
static void fix_signs(double *u, double *v, const struct basis_shape *s)
{
    for (size_t j = 0; j < s->r; j++) {
        double *left = u + j * s->d_out;
        size_t at = cblas_idamax((int)s->d_out, left, 1);
        if (left[at] >= 0) continue;
        cblas_dscal((int)s->d_out, -1, left, 1);
        cblas_dscal((int)s->d_in, -1, v + j * s->d_in, 1);
    }
}

/* Singular vectors from the eigenvectors of W^T W, the smaller Gram matrix, which is several times
 * faster than an SVD. *good is false if the r-th singular value is too small for it. w (rows, cols)
 * column-major, rows >= cols; u (rows, r), v (cols, r). */
static err leading_by_gram(bool *good, double *u, double *v, const double *w, const size_t size[3])
{
    int rows = (int)size[0], cols = (int)size[1], r = (int)size[2], found = 0;
    double *gram = NULL, *value = NULL, *vector = NULL;
    int *support = calloc(2 * (size_t)cols, sizeof *support);
    err e = support ? ERR_NONE : err_make(ERR_MACHINE, "no memory for singular vectors");
    *good = false;
    if (err_is(e)) goto out;
    TRY_OUT(e, matrix_take(&gram, size[1], size[1]));
    TRY_OUT(e, matrix_take(&value, size[1], 1));
    TRY_OUT(e, matrix_take(&vector, size[1], size[2]));
    cblas_dsyrk(CblasColMajor, CblasLower, CblasTrans, cols, rows, 1, w, rows, 0, gram, cols);
    int info = LAPACKE_dsyevr(LAPACK_COL_MAJOR, 'V', 'I', 'L', cols, gram, cols, 0, 0, cols - r + 1,
                              cols, 0, &found, value, vector, cols, support);
    if (info < 0) e = matrix_failed("eigenvectors (dsyevr)", info);
    if (info || found != r || value[0] <= 0) goto out;
    *good = sqrt(value[0]) >= gram_ratio_least * sqrt(value[r - 1]);
    if (!*good) goto out;
    for (size_t j = 0; j < size[2]; j++) /* largest first */
        cblas_dcopy(cols, vector + (size_t)(r - 1 - (int)j) * size[1], 1, v + j * size[1], 1);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, r, cols, 1, w, rows, v, cols, 0, u,
                rows);
    TRY_OUT(e, matrix_orthonormalise(u, size[0], size[2]));
out:
    free(gram);
    free(value);
    free(vector);
    free(support);
    return e;
}

static err leading_by_svd(double *u, double *v, double *w, const size_t size[3])
{
    size_t rows = size[0], cols = size[1];
    double *left = NULL, *right = NULL, *sigma = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&left, rows, cols));
    TRY_OUT(e, matrix_take(&right, cols, cols));
    TRY_OUT(e, matrix_take(&sigma, cols, 1));
    int info = LAPACKE_dgesdd(LAPACK_COL_MAJOR, 'S', (int)rows, (int)cols, w, (int)rows, sigma,
                              left, (int)rows, right, (int)cols);
    if (info) {
        e = matrix_failed("singular vectors (dgesdd)", info);
        goto out;
    }
    for (size_t j = 0; j < size[2]; j++) {
        cblas_dcopy((int)rows, left + j * rows, 1, u + j * rows, 1);
        cblas_dcopy((int)cols, right + j, (int)cols, v + j * cols, 1);
    }
out:
    free(left);
    free(right);
    free(sigma);
    return e;
}

err basis_of_weight(float *A, float *B, const float *W0, const struct basis_shape *shape)
{
    double *w = NULL, *u = NULL, *v = NULL;
    size_t m = shape->d_out, n = shape->d_in, r = shape->r;
    bool tall = m >= n, good = false;
    /* rows >= cols: W itself, or its transpose with u and v exchanged. */
    const size_t size[3] = {tall ? m : n, tall ? n : m, r};
    err e = ERR_NONE;
    TRY(check_shape(shape));
    TRY_OUT(e, matrix_take(&w, m, n));
    TRY_OUT(e, matrix_take(&u, m, r));
    TRY_OUT(e, matrix_take(&v, n, r));
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            w[tall ? j * m + i : i * n + j] = (double)W0[i * n + j];
    double *long_side = tall ? u : v, *short_side = tall ? v : u;
    TRY_OUT(e, leading_by_gram(&good, long_side, short_side, w, size));
    if (!good) TRY_OUT(e, leading_by_svd(long_side, short_side, w, size));
    fix_signs(u, v, shape);
    store_left(B, u, m, r);
    store_right(A, v, n, r);
out:
    free(w);
    free(u);
    free(v);
    return e;
}
