#include "agg/method_gram.h"

#include "agg/matrix.h"

#include <cblas.h>
#include <lapacke.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

enum { BLOCK_WIDTH = 256 }; /* columns of L held at once for each side of a product */

/* What every member's change of this module shares. */
struct ground {
    const struct method_round *round;
    bool fresh;
    size_t m, n; /* lengths of L's columns and X's rows; of B R A: r, in orthonormal coordinates */
    const float *A, *B, *R; /* where members started, or what is frozen */
    uint32_t rank;
    double scale;
    double *turn_b, *turn_a; /* (r, r) row-major: B = Q turn_b, A = turn_a^T Q^T; NULL: identity */
};

/* turn (r, r) row-major, upper: T of the Householder QR of x (d, r) row-major, or of x (r, d)^T. */
static err turn_of(double **turn, const float *x, size_t d, size_t r, bool transposed)
{
    double *q = NULL, *tau = NULL, *t = NULL;
    size_t k = MIN(d, r);
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&q, d, r));
    TRY_OUT(e, matrix_take(&tau, k, 1));
    TRY_OUT(e, matrix_take(&t, r, r));
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < r; j++)
            q[j * d + i] = (double)(transposed ? x[j * d + i] : x[i * r + j]);
    int info = LAPACKE_dgeqrf(LAPACK_COL_MAJOR, (int)d, (int)r, q, (int)d, tau);
    if (info) {
        e = matrix_failed("QR (dgeqrf)", info);
        goto out;
    }
    for (size_t i = 0; i < k; i++)
        for (size_t j = i; j < r; j++)
            t[i * r + j] = q[j * d + i];
    *turn = t;
    t = NULL;
out:
    free(q);
    free(tau);
    free(t);
    return e;
}

static void ground_close(struct ground *g)
{
    free(g->turn_b);
    free(g->turn_a);
}

static err ground_open(struct ground *out, const struct method_round *round,
                       const struct method *method)
{
    const struct adapter_file_module *m = round->module, *frozen = round->frozen;
    struct ground g = {.round = round,
                       .fresh = method->fresh || !m->rank,
                       .m = m->d_out,
                       .n = m->d_in,
                       .A = m->factor[ADAPTER_FILE_A].f32,
                       .B = m->factor[ADAPTER_FILE_B].f32,
                       .R = m->factor[ADAPTER_FILE_R].f32,
                       .rank = m->rank,
                       .scale = m->scale};
    err e = ERR_NONE;
    if (frozen && !g.A) g.A = frozen->factor[ADAPTER_FILE_A].f32;
    if (frozen && !g.B) g.B = frozen->factor[ADAPTER_FILE_B].f32;
    if (!g.R && method->frozen && !g.A)
        return err_make(ERR_INPUT, "module %s: its frozen factors are not given", m->name);
    if (g.R) {
        g.m = g.n = m->rank;
        if (g.B) TRY_OUT(e, turn_of(&g.turn_b, g.B, m->d_out, m->rank, false));
        if (g.A) TRY_OUT(e, turn_of(&g.turn_a, g.A, m->d_in, m->rank, true));
    }
    *out = g;
    return ERR_NONE;
out:
    ground_close(&g);
    return e;
}

/* ---- one member: left (w, m) is L^T, right (w, n) is X; row-major ---- */

static size_t width_of(const struct ground *g, size_t k)
{
    const struct adapter_file_module *u = g->round->update[k];
    if (!u) return 0;
    bool both = u->factor[ADAPTER_FILE_A].f32 && u->factor[ADAPTER_FILE_B].f32;
    return (both && !g->fresh ? 2 : 1) * (size_t)u->rank;
}

/* out (r, d) += c times the leading r columns of x (d, cols), turned. */
static void put_columns(double *out, const float *x, const size_t shape[3], double c)
{
    size_t d = shape[0], cols = shape[1], r = shape[2];
    for (size_t i = 0; i < d && x; i++)
        for (size_t j = 0; j < r; j++)
            out[j * d + i] += c * (double)x[i * cols + j];
}

static void put_rows(double *out, const float *x, size_t count, double c)
{
    for (size_t i = 0; i < count && x; i++)
        out[i] += c * (double)x[i];
}

/* L = turn_b[:, :r] (R_k - R_0), X = (turn_a^T)[:r]. */
static void put_square(double *left, double *right, const struct ground *g,
                       const struct adapter_file_module *u)
{
    size_t r = u->rank, whole = g->rank;
    const float *R = u->factor[ADAPTER_FILE_R].f32;
    for (size_t b = 0; b < r; b++)
        for (size_t h = 0; h < r; h++) {
            double d = g->scale * ((double)R[h * r + b] - (double)g->R[h * whole + b]);
            for (size_t i = 0; i < whole; i++)
                left[b * whole + i] += d * (g->turn_b ? g->turn_b[i * whole + h] : i == h);
        }
    for (size_t a = 0; a < r; a++)
        for (size_t i = 0; i < whole; i++)
            right[a * whole + i] = g->turn_a ? g->turn_a[i * whole + a] : i == a;
}

/* Both factors trained from a start: two parts of width r. */
static void put_warm(double *left, double *right, const struct ground *g,
                     const struct adapter_file_module *u)
{
    const float *A = u->factor[ADAPTER_FILE_A].f32, *B = u->factor[ADAPTER_FILE_B].f32;
    size_t r = u->rank;
    const size_t own[3] = {g->m, r, r}, start[3] = {g->m, g->rank, MIN(r, g->rank)};
    bool same = u->scale == g->scale;
    double *left2 = left + r * g->m, *right2 = right + r * g->n;
    put_columns(left, B, own, u->scale);
    put_rows(right, A, r * g->n, 1);
    if (same) {
        put_columns(left, g->B, start, -g->scale);
        put_columns(left2, g->B, start, g->scale);
        put_rows(right2, A, r * g->n, 1);
        put_rows(right2, g->A, start[2] * g->n, -1);
    } else {
        put_columns(left2, g->B, start, -g->scale);
        put_rows(right2, g->A, start[2] * g->n, 1);
    }
}

static void put_member(double *left, double *right, const struct ground *g, size_t k)
{
    const struct adapter_file_module *u = g->round->update[k];
    if (!u) return;
    const float *A = u->factor[ADAPTER_FILE_A].f32, *B = u->factor[ADAPTER_FILE_B].f32;
    size_t r = u->rank;
    const size_t own[3] = {g->m, r, r}, start[3] = {g->m, g->rank, MIN(r, g->rank)};
    if (u->factor[ADAPTER_FILE_R].f32) {
        put_square(left, right, g, u);
    } else if (A && B && !g->fresh) {
        put_warm(left, right, g, u);
    } else {
        if (B) put_columns(left, B, own, u->scale);
        if (!g->fresh || !B) put_columns(left, g->B, start, B ? -g->scale : 1);
        if (A) put_rows(right, A, r * g->n, B ? 1 : u->scale);
        if (A && !B) put_rows(right, g->A, start[2] * g->n, -g->scale);
        if (!A) put_rows(right, g->A, start[2] * g->n, 1);
    }
    if (g->round->done) g->round->done(g->round, k);
}

/* ---- blocks of members ---- */

struct block {
    size_t from, to; /* members */
    size_t width;
    double *left, *right; /* (width, m), (width, n) */
};

/* As many members as fit, at least one. */
static struct block block_at(const struct ground *g, size_t from)
{
    struct block b = {.from = from, .to = from};
    while (b.to < g->round->count && (b.to == from || b.width + width_of(g, b.to) <= BLOCK_WIDTH))
        b.width += width_of(g, b.to++);
    return b;
}

static void block_close(struct block *b)
{
    free(b->left);
    free(b->right);
    b->left = b->right = NULL;
}

static err block_load(struct block *b, const struct ground *g)
{
    size_t at = 0;
    TRY(matrix_take(&b->left, g->m, b->width));
    err e = matrix_take(&b->right, g->n, b->width);
    if (err_is(e)) {
        block_close(b);
        return e;
    }
    for (size_t k = b->from; k < b->to; k++) {
        put_member(b->left + at * g->m, b->right + at * g->n, g, k);
        at += width_of(g, k);
    }
    return ERR_NONE;
}

/* sum of the part of x * y (rows of `size`) that belongs to one pair of members */
static double pair_sum(const double *x, const double *y, size_t stride, const size_t size[2])
{
    double sum = 0;
    for (size_t i = 0; i < size[0]; i++)
        for (size_t j = 0; j < size[1]; j++)
            sum += x[i * stride + j] * y[i * stride + j];
    return sum;
}

static err multiply(double *gram, const struct ground *g, const struct block *a,
                    const struct block *b)
{
    double *x = NULL, *y = NULL;
    size_t count = g->round->count, wa = a->width, wb = b->width;
    err e = ERR_NONE;
    if (wa == 0 || wb == 0) return ERR_NONE;
    TRY_OUT(e, matrix_take(&x, wa, wb));
    TRY_OUT(e, matrix_take(&y, wa, wb));
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)wa, (int)wb, (int)g->m, 1, a->left,
                (int)g->m, b->left, (int)g->m, 0, x, (int)wb);
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)wa, (int)wb, (int)g->n, 1, a->right,
                (int)g->n, b->right, (int)g->n, 0, y, (int)wb);
    for (size_t j = a->from, row = 0; j < a->to; row += width_of(g, j++))
        for (size_t k = b->from, col = 0; k < b->to; col += width_of(g, k++)) {
            const size_t size[2] = {width_of(g, j), width_of(g, k)};
            double sum = pair_sum(x + row * wb + col, y + row * wb + col, wb, size);
            if (j <= k) gram[j * count + k] = gram[k * count + j] = sum;
        }
out:
    free(x);
    free(y);
    return e;
}

err method_gram(double *gram, const struct method_round *round, const struct method *method)
{
    struct ground g = {0};
    struct block a = {0}, b = {0};
    err e = ERR_NONE;
    memset(gram, 0, round->count * round->count * sizeof *gram);
    TRY(ground_open(&g, round, method));
    for (a = block_at(&g, 0); a.from < round->count; a = block_at(&g, a.to)) {
        TRY_OUT(e, block_load(&a, &g));
        TRY_OUT(e, multiply(gram, &g, &a, &a));
        for (b = block_at(&g, a.to); b.from < round->count; b = block_at(&g, b.to)) {
            TRY_OUT(e, block_load(&b, &g));
            TRY_OUT(e, multiply(gram, &g, &a, &b));
            block_close(&b);
        }
        block_close(&a);
    }
out:
    block_close(&a);
    block_close(&b);
    ground_close(&g);
    return e;
}

err method_gram_norms(double *square, const struct method_round *round, const struct method *method)
{
    struct ground g = {0};
    double *x = NULL, *y = NULL;
    err e = ERR_NONE;
    memset(square, 0, round->count * sizeof *square);
    TRY(ground_open(&g, round, method));
    for (size_t k = 0; k < round->count; k++) {
        struct block a = {.from = k, .to = k + 1, .width = width_of(&g, k)};
        const size_t size[2] = {a.width, a.width};
        if (a.width == 0) continue;
        TRY_OUT(e, matrix_take(&x, a.width, a.width));
        TRY_OUT(e, matrix_take(&y, a.width, a.width));
        TRY_OUT(e, block_load(&a, &g));
        int w = (int)a.width, m = (int)g.m, n = (int)g.n;
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, w, w, m, 1, a.left, m, a.left, m, 0, x,
                    w);
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, w, w, n, 1, a.right, n, a.right, n, 0,
                    y, w);
        square[k] = pair_sum(x, y, a.width, size);
        block_close(&a);
        free(x);
        free(y);
        x = y = NULL;
    }
out:
    free(x);
    free(y);
    ground_close(&g);
    return e;
}
