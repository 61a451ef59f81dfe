#include "agg/methods/fair.h"

#include "agg/algebra/matrix.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

static double dot(const double *x, const double *y, size_t n)
{
    return cblas_ddot((int)n, x, 1, y, 1);
}

/* out (rows, r) = beta out + a x g */
static void times(double *out, double a, const double *x, const double *g, const size_t size[2],
                  double beta)
{
    int rows = (int)size[0], r = (int)size[1];
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, rows, r, r, a, x, rows, g, r, beta, out,
                rows);
}

/* ---- closed ---- */

/* D (G + lambda g I) = H - B G, solved from the right by Cholesky, G + lambda g I = L L^T: first
 * Y L^T = H - B G, then D L = Y. */
err fair_closed(double *D, const struct fair *f)
{
    double *left = NULL, trace = 0;
    size_t r = f->r;
    int m = (int)f->m, k = (int)r;
    err e = ERR_NONE;
    for (size_t i = 0; i < r; i++)
        trace += f->G[i * r + i];
    memset(D, 0, f->m * r * sizeof *D);
    if (trace == 0) return ERR_NONE;
    TRY(matrix_take(&left, r, r));
    memcpy(left, f->G, r * r * sizeof *left);
    for (size_t i = 0; i < r; i++)
        left[i * r + i] += fmax(f->lambda, 1e-12) * trace / (double)r;
    int info = LAPACKE_dpotrf(LAPACK_COL_MAJOR, 'L', k, left, k);
    if (info) {
        e = matrix_failed("Cholesky (dpotrf)", info);
        goto out;
    }
    memcpy(D, f->H, f->m * r * sizeof *D);
    times(D, -1, f->B, f->G, (size_t[]){f->m, r}, 1);
    cblas_dtrsm(CblasColMajor, CblasRight, CblasLower, CblasTrans, CblasNonUnit, m, k, 1, left, k,
                D, m);
    cblas_dtrsm(CblasColMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, m, k, 1, left, k,
                D, m);
out:
    free(left);
    return e;
}

/* ---- cosine ---- */

struct descent {    /* in the coordinates of Q: all (k, r), except G (r, r) */
    size_t k, r, n; /* n = k r */
    double norm, lambda;
    const double *G;
    double *b, *h, *d, *grad, *trial, *work;
};

/* f(d) = 1 - cos = 1 - <H, B> / (N sqrt(<B G, B>)) at B = b + d, and its gradient unless NULL:
 * <H, B> B G / (N <B G, B>^(3/2)) - H / (N sqrt(<B G, B>)). Infinite if B Abar is zero. */
static double smooth(double *grad, const struct descent *s, const double *d)
{
    double *x = s->work, *y = s->work + s->n; /* B, B G */
    for (size_t i = 0; i < s->n; i++)
        x[i] = s->b[i] + d[i];
    times(y, 1, x, s->G, (size_t[]){s->k, s->r}, 0);
    double inner = dot(s->h, x, s->n), size = sqrt(fmax(0, dot(y, x, s->n)));
    if (!(size > 0)) return INFINITY;
    double part = inner / (s->norm * size * size * size);
    for (size_t i = 0; grad && i < s->n; i++)
        grad[i] = part * y[i] - s->h[i] / (s->norm * size);
    return 1 - inner / (s->norm * size);
}

static double objective(const struct descent *s, const double *d)
{
    return smooth(NULL, s, d) + s->lambda * cblas_dnrm2((int)s->n, d, 1);
}

/* trial = prox(d - step grad), where the prox of step lambda ||.|| shrinks the norm by step lambda.
 * Returns the decrease that is required of the step, ||trial - d||^2 / (2 step). */
static double propose(const struct descent *s, double step)
{
    double size = 0, moved = 0;
    for (size_t i = 0; i < s->n; i++) {
        s->trial[i] = s->d[i] - step * s->grad[i];
        size += s->trial[i] * s->trial[i];
    }
    double keep = size > 0 ? fmax(0, 1 - step * s->lambda / sqrt(size)) : 0;
    for (size_t i = 0; i < s->n; i++) {
        s->trial[i] *= keep;
        moved += (s->trial[i] - s->d[i]) * (s->trial[i] - s->d[i]);
    }
    return moved / (2 * step);
}

static void descend(struct descent *s)
{
    enum { STEPS = 5000, HALVINGS = 60 };
    double step = 1, now = objective(s, s->d);
    for (int t = 0; t < STEPS; t++) {
        double next = INFINITY, promised = 0;
        smooth(s->grad, s, s->d);
        step *= 4; /* the curvature may be smaller here than at the last point */
        for (int h = 0; h < HALVINGS; h++, step /= 2) {
            promised = propose(s, step);
            next = objective(s, s->trial);
            if (next <= now - promised) break;
        }
        if (!(next <= now - promised) || promised <= 1e-15) return;
        memcpy(s->d, s->trial, s->n * sizeof *s->d);
        now = next;
    }
}

/* q (m, k): orthonormal columns that span [B | H]. */
static err span(double **q, size_t *k, const struct fair *f)
{
    double *x = NULL, *tau = NULL;
    size_t n = f->m * f->r;
    int m = (int)f->m, both = 2 * (int)f->r;
    err e = ERR_NONE;
    *k = MIN(f->m, 2 * f->r);
    TRY_OUT(e, matrix_take(&x, f->m, 2 * f->r));
    TRY_OUT(e, matrix_take(&tau, *k, 1));
    memcpy(x, f->B, n * sizeof *x);
    memcpy(x + n, f->H, n * sizeof *x);
    int info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, m, both, x, m, tau);
    if (!info) info = LAPACKE_dorgqr(LAPACK_COL_MAJOR, m, (int)*k, (int)*k, x, m, tau);
    if (info) e = matrix_failed("QR (dgeqrf, dorgqr)", info);
    *q = x;
    x = NULL;
out:
    free(x);
    free(tau);
    return e;
}

err fair_cosine(double *D, const struct fair *f)
{
    double *q = NULL, *all = NULL;
    struct descent s = {.r = f->r, .norm = f->norm, .lambda = f->lambda, .G = f->G};
    int m = (int)f->m, r = (int)f->r;
    err e = ERR_NONE;
    memset(D, 0, f->m * f->r * sizeof *D);
    TRY_OUT(e, span(&q, &s.k, f));
    s.n = s.k * s.r;
    int k = (int)s.k;
    TRY_OUT(e, matrix_take(&all, s.n, 7));
    s.b = all;
    s.h = s.b + s.n;
    s.d = s.h + s.n;
    s.grad = s.d + s.n;
    s.trial = s.grad + s.n;
    s.work = s.trial + s.n; /* two */
    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, k, r, m, 1, q, m, f->B, m, 0, s.b, k);
    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, k, r, m, 1, q, m, f->H, m, 0, s.h, k);
    if (!(s.norm > 0) || !isfinite(smooth(NULL, &s, s.d))) goto out;
    descend(&s);
    cblas_dgemm(CblasColMajor, CblasNoTrans, CblasNoTrans, m, r, k, 1, q, m, s.d, k, 0, D, m);
out:
    free(q);
    free(all);
    return e;
}
