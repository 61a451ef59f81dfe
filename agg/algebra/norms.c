#include "agg/algebra/norms.h"

#include "agg/algebra/matrix.h"

#include <cblas.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* Rows of B, or columns of A, that are widened to float64 at a time: a panel stays in the
 * second-level cache. */
enum { PANEL = 128 };

/* Compiled also for wider registers, because the conversion costs a tenth of the products. */
MATRIX_CLONES static void widen(double *restrict out, const float *restrict x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
}

static void mirror(double *gram, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            gram[i * n + j] = gram[j * n + i];
}

/* ---- Gram matrices ---- */

/* Upper triangle of gram (N, N) row-major += panel^T panel, panel (d, N) row-major; with `rows`
 * += panel panel^T, panel (N, PANEL) row-major, of which the first d columns count. */
static void add_panel(double *gram, const double *panel, size_t N, size_t d, bool rows)
{
    if (rows)
        cblas_dsyrk(CblasRowMajor, CblasUpper, CblasNoTrans, (int)N, (int)d, 1, panel, PANEL, 1,
                    gram, (int)N);
    else
        cblas_dsyrk(CblasRowMajor, CblasUpper, CblasTrans, (int)N, (int)d, 1, panel, (int)N, 1,
                    gram, (int)N);
}

/* The upper triangle of [B_1 | B_2 | ...]^T [B_1 | B_2 | ...]. */
static void gram_of_columns(double *gram, double *panel, const struct lowrank_stack *s, size_t N)
{
    for (size_t at = 0; at < s->m; at += PANEL) {
        size_t d = MIN(PANEL, s->m - at), column = 0;
        for (size_t t = 0; t < s->count; column += s->term[t++].r)
            for (size_t i = 0; i < d; i++)
                widen(panel + i * N + column, s->term[t].B + (at + i) * s->term[t].r, s->term[t].r);
        add_panel(gram, panel, N, d, /*rows*/ false);
    }
}

/* The upper triangle of [A_1; A_2; ...] [A_1; A_2; ...]^T. */
static void gram_of_rows(double *gram, double *panel, const struct lowrank_stack *s, size_t N)
{
    for (size_t at = 0; at < s->n; at += PANEL) {
        size_t d = MIN(PANEL, s->n - at), row = 0;
        for (size_t t = 0; t < s->count; row += s->term[t++].r)
            for (size_t i = 0; i < s->term[t].r; i++)
                widen(panel + (row + i) * PANEL, s->term[t].A + i * s->n + at, d);
        add_panel(gram, panel, N, d, /*rows*/ true);
    }
}

err norms_gram(double *gram, const float *x, size_t r, size_t d, bool rows)
{
    const struct lowrank_term term = {.c = 1, .B = x, .A = x, .r = (uint32_t)r};
    const struct lowrank_stack one = {
        .m = (uint32_t)d, .n = (uint32_t)d, .term = &term, .count = 1};
    double *panel = NULL;
    TRY(matrix_take(&panel, r, PANEL));
    memset(gram, 0, r * r * sizeof *gram);
    if (rows)
        gram_of_rows(gram, panel, &one, r);
    else
        gram_of_columns(gram, panel, &one, r);
    mirror(gram, r);
    free(panel);
    return ERR_NONE;
}

/* <T_t, T_u> = c_t c_u sum (B_t^T B_u) o (A_t A_u^T) for t <= u, from the blocks of the two Gram
 * matrices that begin at (first[0], first[1]). Only upper triangles exist: a diagonal block (t = u)
 * is its diagonal plus twice the part above it. */
static double inner_of(const double *left, const double *right, const struct lowrank_stack *s,
                       const size_t pair[2], const size_t first[2])
{
    size_t N = lowrank_total(s), t = pair[0], u = pair[1];
    double sum = 0, twice = t == u ? 2 : 1;
    for (size_t i = 0; i < s->term[t].r; i++) {
        size_t at = (first[0] + i) * N + first[1], from = t == u ? i + 1 : 0;
        if (t == u) sum += left[at + i] * right[at + i];
        double row = 0;
        for (size_t j = from; j < s->term[u].r; j++)
            row += left[at + j] * right[at + j];
        sum += twice * row;
    }
    return s->term[t].c * s->term[u].c * sum;
}

/* inner (terms, terms), symmetric: H[t][u] = <T_t, T_u>. */
static err inner_products(double *inner, const struct lowrank_stack *s)
{
    size_t N = lowrank_total(s);
    double *left = NULL, *right = NULL, *panel = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&left, N, N));
    TRY_OUT(e, matrix_take(&right, N, N));
    TRY_OUT(e, matrix_take(&panel, N, PANEL));
    gram_of_columns(left, panel, s, N);
    gram_of_rows(right, panel, s, N);
    for (size_t t = 0, at = 0; t < s->count; at += s->term[t++].r)
        for (size_t u = t, to = at; u < s->count; to += s->term[u++].r)
            inner[t * s->count + u] =
                inner_of(left, right, s, (size_t[]){t, u}, (size_t[]){at, to});
    mirror(inner, s->count);
out:
    free(left);
    free(right);
    free(panel);
    return e;
}

static err norms_by_gram(double *out, const struct lowrank_stack *s, const double *weight,
                         size_t count)
{
    double *inner = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&inner, s->count, s->count));
    TRY_OUT(e, inner_products(inner, s));
    for (size_t j = 0; j < count; j++) {
        const double *w = weight + j * s->count;
        double square = 0;
        for (size_t t = 0; t < s->count; t++)
            for (size_t u = 0; u < s->count; u++)
                square += w[t] * w[u] * inner[t * s->count + u];
        out[j] = sqrt(fmax(0, square)); /* below zero by rounding alone */
    }
    for (size_t t = 0; t < s->count && s->done; t++)
        s->done(s->context, t);
out:
    free(inner);
    return e;
}

/* ---- dense ---- */

/* The dense sum goes from one combination to the next by adding (w_now - w_before) T_t, or starts
 * again from zero if that needs fewer ranks. */
struct step {
    const struct lowrank_stack *all;
    const double *weight, *before; /* (terms); before: NULL, or the weights that `sum` has now */
    struct lowrank_term *term;     /* (terms) the ones to add */
    size_t *which;                 /* (terms) their places in `all`, for done() */
};

static size_t ranks_of(const struct step *s)
{
    size_t ranks = 0;
    for (size_t t = 0; t < s->all->count; t++)
        if (s->weight[t] != (s->before ? s->before[t] : 0)) ranks += s->all->term[t].r;
    return ranks;
}

static void step_done(void *context, size_t term)
{
    const struct step *s = context;
    if (s->all->done) s->all->done(s->all->context, s->which[term]);
}

static err take_step(double *sum, struct step *s)
{
    const struct lowrank_stack *all = s->all;
    struct lowrank_stack added = {
        .m = all->m, .n = all->n, .term = s->term, .done = step_done, .context = s};
    for (size_t t = 0; t < all->count; t++) {
        double w = s->weight[t] - (s->before ? s->before[t] : 0);
        if (w == 0) continue;
        s->term[added.count] = all->term[t];
        s->term[added.count].c *= w;
        s->which[added.count++] = t;
    }
    return lowrank_add_dense(sum, &added);
}

/* BLAS counts in int, so long vectors are taken in parts. */
static double root_of_squares(const double *x, size_t n)
{
    double sum = cblas_dnrm2((int)MIN(n, 1u << 30), x, 1);
    for (size_t at = 1u << 30; at < n; at += 1u << 30)
        sum = hypot(sum, cblas_dnrm2((int)MIN(n - at, 1u << 30), x + at, 1));
    return sum;
}

static err norms_by_sum(double *out, const struct lowrank_stack *s, const double *weight,
                        size_t count)
{
    size_t size = (size_t)s->m * s->n;
    struct step step = {.all = s};
    double *sum = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&sum, s->m, s->n));
    step.term = calloc(s->count + 1, sizeof *step.term);
    step.which = calloc(s->count + 1, sizeof *step.which);
    if (!step.term || !step.which) {
        e = err_sys(ENOMEM, "%zu terms", s->count);
        goto out;
    }
    for (size_t j = 0; j < count; j++) {
        const double *before = j ? weight + (j - 1) * s->count : NULL;
        step.weight = weight + j * s->count;
        step.before = NULL;
        size_t ranks = ranks_of(&step);
        step.before = before;
        if (before && ranks_of(&step) > ranks) {
            step.before = NULL;
            memset(sum, 0, size * sizeof *sum);
        }
        TRY_OUT(e, take_step(sum, &step));
        out[j] = root_of_squares(sum, size);
    }
out:
    free(step.term);
    free(step.which);
    free(sum);
    return e;
}

err norms_of(double *out, const struct lowrank_stack *terms, const double *weight, size_t count)
{
    double m = terms->m, n = terms->n, N = (double)lowrank_total(terms);
    for (size_t t = 0; t < terms->count; t++)
        REQUIRE(!terms->term[t].R);
    for (size_t j = 0; j < count; j++)
        out[j] = 0;
    if (N == 0) return ERR_NONE;
    return N * (m + n) < 2 * m * n ? norms_by_gram(out, terms, weight, count)
                                   : norms_by_sum(out, terms, weight, count);
}
