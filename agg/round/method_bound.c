#include "agg/round/method_bound.h"

#include "agg/algebra/matrix.h"
#include "agg/round/method_cohort.h"
#include "agg/round/method_gram.h"

#include <float.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { CHANGE, FACTORS, KINDS };

struct norms {
    const struct method_cohort *cohort;
    const struct method *method;
    double *module[KINDS]; /* (modules, members) squared norms; below 0: not sent */
    double *all[KINDS];    /* (members) their sums */
    double *sorted;        /* (members) scratch */
    double median[KINDS];  /* over the members whose squares do not overflow; 0: says nothing */
    struct method_bound *out;
};

static double squares(const struct adapter_file_module *m)
{
    double sum = 0;
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_R; r++) {
        const struct adapter_file_factor *x = &m->factor[r];
        for (size_t i = 0, n = x->f32 ? (size_t)x->rows * x->cols : 0; i < n; i++)
            sum += (double)x->f32[i] * (double)x->f32[i];
    }
    return sum;
}

static err measure(void *context, size_t i)
{
    const struct norms *n = context;
    const struct method_cohort *c = n->cohort;
    double *change = &n->module[CHANGE][i * c->count], *factors = &n->module[FACTORS][i * c->count];
    struct method_view view = {0};
    struct method_round round = {.options = &c->options, .server_lr = 1};
    err e = ERR_NONE;
    TRY(method_view_open(&view, &round, c, i));
    if (!c->task.gradient) TRY_OUT(e, method_gram_norms(change, &round, n->method));
    for (size_t k = 0; k < c->count; k++) {
        factors[k] = view.update[k] ? squares(view.update[k]) : -1;
        if (c->task.gradient || !view.update[k]) change[k] = factors[k];
        if (view.update[k] && round.done) round.done(&round, k);
    }
out:
    method_view_close(&view, c);
    return e;
}

/* Written so that NaN overflows too. */
static bool overflows(double square)
{
    return !(square <= (double)FLT_MAX);
}

static void refuse(struct method_bound *out, const char *module, const char *text)
{
    if (*out->why) return;
    snprintf(out->why, sizeof out->why, "%s%.60s%s%s", module ? "module " : "",
             module ? module : "", module ? ": " : "", text);
}

static void refuse_overflow(struct norms *n, size_t k, const char *module, double square)
{
    char text[80];
    if (!overflows(square)) return;
    snprintf(text, sizeof text, "its norm, %.3g, is too large for float32", sqrt(square));
    refuse(&n->out[k], module, text);
}

static void find_overflows(struct norms *n)
{
    const struct method_cohort *c = n->cohort;
    for (size_t i = 0; i < c->state.count; i++)
        for (size_t k = 0; k < c->count; k++)
            for (int kind = 0; kind < KINDS; kind++) {
                double square = n->module[kind][i * c->count + k];
                if (square < 0) continue;
                refuse_overflow(n, k, c->state.module[i].name, square);
                n->all[kind][k] += square;
            }
    for (size_t k = 0; k < c->count; k++)
        for (int kind = 0; kind < KINDS; kind++)
            refuse_overflow(n, k, NULL, n->all[kind][k]);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The median norm over members that sent something and are not refused yet; 0 where fewer than
 * `least` are left. The lower one of two middle values, so that half of the members cannot raise
 * it. */
static double median_of(struct norms *n, const double *square, size_t least)
{
    size_t count = 0;
    for (size_t k = 0; k < n->cohort->count; k++)
        if (square[k] >= 0 && !*n->out[k].why) n->sorted[count++] = square[k];
    if (count < least || count == 0) return 0;
    qsort(n->sorted, count, sizeof *n->sorted, by_value);
    return sqrt(n->sorted[(count - 1) / 2]);
}

static void refuse_larger(struct norms *n, const double *square, double bound, const char *module,
                          const char *what)
{
    char text[80];
    for (size_t k = 0; k < n->cohort->count && bound > 0; k++) {
        if (!(sqrt(square[k]) > bound)) continue;
        snprintf(text, sizeof text, "%s has norm %.4g, more than the bound, %.4g", what,
                 sqrt(square[k]), bound);
        refuse(&n->out[k], module, text);
    }
}

/* Medians are taken before anything is refused by them, so that the order of modules does not
 * matter. */
static err compare(struct norms *n, const struct method_bound_options *o)
{
    static const char *const what[KINDS] = {"its change", "its values"};
    const struct method_cohort *c = n->cohort;
    double share = 1 / sqrt((double)c->state.count), *median = NULL;
    bool few = median_of(n, n->all[CHANGE], METHOD_BOUND_LEAST) == 0;
    TRY(matrix_take(&median, c->state.count, KINDS));
    for (int kind = 0; kind < KINDS; kind++) {
        n->median[kind] = median_of(n, n->all[kind], METHOD_BOUND_LEAST);
        for (size_t i = 0; i < c->state.count; i++)
            median[kind * c->state.count + i] =
                median_of(n, &n->module[kind][i * c->count], METHOD_BOUND_LEAST);
    }
    for (int kind = 0; few && kind < KINDS; kind++)
        n->median[kind] = median_of(n, n->all[kind], 2);
    if (few && o->reference > 0) n->median[CHANGE] = o->reference;
    for (int kind = 0; kind < KINDS; kind++) {
        refuse_larger(n, n->all[kind], o->ratio * n->median[kind], NULL, what[kind]);
        for (size_t i = 0; i < c->state.count; i++) {
            double least = median[kind * c->state.count + i];
            if (least == 0) continue;
            refuse_larger(n, &n->module[kind][i * c->count],
                          o->ratio * fmax(least, n->median[kind] * share), c->state.module[i].name,
                          what[kind]);
        }
    }
    free(median);
    return ERR_NONE;
}

static err take(struct norms *n)
{
    size_t members = n->cohort->count, modules = n->cohort->state.count;
    TRY(matrix_take(&n->sorted, members + 1, 1));
    for (int kind = 0; kind < KINDS; kind++) {
        TRY(matrix_take(&n->module[kind], modules + 1, members + 1));
        TRY(matrix_take(&n->all[kind], members + 1, 1));
    }
    return ERR_NONE;
}

err method_bound(struct method_bound *out, double *median, const struct method *method,
                 const struct method_next *next, const struct method_bound_options *options)
{
    struct method_cohort c = {0};
    struct norms n = {.cohort = &c, .method = method, .out = out};
    int threads = options->threads > 0 ? options->threads : omp_get_max_threads();
    err e = ERR_NONE;
    memset(out, 0, next->count * sizeof *out);
    TRY(method_cohort_open(&c, method, next, /*memory*/ false));
    TRY_OUT(e, take(&n));
    TRY_OUT(e, lowrank_each(c.state.count, threads, measure, &n));
    find_overflows(&n);
    TRY_OUT(e, compare(&n, options));
    for (size_t k = 0; k < c.count; k++)
        out[k].norm = sqrt(n.all[CHANGE][k]);
    *median = median_of(&n, n.all[CHANGE], 1);
out:
    for (int kind = 0; kind < KINDS; kind++) {
        free(n.module[kind]);
        free(n.all[kind]);
    }
    free(n.sorted);
    method_cohort_close(&c);
    return e;
}
