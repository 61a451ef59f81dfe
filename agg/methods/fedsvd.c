/* FedSVD (arXiv 2505.12805): B trains beside a shared A, as in FFA, and the pair is then replaced
 * by one with the same product whose A has orthonormal rows:
 *
 *     Bbar = sum_k p_k B_k,    Bbar A = U S V^T,    B <- U S,  A <- V^T
 *
 * The dense product is not formed: A^T = Q T (Householder), Bbar T^T = U S Y^T, A <- (Q Y)^T,
 * B <- Bbar T^T Y. Y is the whole orthogonal (k, k) matrix, because Bbar may have a lower rank (or
 * fewer rows) than r, and A would otherwise lose directions for the rest of the run. A rank above
 * d_in leaves rows of zeros.
 *
 * If B is zero (at the start, or if no member changed it), the singular vectors are arbitrary, so A
 * stays as it is. All members have the run's rank and scale. */
#include "agg/algebra/matrix.h"
#include "agg/methods/linear.h"
#include "agg/methods/methods.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

static unsigned fedsvd_factors(uint32_t round)
{
    (void)round;
    return METHOD_B;
}

struct rebase {        /* all column-major float64 */
    size_t m, n, r, k; /* k = min(n, r): rows that can be orthonormal */
    double *q;         /* (n, k) from A^T = Q T, then (Q Y) */
    double *b;         /* (m, r) Bbar, then (m, k) Bbar T^T */
    double *x;         /* (m, r) scratch, then (m, k) U S */
    double *yt;        /* (k, k) */
    double *t;         /* (k, r) */
};

static void rebase_close(struct rebase *b)
{
    free(b->q);
    free(b->b);
    free(b->x);
    free(b->yt);
    free(b->t);
}

/* q, t, b = Bbar T^T from B (m, r) and A (r, n), row-major. */
static err factor(struct rebase *w, const float *B, const float *A)
{
    double *at = NULL, *t = w->t, *tau = NULL;
    int m = (int)w->m, n = (int)w->n, r = (int)w->r, k = (int)w->k;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&at, w->n, w->r));
    TRY_OUT(e, matrix_take(&tau, w->k, 1));
    for (size_t i = 0; i < w->n * w->r; i++)
        at[i] = (double)A[i];
    for (size_t i = 0; i < w->m; i++)
        for (size_t j = 0; j < w->r; j++)
            w->x[j * w->m + i] = (double)B[i * w->r + j];
    int info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, n, r, at, n, tau);
    for (size_t j = 0; j < w->r; j++)
        for (size_t i = 0; i < w->k && i <= j; i++)
            t[j * w->k + i] = at[j * w->n + i];
    if (!info) info = LAPACKE_dorgqr(LAPACK_COL_MAJOR, n, k, k, at, n, tau);
    if (info) {
        e = matrix_failed("QR (dgeqrf, dorgqr)", info);
        goto out;
    }
    memcpy(w->q, at, w->n * w->k * sizeof *at);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, m, k, r, 1, w->x, m, t, k, 0, w->b, m);
out:
    free(at);
    free(tau);
    return e;
}

/* x = U S, q = V: b = U S Y^T with the whole (k, k) Y. */
static err rotate(struct rebase *w)
{
    double *copy = NULL, *sigma = NULL, *v = NULL;
    int m = (int)w->m, n = (int)w->n, k = (int)w->k;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&copy, w->m, w->k));
    TRY_OUT(e, matrix_take(&sigma, w->k, 2));
    TRY_OUT(e, matrix_take(&v, w->n, w->k));
    memcpy(copy, w->b, w->m * w->k * sizeof *copy);
    int info = LAPACKE_dgesvd(LAPACK_COL_MAJOR, 'N', 'A', m, k, copy, m, sigma, NULL, m, w->yt, k,
                              sigma + k);
    if (info) {
        e = matrix_failed("singular vectors (dgesvd)", info);
        goto out;
    }
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, m, k, k, 1, w->b, m, w->yt, k, 0, w->x, m);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasTrans, n, k, k, 1, w->q, n, w->yt, k, 0, v, n);
    memcpy(w->q, v, w->n * w->k * sizeof *v);
out:
    free(copy);
    free(sigma);
    free(v);
    return e;
}

/* -1 if the largest |entry| of the column is negative, else 1. LAPACK leaves the signs of singular
 * vectors open; this makes them the same everywhere. */
static double sign_of(const double *x, size_t m)
{
    return x[cblas_idamax((int)m, x, 1)] < 0 ? -1 : 1;
}

/* B (m, r), A (r, n) as float32. */
static void store(float *B, float *A, const struct rebase *w)
{
    for (size_t j = 0; j < w->k; j++) {
        const double *x = w->x + j * w->m, *v = w->q + j * w->n;
        double sign = sign_of(x, w->m);
        for (size_t i = 0; i < w->m; i++)
            B[i * w->r + j] = (float)(sign * x[i]);
        for (size_t i = 0; i < w->n; i++)
            A[j * w->n + i] = (float)(sign * v[i]);
    }
}

/* Rotates the server optimizer's moments of B as B itself: B <- B (T^T Y), with the signs of
 * store(). */
static err turn_moments(const struct rebase *w, const struct method_round *round)
{
    double *turn = NULL; /* (r, r) row-major */
    int k = (int)w->k, r = (int)w->r;
    TRY(matrix_take(&turn, w->r, w->r));
    /* Row-major (T^T Y) is column-major (Y^T T), in the leading k of r rows. */
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, k, r, k, 1, w->yt, k, w->t, k, 0, turn,
                r);
    for (size_t j = 0; j < w->k; j++)
        cblas_dscal(r, sign_of(w->x + j * w->m, w->m), turn + j, r);
    err e = method_rebase(round, turn);
    free(turn);
    return e;
}

static err rebase(struct method_result *out, const float *mean /* (m, r) */,
                  const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct rebase w = {.m = old->d_out, .n = old->d_in, .r = old->rank};
    float *A, *B;
    err e = ERR_NONE;
    w.k = MIN(w.n, w.r);
    TRY_OUT(e, matrix_take(&w.q, w.n, w.k));
    TRY_OUT(e, matrix_take(&w.b, w.m, w.k));
    TRY_OUT(e, matrix_take(&w.x, w.m, w.r));
    TRY_OUT(e, matrix_take(&w.yt, w.k, w.k));
    TRY_OUT(e, matrix_take(&w.t, w.k, w.r));
    TRY_OUT(e, factor(&w, mean, old->factor[ADAPTER_FILE_A].f32));
    TRY_OUT(e, rotate(&w));
    TRY_OUT(e, turn_moments(&w, round));
    TRY_OUT(e, method_result_take(&B, out, ADAPTER_FILE_B, old->d_out, old->rank));
    TRY_OUT(e, method_result_take(&A, out, ADAPTER_FILE_A, old->rank, old->d_in));
    store(B, A, &w);
out:
    rebase_close(&w);
    return e;
}

static err fedsvd_next(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    float *mean;
    bool zero = true;
    TRY(methods_check_scale(round, /*same_rank*/ true));
    method_result_keep(out, old, ADAPTER_FILE_A);
    TRY(linear_next(&mean, out, round, ADAPTER_FILE_B));
    for (size_t i = 0; i < (size_t)old->d_out * old->rank && zero; i++)
        zero = mean[i] == 0;
    return zero ? ERR_NONE : rebase(out, mean, round);
}

const struct method method_fedsvd = {
    .name = "fedsvd",
    .summary = "trains only B; an SVD keeps A orthonormal; exact; one rank for all",
    .equal_scale = true,
    .exact = true,
    .averages = true,
    .aggregate = {.way = METHOD_AGGREGATE_RUN_ONLY,
                  .text = "needs the shared A of a run; fedit is exact for adapters that share A"},
    .client_private = true,
    .factors = fedsvd_factors,
    .start = methods_start_lora,
    .next = fedsvd_next,
};
