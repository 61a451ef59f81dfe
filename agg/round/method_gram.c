#include "agg/round/method_gram.h"

#include "agg/algebra/matrix.h"

#include <cblas.h>
#include <lapacke.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

enum {
    BLOCK_WIDTH = 256,    /* columns of L held at once for each side of a product */
    FLAT_VALUES = 1 << 22 /* values held at once if a single factor trains */
};

/* The part that all members' changes of this module have in common. If one factor trains, the
 * others are the same for all. They are then multiplied into it by their triangles (for X = L A
 * with A^T = Q T: ||X|| = ||L T^T||, because Q is orthonormal), so that a change is a plain vector
 * (`flat`). */
struct ground {
    const struct method_round *round;
    bool fresh, flat;
    size_t m, n;            /* lengths of L's columns and X's rows; flat: n is the whole vector's */
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

/* The factors of a module that members sent: METHOD_A | ... */
static unsigned sent_factors(const struct method_round *round)
{
    unsigned set = 0;
    for (size_t k = 0; k < round->count && !set; k++)
        for (int f = ADAPTER_FILE_A; f <= ADAPTER_FILE_R && round->update[k]; f++)
            if (round->update[k]->factor[f].f32) set |= 1u << f;
    return set;
}

static err flatten_ground(struct ground *g, unsigned set)
{
    const struct adapter_file_module *m = g->round->module;
    bool a = set != METHOD_A, b = set != METHOD_B; /* A and B that do not train */
    g->flat = true;
    g->n = (set == METHOD_B ? g->m : m->rank) * (set == METHOD_A ? g->n : m->rank);
    if (set != METHOD_R && ((a && !g->A) || (b && !g->B)))
        return err_make(ERR_INPUT, "module %s: its frozen factors are not given", m->name);
    if (a && g->A) TRY(turn_of(&g->turn_a, g->A, m->d_in, m->rank, true));
    return b && g->B ? turn_of(&g->turn_b, g->B, m->d_out, m->rank, false) : ERR_NONE;
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
    unsigned set = sent_factors(round);
    err e = ERR_NONE;
    if (frozen && !g.A) g.A = frozen->factor[ADAPTER_FILE_A].f32;
    if (frozen && !g.B) g.B = frozen->factor[ADAPTER_FILE_B].f32;
    if (set && (set & (set - 1)) == 0) TRY_OUT(e, flatten_ground(&g, set));
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
    if (g->flat) return 1;
    return u ? (g->fresh ? 1 : 2) * (size_t)u->rank : 0;
}

/* out (r, d) += c times the transpose of the leading r columns of x (d, cols). */
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

/* Both factors train: D_k = s_k B_k A_k - s_0 B_0 A_0, in 2 r columns. At one scale it is written
 * as s (B_k - B_0) A_k + s B_0 (A_k - A_0): differences are taken value by value before anything is
 * multiplied, so a small change of large factors keeps its digits. At two scales that is not
 * possible, and the two products are subtracted. */
static void put_pair(double *left, double *right, const struct ground *g,
                     const struct adapter_file_module *u)
{
    const float *A = u->factor[ADAPTER_FILE_A].f32, *B = u->factor[ADAPTER_FILE_B].f32;
    size_t r = u->rank;
    const size_t own[3] = {g->m, r, r}, start[3] = {g->m, g->rank, MIN(r, g->rank)};
    put_columns(left, B, own, u->scale);
    put_rows(right, A, r * g->n, 1);
    if (g->fresh) return;
    double *left2 = left + r * g->m, *right2 = right + r * g->n;
    if (u->scale == g->scale) {
        put_columns(left, g->B, start, -g->scale);
        put_columns(left2, g->B, start, g->scale);
        put_rows(right2, A, r * g->n, 1);
        put_rows(right2, g->A, start[2] * g->n, -1);
    } else {
        put_columns(left2, g->B, start, -g->scale);
        put_rows(right2, g->A, start[2] * g->n, 1);
    }
}

/* ---- one member as a vector, if one factor trains ---- */

/* out (rows, r) += (scale[0] x - scale[1] x0) T^T, x (rows, cols), x0 (rows, r), T = turn_a upper
 * triangular. Columns of x beyond r, and of x0 beyond x's, do not count. */
static void put_turned(double *out, const struct adapter_file_factor *x, const float *x0,
                       const struct ground *g, const double scale[2])
{
    size_t r = g->rank, cols = MIN(x->cols, r);
    for (size_t i = 0; i < x->rows; i++)
        for (size_t h = 0; h < cols; h++) {
            double d = scale[0] * (double)x->f32[i * x->cols + h] -
                       (x0 ? scale[1] * (double)x0[i * r + h] : 0);
            for (size_t a = 0; a <= h && g->turn_a; a++)
                out[i * r + a] += d * g->turn_a[a * r + h];
            if (!g->turn_a) out[i * r + h] += d;
        }
}

/* out (r, n) += T x, x (rows, n) float64, T = turn_b upper triangular. */
static void put_under(double *out, const double *x, size_t rows, const struct ground *g, size_t n)
{
    size_t r = g->rank;
    for (size_t h = 0; h < rows; h++)
        for (size_t a = 0; a <= h; a++) {
            double t = g->turn_b ? g->turn_b[a * r + h] : a == h;
            for (size_t j = 0; j < n && t != 0; j++)
                out[a * n + j] += t * x[h * n + j];
        }
}

/* s B_k - s_0 B_0 turned by A's triangle; or s A_k - s_0 A_0 turned by B's; or R_k - R_0 by
 * both. */
static err put_flat(double *out, const struct ground *g, const struct adapter_file_module *u)
{
    const struct adapter_file_factor *A = &u->factor[ADAPTER_FILE_A];
    const struct adapter_file_factor *B = &u->factor[ADAPTER_FILE_B];
    const struct adapter_file_factor *R = &u->factor[ADAPTER_FILE_R];
    const double scale[2] = {u->scale, g->scale}, square[2] = {g->scale, g->scale};
    size_t rows = MIN(u->rank, g->rank), n = R->f32 ? g->rank : A->cols;
    double *x = NULL;
    if (B->f32) {
        put_turned(out, B, g->B, g, scale);
        return ERR_NONE;
    }
    TRY(matrix_take(&x, rows, n));
    if (R->f32)
        put_turned(x, R, g->R, g, square);
    else
        for (size_t i = 0; i < rows * n; i++)
            x[i] = scale[0] * (double)A->f32[i] - (g->A ? scale[1] * (double)g->A[i] : 0);
    put_under(out, x, rows, g, n);
    free(x);
    return ERR_NONE;
}

static err put_member(double *left, double *right, const struct ground *g, size_t k)
{
    const struct adapter_file_module *u = g->round->update[k];
    if (!u) return ERR_NONE;
    if (g->flat)
        TRY(put_flat(right, g, u));
    else
        put_pair(left, right, g, u);
    if (g->round->done) g->round->done(g->round, k);
    return ERR_NONE;
}

/* ---- blocks of members ---- */

struct block {
    size_t from, to; /* members */
    size_t width;
    double *left, *right; /* (width, m), (width, n) */
};

/* As many members as fit into a block, but at least one, so that a large member is not skipped. */
static struct block block_at(const struct ground *g, size_t from)
{
    struct block b = {.from = from, .to = from};
    size_t most = g->flat ? FLAT_VALUES / (g->n + 1) : BLOCK_WIDTH;
    while (b.to < g->round->count && (b.to == from || b.width + width_of(g, b.to) <= most))
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
    err e = matrix_take(&b->left, g->flat ? 0 : g->m, b->width);
    if (!err_is(e)) e = matrix_take(&b->right, g->n, b->width);
    for (size_t k = b->from; k < b->to && !err_is(e); k++) {
        e = put_member(g->flat ? NULL : b->left + at * g->m, b->right + at * g->n, g, k);
        at += width_of(g, k);
    }
    if (err_is(e)) block_close(b);
    return e;
}

/* The sum of x o y over the (size[0], size[1]) block of one pair of members: <D_j, D_k>. */
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
    if (g->flat) /* L is the identity for all, so only y counts */
        for (size_t i = 0; i < wa * wb; i++)
            x[i] = 1;
    else
        cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasTrans, (int)wa, (int)wb, (int)g->m, 1,
                    a->left, (int)g->m, b->left, (int)g->m, 0, x, (int)wb);
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

/* Every pair of blocks once. Memory holds two blocks; a block is read again for each block before
 * it. */
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

/* One member at a time, through the same product as method_gram(): the diagonal has the same
 * bits. */
err method_gram_norms(double *square, const struct method_round *round, const struct method *method)
{
    struct ground g = {0};
    err e = ERR_NONE;
    memset(square, 0, round->count * sizeof *square);
    TRY(ground_open(&g, round, method));
    for (size_t k = 0; k < round->count; k++) {
        const struct method_round one = {.update = &round->update[k], .count = 1};
        struct block a = {.from = k, .to = k + 1, .width = width_of(&g, k)};
        struct ground alone = g;
        TRY_OUT(e, block_load(&a, &g));
        alone.round = &one;
        a.from = 0;
        a.to = 1;
        e = multiply(&square[k], &alone, &a, &a);
        block_close(&a);
        if (err_is(e)) goto out;
    }
out:
    ground_close(&g);
    return e;
}
