/* Cutting and storing a decomposition; contract in lowrank.h. */
#include "agg/lowrank.h"
#include "agg/matrix.h"

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
    double zero = svd->k ? s[0] * 0x1p-52 * MAX(svd->m, svd->n) : 0;
    double sum = 0; /* of squares, from the smallest up: exact enough to compare with tiny bounds */
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

/* x (dim, q) column-major: the leading q singular vectors of one side. */
static err vectors(double *x, const struct lowrank_svd *svd, uint32_t q, bool left)
{
    size_t dim = left ? svd->m : svd->n;
    const double *from = left ? svd->left : svd->right;
    if (svd->dense) {
        memcpy(x, from, dim * q * sizeof *x);
        return ERR_NONE;
    }
    const double *small = left ? svd->core_left : svd->core_right;
    const double *tau = left ? svd->tau_left : svd->tau_right;
    size_t k = MIN(dim, svd->rank_total);
    for (size_t j = 0; j < q; j++)
        memcpy(x + j * dim, small + j * k, k * sizeof *x);
    int info = LAPACKE_dormqr(LAPACK_COL_MAJOR, 'L', 'N', (int)dim, (int)q, (int)k, from, (int)dim,
                              tau, x, (int)dim);
    return info ? matrix_failed("Q times vectors (dormqr)", info) : ERR_NONE;
}

/* The largest |entry| of each left vector becomes positive; the first of equals decides. */
static void fix_signs(double *left, double *right, const struct lowrank_svd *svd, uint32_t q)
{
    for (uint32_t j = 0; j < q; j++) {
        double *u = left + (size_t)j * svd->m, *v = right + (size_t)j * svd->n, largest = 0;
        uint32_t at = 0;
        for (uint32_t i = 0; i < svd->m; i++) {
            if (fabs(u[i]) <= largest) continue;
            largest = fabs(u[i]);
            at = i;
        }
        if (u[at] >= 0) continue;
        for (uint32_t i = 0; i < svd->m; i++)
            u[i] = -u[i];
        for (uint32_t i = 0; i < svd->n; i++)
            v[i] = -v[i];
    }
}

/* ||stored - computed||_F = ||dB A + B dA||_F. One side's columns are orthogonal where the other's
 * rounding meets them, so each part is a sum over columns; the two parts are independent roundings.
 */
static double rounding_of(const float *B, const float *A, const double *left, const double *right,
                          const struct lowrank_svd *svd, uint32_t q)
{
    size_t m = svd->m, n = svd->n;
    double sum = 0;
    for (size_t j = 0; j < q; j++) {
        double db = 0, da = 0, bb = 0, aa = 0;
        for (size_t i = 0; i < m; i++) {
            double x = left[j * m + i], d = (double)B[i * q + j] - x;
            db += d * d;
            bb += x * x;
        }
        for (size_t i = 0; i < n; i++) {
            double x = right[j * n + i], d = (double)A[j * n + i] - x;
            da += d * d;
            aa += x * x;
        }
        sum += db * aa + da * bb;
    }
    return sqrt(sum);
}

err lowrank_split(float *B, float *A, double *rounding, const struct lowrank_svd *svd, uint32_t q,
                  enum lowrank_split split)
{
    REQUIRE(q <= svd->k);
    size_t m = svd->m, n = svd->n;
    double *left = NULL, *right = NULL;
    err e = ERR_NONE;
    if (rounding) *rounding = 0;
    if (q == 0) return ERR_NONE;
    TRY_OUT(e, matrix_take(&left, m, q));
    TRY_OUT(e, matrix_take(&right, n, q));
    TRY_OUT(e, vectors(left, svd, q, true));
    TRY_OUT(e, vectors(right, svd, q, false));
    fix_signs(left, right, svd, q);
    for (size_t j = 0; j < q; j++) {
        double s = svd->sigma[j], root = sqrt(s);
        double fl = split == LOWRANK_BALANCED ? root : split == LOWRANK_LEFT ? s : 1;
        double fr = split == LOWRANK_BALANCED ? root : 1;
        for (size_t i = 0; i < m; i++)
            B[i * q + j] = (float)(left[j * m + i] *= fl);
        for (size_t i = 0; i < n; i++)
            A[j * n + i] = (float)(right[j * n + i] *= fr);
    }
    if (rounding && split != LOWRANK_ORTHONORMAL)
        *rounding = rounding_of(B, A, left, right, svd, q);
out:
    free(left);
    free(right);
    return e;
}
