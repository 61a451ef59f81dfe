/* One module of many adapters, and a budget of bytes over all modules; contract in combine.h. */
#include "agg/algebra/budget.h"
#include "agg/combine/combine_parts.h"
#include "agg/round/method_gram.h"
#include "agg/round/method_measure.h"

#include <math.h>
#include <stdlib.h>

/* With more adapters than this, the pages of a module's factors are dropped after each use. */
enum { HELD_ADAPTERS = 4 };

struct work {
    const struct combine *c;
    const char *name;
    struct arena arena;               /* factors widened to float32 */
    struct adapter_file_module *copy; /* (file_count) all float32 */
    const struct adapter_file_module *
        *present;  /* (file_count); NULL: the adapter lacks the module */
    size_t *owner; /* (terms) the adapter of each */
    uint32_t rank_most;
    double *d; /* (d_out) combine_dora.c; NULL: no adapter has magnitudes */
    struct lowrank_term *term;
    struct lowrank_stack stack;
};

static void term_done(void *context, size_t term)
{
    const struct work *w = context;
    adapter_file_drop(&w->c->file[w->owner[term]]);
}

static void member_done(const struct method_round *round, size_t k)
{
    const struct combine *c = round->files;
    adapter_file_drop(&c->file[k]);
}

static err work_open(struct work *w, const struct combine *c, size_t i)
{
    size_t n = c->file_count;
    w->c = c;
    w->name = c->module[i].name;
    TRY(arena_take(&w->copy, &w->arena, n, sizeof *w->copy));
    TRY(arena_take(&w->present, &w->arena, n, sizeof *w->present));
    TRY(arena_take(&w->owner, &w->arena, n, sizeof *w->owner));
    TRY(arena_take(&w->term, &w->arena, n, sizeof *w->term));
    w->stack =
        (struct lowrank_stack){.m = c->module[i].d_out, .n = c->module[i].d_in, .term = w->term};
    if (n > HELD_ADAPTERS) {
        w->stack.done = term_done;
        w->stack.context = w;
    }
    if (c->dora) TRY(arena_take(&w->d, &w->arena, w->stack.m, sizeof *w->d));
    for (uint32_t row = 0; c->dora && row < w->stack.m; row++)
        w->d[row] = 1;
    for (size_t k = 0; k < n; k++) {
        const struct adapter_file_module *m = adapter_file_find(&c->file[k], c->module[i].name);
        const struct combine_dora_term dora = {.p = c->p[k], .arena = &w->arena};
        if (!m || !m->rank) continue;
        w->copy[k] = *m;
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++)
            TRY(adapter_file_f32(&w->copy[k].factor[r].f32, &m->factor[r], &w->arena));
        TRY(adapter_file_check_finite(&c->file[k], &w->copy[k]));
        if (m->magnitude.tensor) TRY(combine_dora_scale(&w->copy[k], w->d, c, i, &dora));
        if (n > HELD_ADAPTERS) adapter_file_drop(&c->file[k]);
        if (m->rank > w->rank_most) w->rank_most = m->rank;
        w->present[k] = &w->copy[k];
        w->owner[w->stack.count] = k;
        w->term[w->stack.count++] =
            (struct lowrank_term){.c = c->p[k] * m->scale,
                                  .B = w->copy[k].factor[ADAPTER_FILE_B].f32,
                                  .A = w->copy[k].factor[ADAPTER_FILE_A].f32,
                                  .r = m->rank};
    }
    return ERR_NONE;
}

static void work_close(struct work *w)
{
    for (size_t k = 0; w->c && k < w->c->file_count; k++)
        adapter_file_drop(&w->c->file[k]);
    arena_close(&w->arena);
}

/* The same check as in the next() of such methods (methods_check_scale()). */
static err one_scale(const struct work *w, const struct method *method)
{
    const struct adapter_file_module *first = NULL;
    for (size_t k = 0; k < w->c->file_count; k++) {
        const struct adapter_file_module *m = w->present[k];
        if (!m) continue;
        if (!first) first = m;
        if (m->rank != first->rank || fabs(m->scale - first->scale) > 1e-9 * first->scale)
            return err_make(ERR_INPUT,
                            "%s: module %s: rank %u at scale %g, expected rank %u at scale %g: "
                            "%s needs one for all (flora gives the same sum of any)",
                            w->c->file[k].path, m->name, m->rank, m->scale, first->rank,
                            first->scale, method->name);
    }
    return ERR_NONE;
}

/* The exact sum, recompressed. A module that adds nothing keeps rank 1, all zero. */
static err product(struct method_result *out, const struct work *w, const struct lowrank_cut *cut)
{
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail, rounding = 0;
    float *A, *B;
    err e = ERR_NONE;
    TRY(lowrank_svd_open(&svd, &w->stack, w->stack.count));
    lowrank_cut(&q, &tail, &svd, cut);
    /* Adapters that cancel: the sum is zero up to its rounding. */
    if (svd.norm <= svd.noise) svd.norm = tail = 0;
    uint32_t rank = q ? q : 1;
    TRY_OUT(e, method_result_take(&B, out, ADAPTER_FILE_B, svd.m, rank));
    TRY_OUT(e, method_result_take(&A, out, ADAPTER_FILE_A, rank, svd.n));
    TRY_OUT(e, lowrank_split(B, A, &rounding, &svd, q, LOWRANK_BALANCED));
    out->module.rank = rank;
    out->module.alpha = rank;
    out->module.scale = 1;
    out->row =
        (struct method_report_row){.rank = rank,
                                   .update_norm = svd.norm,
                                   .error = hypot(tail, rounding),
                                   .dropped = tail,
                                   .state_norm = sqrt(fmax(0, svd.norm * svd.norm - tail * tail))};
out:
    lowrank_svd_close(&svd);
    return e;
}

/* ||S||_F from Gram products, which are fast, but useless for terms that cancel. */
static err stack_norm(double *out, const struct lowrank_stack *s)
{
    double square, one, largest = 0;
    TRY(lowrank_inner(&square, s, s));
    for (size_t k = 0; k < s->count; k++) {
        struct lowrank_stack term = {.m = s->m, .n = s->n, .term = &s->term[k], .count = 1};
        TRY(lowrank_inner(&one, &term, &term));
        largest = fmax(largest, one);
    }
    if (square < 1e-6 * largest) return lowrank_norm(out, s);
    *out = sqrt(square);
    return ERR_NONE;
}

/* The stack itself, the same as PEFT's "cat". */
static err stacked(struct method_result *out, const struct work *w)
{
    size_t total = lowrank_total(&w->stack);
    float *A, *B;
    double norm;
    if (total > LIMIT_RANK)
        return err_make(ERR_INPUT, "module %s: a stack of rank %zu, expected at most %d", w->name,
                        total, LIMIT_RANK);
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, w->stack.m, (uint32_t)total));
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, (uint32_t)total, w->stack.n));
    lowrank_pair(B, A, &w->stack);
    TRY(stack_norm(&norm, &w->stack));
    out->module.rank = out->row.rank = (uint32_t)total;
    out->module.alpha = (double)total;
    out->module.scale = 1;
    out->row.update_norm = out->row.state_norm = norm;
    return ERR_NONE;
}

/* A round from an adapter of zeros, of the largest rank among the adapters. */
static err round_of(struct method_round *out, struct adapter_file_module *zero, struct work *w)
{
    float *none;
    for (size_t k = 0; k < w->c->file_count && !zero->name; k++)
        if (w->present[k] && w->present[k]->rank == w->rank_most) *zero = *w->present[k];
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
        struct adapter_file_factor *x = &zero->factor[r];
        TRY(arena_take(&none, &w->arena, (size_t)x->rows * x->cols, sizeof *none));
        *x = (struct adapter_file_factor){.f32 = none, .rows = x->rows, .cols = x->cols};
    }
    *out = (struct method_round){.module = zero,
                                 .number = 1,
                                 .update = w->present,
                                 .p = w->c->p,
                                 .count = w->c->file_count,
                                 .options = &w->c->options,
                                 .server_lr = 1,
                                 .done = w->stack.done ? member_done : NULL,
                                 .files = w->c};
    return ERR_NONE;
}

static err factors(struct method_result *out, struct work *w, const struct method *method)
{
    struct adapter_file_module zero = {0};
    struct method_round round;
    TRY(round_of(&round, &zero, w));
    TRY(method->next(out, &round));
    out->module.alpha = zero.alpha;
    out->module.scale = zero.scale;
    return method_measure(&out->row, &(struct method_measure){
                                         .method = method, .round = &round, .made = &out->module});
}

err combine_gram(double *gram, const struct combine *c, const struct combine_options *o, size_t i)
{
    struct work w = {0};
    struct adapter_file_module zero = {0};
    struct method_round round;
    err e = work_open(&w, c, i);
    if (!err_is(e)) e = round_of(&round, &zero, &w);
    if (!err_is(e)) e = method_gram(gram, &round, o->method);
    work_close(&w);
    return e;
}

err combine_module(struct method_result *out, const struct combine *c,
                   const struct combine_options *o, size_t i, uint32_t rank_max)
{
    struct work w = {0};
    struct lowrank_cut cut = c->cut;
    if (rank_max) cut.rank_max = rank_max;
    err e = work_open(&w, c, i);
    if (c->cut_to_sent) cut.rank_max = w.rank_most;
    if (!err_is(e) && o->method->carries && !o->method->mixed_ranks) e = one_scale(&w, o->method);
    if (!err_is(e))
        e = c->stack                  ? stacked(out, &w)
            : combine_sums(o->method) ? product(out, &w, &cut)
                                      : factors(out, &w, o->method);
    if (!err_is(e) && c->dora) e = combine_dora_result(out, c, i, w.d);
    out->row.sent = (uint32_t)w.stack.count;
    out->row.module = c->report.row[i].module;
    work_close(&w);
    return e;
}

/* ---- a budget of bytes over all modules ---- */

/* *sigma is malloc'd; NULL on failure. */
static err spectrum(struct budget_module *out, double **sigma, const struct combine *c, size_t i)
{
    struct work w = {0};
    struct lowrank_svd svd = {0};
    err e = work_open(&w, c, i);
    if (!err_is(e)) e = lowrank_svd_open(&svd, &w.stack, 0);
    if (!err_is(e)) {
        *sigma = svd.sigma;
        svd.sigma = NULL;
        /* a module that adds nothing is written with rank 1 too */
        *out = (struct budget_module){.m = svd.m, .n = svd.n, .k = svd.k, .sigma = *sigma};
    }
    lowrank_svd_close(&svd);
    work_close(&w);
    return e;
}

err combine_spend(uint32_t *rank, const struct combine *c, int threads)
{
    struct arena arena = {0};
    struct budget_module *module;
    double **sigma = NULL;
    err e = ERR_NONE, failed = ERR_NONE;
    size_t first = SIZE_MAX;
    TRY_OUT(e, arena_take(&module, &arena, c->count, sizeof *module));
    TRY_OUT(e, arena_take(&sigma, &arena, c->count, sizeof *sigma));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < c->count; i++) {
        err one = spectrum(&module[i], &sigma[i], c, i);
#pragma omp critical(combine_spend)
        if (err_is(one) && i < first) {
            failed = one;
            first = i;
        }
    }
    e = failed;
    if (!err_is(e)) e = budget_spend(rank, module, c->count, c->bytes);
out:
    for (size_t i = 0; sigma && i < c->count; i++)
        free(sigma[i]);
    arena_close(&arena);
    return e;
}
