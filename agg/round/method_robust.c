#include "agg/round/method_robust.h"

#include "agg/algebra/matrix.h"
#include "agg/round/method_gram.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- the rules, from norms and inner products ---- */

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The middle of `sorted`; of an even number the mean of the two. */
static double middle(const double *sorted, size_t count)
{
    return count % 2 ? sorted[count / 2] : (sorted[count / 2 - 1] + sorted[count / 2]) / 2;
}

void method_robust_norm(double *p, const double *norm, size_t count, double bound)
{
    for (size_t k = 0; k < count; k++)
        if (norm[k] > bound) p[k] *= bound / norm[k];
}

/* The sum of a member's `nearest` smallest squared distances to others. */
static double score_of(double *row, const double *gram, size_t count, size_t k, size_t nearest)
{
    size_t n = 0;
    double sum = 0;
    for (size_t j = 0; j < count; j++)
        if (j != k)
            row[n++] = fmax(0, gram[k * count + k] + gram[j * count + j] - 2 * gram[k * count + j]);
    qsort(row, n, sizeof *row, by_value);
    for (size_t j = 0; j < nearest; j++)
        sum += row[j];
    return sum;
}

err method_robust_krum(double *p, const double *gram, size_t count, uint32_t faulty)
{
    size_t f = faulty ? faulty : count > 3 ? (count - 3) / 2 : 0;
    double *score = NULL, *row, sum = 0;
    if (count < 2 * f + 3)
        return err_make(ERR_STATE,
                        "robust=krum with %zu faulty members needs %zu updates, but got %zu", f,
                        2 * f + 3, count);
    TRY(matrix_take(&score, count, 2));
    row = score + count;
    for (size_t k = 0; k < count; k++)
        score[k] = score_of(row, gram, count, k, count - f - 2);
    for (size_t gone = 0; gone < f;
         gone++) { /* the member of the worst score; of equal ones the last */
        size_t worst = 0;
        for (size_t k = 0; k < count; k++)
            if (score[k] >= score[worst]) worst = k;
        score[worst] = -1;
        p[worst] = 0;
    }
    for (size_t k = 0; k < count; k++)
        sum += p[k];
    for (size_t k = 0; k < count; k++)
        p[k] /= sum;
    free(score);
    return ERR_NONE;
}

/* out[k] = ||D_k - z||, z = sum_j x_j D_j, from inner products: G_kk - 2 (G x)_k + x^T G x. */
static void distances(double *out, const double *x, const double *gram, size_t count)
{
    double all = 0;
    for (size_t k = 0; k < count; k++) {
        double with = 0;
        for (size_t j = 0; j < count; j++)
            with += gram[k * count + j] * x[j];
        out[k] = gram[k * count + k] - 2 * with;
        all += x[k] * with;
    }
    for (size_t k = 0; k < count; k++)
        out[k] = sqrt(fmax(0, out[k] + all));
}

err method_robust_geometric(double *p, const double *gram, size_t count)
{
    enum { STEPS = 1000 };
    double *x = NULL, *d, least = 0, moved = 1;
    TRY(matrix_take(&x, count, 2));
    d = x + count;
    memcpy(x, p, count * sizeof *x);
    distances(d, x, gram, count);
    for (size_t k = 0; k < count; k++)
        least += 1e-9 * p[k] * d[k]; /* keeps p / d finite if the median lies on a member */
    for (int step = 0; step < STEPS && least > 0 && moved > 1e-12; step++) {
        double sum = 0;
        moved = 0;
        for (size_t k = 0; k < count; k++)
            sum += p[k] / fmax(least, d[k]);
        for (size_t k = 0; k < count; k++) {
            double next = p[k] / fmax(least, d[k]) / sum;
            moved = fmax(moved, fabs(next - x[k]));
            x[k] = next;
        }
        distances(d, x, gram, count);
    }
    memcpy(p, x, count * sizeof *x);
    free(x);
    return ERR_NONE;
}

/* ---- over all modules ---- */

struct sums {
    const struct method_cohort *cohort;
    const struct method *method;
    double *total; /* (count) squared norms, or with `pairs` (count, count) inner products */
    size_t size;
    bool pairs;
};

/* Sets `part` to module i's squared norms or inner products. */
static err add_module(struct sums *s, double *part, size_t i)
{
    struct method_view view = {0};
    struct method_round round = {.options = &s->cohort->options, .server_lr = 1};
    TRY(method_view_open(&view, &round, s->cohort, i));
    err e = s->pairs ? method_gram(part, &round, s->method)
                     : method_gram_norms(part, &round, s->method);
    if (err_is(e)) e = method_view_blame(&view, s->cohort, e);
    method_view_close(&view, s->cohort);
    return e;
}

/* Sums over modules in their order (`ordered`), so that the bits do not depend on threads. A thread
 * holds one part, because (count, count) values for every module would be too much memory. */
static err add_modules(struct sums *s, int threads)
{
    err failed = ERR_NONE;
    int before = lowrank_begin();
#pragma omp parallel num_threads(threads)
    {
        double *part = NULL;
        err mine = matrix_take(&part, s->size, 1);
#pragma omp for ordered schedule(dynamic, 1)
        for (size_t i = 0; i < s->cohort->state.count; i++) {
            err e = err_is(mine) ? mine : add_module(s, part, i);
#pragma omp ordered
            {
                if (err_is(e) && !err_is(failed)) failed = e;
                for (size_t j = 0; j < s->size && !err_is(e); j++)
                    s->total[j] += part[j];
            }
        }
        free(part);
    }
    lowrank_end(before);
    return failed;
}

static err bounded(double *p, const double *norm, size_t count, double bound)
{
    double *sorted = NULL;
    if (bound == 0 && count) {
        TRY(matrix_take(&sorted, count, 1));
        memcpy(sorted, norm, count * sizeof *sorted);
        qsort(sorted, count, sizeof *sorted, by_value);
        bound = middle(sorted, count);
        free(sorted);
    }
    method_robust_norm(p, norm, count, bound);
    return ERR_NONE;
}

static err apply(double *p, double *norm, const struct sums *s)
{
    const struct method_options *o = &s->cohort->options;
    size_t count = s->cohort->count;
    for (size_t k = 0; k < count; k++) {
        norm[k] = sqrt(s->total[s->pairs ? k * count + k : k]);
        if (!isfinite(norm[k]))
            return err_make(ERR_INPUT, "member %s: the norm of its change is not finite",
                            s->cohort->member[k]->member);
    }
    if (o->robust == METHOD_ROBUST_NORM) return bounded(p, norm, count, o->robust_norm);
    if (o->robust == METHOD_ROBUST_KRUM)
        return method_robust_krum(p, s->total, count, o->robust_faulty);
    return method_robust_geometric(p, s->total, count);
}

err method_robust_weigh(double *p, double *norm, const struct method_cohort *c,
                        const struct method *method, int threads)
{
    enum method_robust rule = c->options.robust;
    struct sums s = {.cohort = c, .method = method, .size = c->count};
    bool by_values = rule == METHOD_ROBUST_MEDIAN || rule == METHOD_ROBUST_TRIMMED;
    if (rule == METHOD_ROBUST_NONE || by_values || c->count == 0) return ERR_NONE;
    s.pairs = rule != METHOD_ROBUST_NORM;
    if (s.pairs && c->count > LIMIT_ROBUST_MEMBERS)
        return err_make(ERR_LIMIT,
                        "%zu members, but a robust rule that compares all pairs allows at most %d",
                        c->count, LIMIT_ROBUST_MEMBERS);
    if (s.pairs) s.size = c->count * c->count;
    TRY(matrix_take(&s.total, s.size, 1));
    err e = add_modules(&s, threads);
    if (!err_is(e)) e = apply(p, norm, &s);
    free(s.total);
    return e;
}

/* ---- single values ---- */

/* Values [range[0], range[0] + range[1]) of member k's factor, in the layout of the state's. Values
 * that the member does not have are the state's. */
static void copy_values(double *out, const struct method_round *round, size_t k,
                        enum adapter_file_role role, const size_t range[2])
{
    const struct adapter_file_factor *whole = &round->module->factor[role];
    const struct adapter_file_module *u = round->update[k];
    const struct adapter_file_factor *own = u && u->factor[role].f32 ? &u->factor[role] : whole;
    size_t cols = whole->cols ? whole->cols : own->cols;
    for (size_t i = 0; i < range[1]; i++) {
        size_t row = (range[0] + i) / cols, col = (range[0] + i) % cols;
        bool has = own->f32 && row < own->rows && col < own->cols;
        out[i] = has          ? (double)own->f32[row * own->cols + col]
                 : whole->f32 ? (double)whole->f32[row * cols + col]
                              : 0;
    }
}

static double trimmed_mean(const double *sorted, size_t count, double trim)
{
    size_t cut = (size_t)(trim * (double)count);
    double sum = 0;
    if (cut == 0 && count >= 3) cut = 1;
    for (size_t k = cut; k < count - cut; k++)
        sum += sorted[k];
    return sum / (double)(count - 2 * cut);
}

err method_robust_values(double *out, const struct method_round *round, enum adapter_file_role role,
                         size_t count)
{
    enum { HELD = 1 << 20 }; /* values of all members in memory at once */
    size_t members = round->count, step = HELD / (members ? members : 1) + 1;
    double *x = NULL, *one;
    if (step > count) step = count;
    TRY(matrix_take(&x, step, members + 1));
    one = x + step * members;
    for (size_t at = 0; at < count && members; at += step) {
        const size_t range[2] = {at, count - at < step ? count - at : step};
        for (size_t k = 0; k < members; k++) {
            copy_values(x + k * step, round, k, role, range);
            if (round->done) round->done(round, k);
        }
        for (size_t i = 0; i < range[1]; i++) {
            for (size_t k = 0; k < members; k++)
                one[k] = x[k * step + i];
            qsort(one, members, sizeof *one, by_value);
            out[at + i] = round->options->robust == METHOD_ROBUST_MEDIAN
                              ? middle(one, members)
                              : trimmed_mean(one, members, round->options->robust_trim);
        }
    }
    free(x);
    return ERR_NONE;
}
