/* Norms for methods that train one factor, the others being the same for all; contract in
 * method_measure.h. With the fixed factor F and G = F F^T, ||X F||_F^2 = <X, X G>. X is a
 * difference of means that was taken value by value in float64, so a small error is not lost in
 * large terms. */
#include "agg/algebra/matrix.h"
#include "agg/algebra/norms.h"
#include "agg/round/method_measure_parts.h"

#include <cblas.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- one factor trains ---- */

/* ||X fixed||_F (or ||fixed X||_F) of a trained factor X: the root of <X, X G> (or <X, G X>). */
struct ground {
    double *gram; /* (r, r) of the fixed factor; NULL: the identity */
    double *work; /* as large as X */
    size_t r, d;
    bool rows; /* X is (r, d), not (d, r) */
};

static double norm_on(const struct ground *g, const double *x)
{
    int r = (int)g->r, d = (int)g->d, n = r * d;
    if (!g->gram) return cblas_dnrm2(n, x, 1);
    if (g->rows)
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, r, d, r, 1, g->gram, r, x, d, 0,
                    g->work, d);
    else
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, d, r, r, 1, x, r, g->gram, r, 0,
                    g->work, r);
    return sqrt(fmax(0, cblas_ddot(n, x, 1, g->work, 1))); /* below zero by rounding alone */
}

/* The pair was turned on new axes: ||mean A - B' A'||_F of the mean (m, r) of B and the state's A.
 * With T = A A'^T it is ||F A' + mean P||, F = mean T - B', P = A - T A'. Both are small where the
 * pairs are equal, and computed value by value, so nothing cancels in the norm. */
static err norm_of_turn(double *out, const double *mean, const float *A,
                        const struct adapter_file_module *made)
{
    size_t m = made->factor[ADAPTER_FILE_B].rows, n = made->factor[ADAPTER_FILE_A].cols;
    int r = (int)made->rank, im = (int)m, in = (int)n;
    size_t rr = (size_t)r * (size_t)r;
    const float *B1 = made->factor[ADAPTER_FILE_B].f32, *A1 = made->factor[ADAPTER_FILE_A].f32;
    double *a = NULL, *p, *f = NULL, *small = NULL, sum = 0;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&a, 2 * (size_t)r, n));
    TRY_OUT(e, matrix_take(&f, m, (size_t)r));
    TRY_OUT(e, matrix_take(&small, 7 * (size_t)r, (size_t)r));
    p = a + (size_t)r * n;
    double *T = small, *ff = T + rr, *fb = ff + rr, *bb = fb + rr, *aa = bb + rr, *pa = aa + rr,
           *pp = pa + rr;
    for (size_t i = 0; i < (size_t)r * n; i++) {
        a[i] = (double)A1[i];
        p[i] = (double)A[i];
    }
    for (size_t i = 0; i < m * (size_t)r; i++)
        f[i] = -(double)B1[i];
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, r, r, in, 1, p, in, a, in, 0, T, r);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, r, in, r, -1, T, r, a, in, 1, p, in);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, im, r, r, 1, mean, r, T, r, 1, f, r);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, r, r, im, 1, f, r, f, r, 0, ff, r);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, r, r, im, 1, f, r, mean, r, 0, fb, r);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, r, r, im, 1, mean, r, mean, r, 0, bb, r);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, r, r, in, 1, a, in, a, in, 0, aa, r);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, r, r, in, 1, a, in, p, in, 0, pa, r);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, r, r, in, 1, p, in, p, in, 0, pp, r);
    for (size_t i = 0; i < rr; i++)
        sum += ff[i] * aa[i] + 2 * fb[i] * pa[i] + bb[i] * pp[i];
    *out = sqrt(fmax(0, sum));
out:
    free(a);
    free(f);
    free(small);
    return e;
}

/* The other factor, of the state or else of the frozen file; NULL: not given. */
static const float *fixed_of(const struct adapter_file_module *m,
                             const struct adapter_file_module *frozen, enum adapter_file_role role)
{
    if (m->factor[role].f32 || !frozen) return m->factor[role].f32;
    return frozen->factor[role].f32;
}

struct factors {    /* (r, d) or (d, r) of the factor that trains, float64 */
    double *exact;  /* the weighted mean */
    double *change; /* exact - the state before */
    double *lost;   /* published - exact */
    double *now;    /* published; exact, change, lost and now are one block */
    struct ground ground;
};

static void factors_close(struct factors *f)
{
    free(f->exact);
    free(f->ground.gram);
    free(f->ground.work);
}

static err factors_open(struct factors *out, const struct method_measure *x,
                        enum adapter_file_role role)
{
    const float *now = x->made->factor[role].f32, *was = x->round->module->factor[role].f32;
    struct factors f = {.ground = out->ground};
    size_t n = f.ground.r * f.ground.d;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&f.exact, n, 4));
    TRY_OUT(e, matrix_take(&f.ground.work, n, 1));
    TRY_OUT(e, method_mean_exact(f.exact, x->round, role, n));
    f.change = f.exact + n;
    f.lost = f.change + n;
    f.now = f.lost + n;
    for (size_t i = 0; i < n; i++) {
        f.now[i] = now ? (double)now[i] : 0;
        f.change[i] = f.exact[i] - (was ? (double)was[i] : 0);
        f.lost[i] = f.now[i] - f.exact[i];
    }
    *out = f;
    return ERR_NONE;
out:
    factors_close(&f);
    return e;
}

static err take_gram(struct ground *g, const float *fixed, size_t other)
{
    if (!fixed) return ERR_NONE;
    if (!g->gram) TRY(matrix_take(&g->gram, g->r, g->r));
    return norms_gram(g->gram, fixed, g->r, other, /*rows*/ !g->rows);
}

err measure_factor(double *norm, const struct method_measure *x, enum adapter_file_role role)
{
    const struct adapter_file_module *old = x->round->module, *frozen = x->round->frozen;
    bool a = role == ADAPTER_FILE_A;
    enum adapter_file_role other = a ? ADAPTER_FILE_B : ADAPTER_FILE_A;
    const float *before = fixed_of(old, frozen, other), *after = fixed_of(x->made, frozen, other);
    size_t d = a ? old->d_in : old->d_out, depth = a ? old->d_out : old->d_in;
    struct factors f = {.ground = {.r = old->rank, .d = d, .rows = a}};
    bool known = x->orthonormal && !old->factor[other].f32; /* then G = I */
    /* A method may publish the pair on new axes (fedsvd). Then the published B belongs to another A
     * than the members' B, and factors cannot be subtracted. */
    bool turned = before && after && before != after &&
                  memcmp(before, after, old->rank * depth * sizeof *before) != 0;
    err e = ERR_NONE;
    TRY(factors_open(&f, x, role));
    if (!known) TRY_OUT(e, take_gram(&f.ground, before, depth));
    norm[MEASURE_CHANGE] = norm_on(&f.ground, f.change);
    norm[MEASURE_ERROR] = norm_on(&f.ground, f.lost);
    if (turned) TRY_OUT(e, norm_of_turn(&norm[MEASURE_ERROR], f.exact, before, x->made));
    if (turned) TRY_OUT(e, take_gram(&f.ground, after, depth));
    norm[MEASURE_STATE] = norm_on(&f.ground, f.now);
    for (int j = 0; j < MEASURE_NORMS; j++)
        norm[j] *= old->scale;
out:
    factors_close(&f);
    return e;
}

/* ---- R trains ---- */

/* ||B X A||_F = sqrt <L X, X G>, L = B^T B, G = A A^T; both NULL: ||X||_F. `work` (2, r, r). */
static double norm_between(const double *x, const double *left, const double *right, double *work,
                           size_t r)
{
    int n = (int)r;
    double *lx = work, *xg = work + r * r;
    if (!left) return cblas_dnrm2(n * n, x, 1);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, left, n, x, n, 0, lx, n);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, n, n, n, 1, x, n, right, n, 0, xg, n);
    return sqrt(fmax(0, cblas_ddot(n * n, lx, 1, xg, 1)));
}

err measure_core(double *norm, const struct method_measure *x)
{
    const struct adapter_file_module *old = x->round->module, *frozen = x->round->frozen;
    struct factors f = {.ground = {.r = old->rank, .d = old->rank}};
    size_t r = old->rank;
    double *left = NULL, *right = NULL, *work = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, factors_open(&f, x, ADAPTER_FILE_R));
    if (frozen && !x->orthonormal) {
        TRY_OUT(e, matrix_take(&left, r, r));
        TRY_OUT(e, matrix_take(&right, r, r));
        TRY_OUT(e, matrix_take(&work, 2 * r, r));
        TRY_OUT(e, norms_gram(left, frozen->factor[ADAPTER_FILE_B].f32, r, old->d_out, false));
        TRY_OUT(e, norms_gram(right, frozen->factor[ADAPTER_FILE_A].f32, r, old->d_in, true));
    }
    norm[MEASURE_CHANGE] = norm_between(f.change, left, right, work, r);
    norm[MEASURE_ERROR] = norm_between(f.lost, left, right, work, r);
    norm[MEASURE_STATE] = norm_between(f.now, left, right, work, r);
out:
    factors_close(&f);
    free(left);
    free(right);
    free(work);
    return e;
}

/* *square += ||F^T F - I||_F^2 of x. */
static err deviation(double *square, const struct adapter_file_factor *x, size_t r, bool rows)
{
    double *gram = NULL;
    if (!x->f32) return ERR_NONE;
    TRY(matrix_take(&gram, r, r));
    err e = norms_gram(gram, x->f32, r, rows ? x->cols : x->rows, rows);
    for (size_t i = 0; i < r; i++)
        gram[i * r + i] -= 1;
    *square += cblas_ddot((int)(r * r), gram, 1, gram, 1);
    free(gram);
    return e;
}

err method_measure_orthonormal(bool *out, const struct adapter_file_module *frozen)
{
    double square = 0;
    TRY(deviation(&square, &frozen->factor[ADAPTER_FILE_B], frozen->rank, /*rows*/ false));
    TRY(deviation(&square, &frozen->factor[ADAPTER_FILE_A], frozen->rank, /*rows*/ true));
    *out = square <= 1e-10;
    return ERR_NONE;
}
