/* Cutting and storing a decomposition; contract in lowrank.h. */
#include "agg/algebra/lowrank.h"
#include "agg/algebra/matrix.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))
#define MAX(a, b) ((a) > (b) ? (a) : (b))

void lowrank_cut(uint32_t *q, double *tail, const struct lowrank_svd *svd,
                 const struct lowrank_cut *cut)
{
    const double *s = svd->sigma;
    double error = cut->error > 0 ? cut->error * svd->norm - cut->spent : INFINITY;
    double energy = cut->energy > 0 ? (1 - cut->energy) * svd->norm * svd->norm : INFINITY;
    double zero = svd->k ? fmax(s[0] * 0x1p-52 * MAX(svd->m, svd->n), svd->noise) : 0;
    double sum = 0; /* tail of squares, summed from the smallest up so that tiny tails are exact */
    bool asked = cut->error > 0 || cut->energy > 0;
    uint32_t keep = svd->k;
    for (; keep > 0; keep--) {
        double next = sum + s[keep - 1] * s[keep - 1];
        bool over = cut->rank_max && keep > cut->rank_max;
        bool spare = asked && sqrt(next) <= error && next <= energy;
        if (s[keep - 1] > zero && !over && !spare) break;
        sum = next;
    }
    *q = keep;
    *tail = sqrt(sum);
}

/* ---- results ---- */

/* The leading q singular vectors of one side, (dim, q) column-major: borrowed if they are stored in
 * that form, else computed into *made. */
static err vectors(const double **out, double **made, const struct lowrank_svd *svd, uint32_t q,
                   bool left)
{
    size_t dim = left ? svd->m : svd->n;
    const double *from = left ? svd->left : svd->right;
    if (svd->dense) {
        *out = from;
        return ERR_NONE;
    }
    const double *small = left ? svd->core_left : svd->core_right;
    const double *tau = left ? svd->tau_left : svd->tau_right;
    size_t k = MIN(dim, svd->rank_total);
    TRY(matrix_take(made, dim, q));
    for (size_t j = 0; j < q; j++)
        memcpy(*made + j * dim, small + j * k, k * sizeof **made);
    int info = LAPACKE_dormqr(LAPACK_COL_MAJOR, 'L', 'N', (int)dim, (int)q, (int)k, from, (int)dim,
                              tau, *made, (int)dim);
    *out = *made;
    return info ? matrix_failed("Q times vectors (dormqr)", info) : ERR_NONE;
}

/* -1 if the largest |entry| (the first of equal ones) is negative, else 1. */
static double sign_of(const double *u, size_t m)
{
    double largest = 0;
    size_t at = 0;
    for (size_t i = 0; i < m; i++) {
        if (fabs(u[i]) <= largest) continue;
        largest = fabs(u[i]);
        at = i;
    }
    return u[at] < 0 ? -1 : 1;
}

/* out[i * stride] = scale x[i] as float32. Returns the squared rounding error. */
static double store(float *out, size_t stride, const double *x, size_t n, double scale)
{
    double lost = 0;
    for (size_t i = 0; i < n; i++) {
        double exact = scale * x[i];
        out[i * stride] = (float)exact;
        lost += ((double)out[i * stride] - exact) * ((double)out[i * stride] - exact);
    }
    return lost;
}

err lowrank_split(float *B, float *A, double *rounding, const struct lowrank_svd *svd, uint32_t q,
                  enum lowrank_split split)
{
    REQUIRE(q <= svd->k);
    const double *left, *right;
    double *made_left = NULL, *made_right = NULL, lost = 0;
    err e = ERR_NONE;
    if (rounding) *rounding = 0;
    if (q == 0) return ERR_NONE;
    TRY_OUT(e, vectors(&left, &made_left, svd, q, true));
    TRY_OUT(e, vectors(&right, &made_right, svd, q, false));
    for (size_t j = 0; j < q; j++) {
        const double *u = left + j * svd->m, *v = right + j * svd->n;
        double s = svd->sigma[j], root = sqrt(s), sign = sign_of(u, svd->m);
        double on_left = split == LOWRANK_BALANCED ? root : split == LOWRANK_LEFT ? s : 1;
        double on_right = split == LOWRANK_BALANCED ? root : 1;
        /* ||dB A + B dA||: the vectors are orthogonal, so each part is a sum over j. The two
         * parts are independent roundings, so their squares add up. */
        lost += store(B + j, q, u, svd->m, sign * on_left) * on_right * on_right;
        lost += store(A + j * svd->n, 1, v, svd->n, sign * on_right) * on_left * on_left;
    }
    if (rounding && split != LOWRANK_ORTHONORMAL) *rounding = sqrt(lost);
out:
    free(made_left);
    free(made_right);
    return e;
}
