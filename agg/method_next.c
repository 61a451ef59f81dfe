/* From one state and its contributions to the next; contract in method.h. */
#include "agg/method.h"
#include "agg/method_state.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

struct cohort { /* the contributions in order of member id */
    const struct contribution **member;
    double *p;
    struct adapter_file *update;
    size_t count, opened;
    struct adapter_file state, frozen;
    bool has_frozen;
    json_t *dropped;
    struct arena arena;
};

static void cohort_close(struct cohort *c)
{
    for (size_t i = 0; i < c->opened; i++)
        adapter_file_close(&c->update[i]);
    adapter_file_close(&c->state);
    adapter_file_close(&c->frozen);
    json_decref(c->dropped);
    arena_close(&c->arena);
    *c = (struct cohort){0};
}

static int by_member(const void *a, const void *b)
{
    return strcmp((*(const struct contribution *const *)a)->member,
                  (*(const struct contribution *const *)b)->member);
}

static err weigh(struct cohort *c, const struct method_next *next)
{
    double sum = 0;
    c->count = next->count;
    TRY(arena_take(&c->member, &c->arena, c->count, sizeof *c->member));
    TRY(arena_take(&c->p, &c->arena, c->count, sizeof *c->p));
    TRY(arena_take(&c->update, &c->arena, c->count, sizeof *c->update));
    for (size_t i = 0; i < c->count; i++)
        c->member[i] = &next->contribution[i];
    if (c->count) qsort(c->member, c->count, sizeof *c->member, by_member);
    for (size_t i = 0; i < c->count; i++) {
        const struct contribution *x = c->member[i];
        if (!(x->weight > 0) || !isfinite(x->weight))
            return err_make(ERR_INPUT, "member %s: weight %g, expected a number above zero",
                            x->member, x->weight);
        if (i && strcmp(c->member[i - 1]->member, x->member) == 0)
            return err_make(ERR_INPUT, "member %s has two updates in one round", x->member);
        sum += x->weight;
    }
    for (size_t i = 0; i < c->count; i++)
        c->p[i] = c->member[i]->weight / sum;
    return isfinite(sum) ? ERR_NONE : err_make(ERR_INPUT, "the weights' sum is not finite");
}

static err cohort_open(struct cohort *out, const struct method *method,
                       const struct method_next *next)
{
    struct cohort c = {0};
    err e = ERR_NONE;
    TRY_OUT(e, weigh(&c, next));
    TRY_OUT(e, adapter_file_map(&c.state, next->state_path));
    if (c.state.meta.kind != ADAPTER_FILE_STATE || strcmp(c.state.meta.method, method->name) != 0) {
        e = err_make(ERR_INPUT, "%s: expected a state of the method %s", next->state_path,
                     method->name);
        goto out;
    }
    TRY_OUT(e, method_state_dropped_parse(&c.dropped, &c.state));
    if (method->frozen && next->frozen_path) {
        TRY_OUT(e, adapter_file_map(&c.frozen, next->frozen_path));
        c.has_frozen = true;
    }
    for (; c.opened < c.count; c.opened++) {
        e = adapter_file_map(&c.update[c.opened], c.member[c.opened]->path);
        if (err_is(e)) {
            e = err_in(e, "member %s", c.member[c.opened]->member);
            goto out;
        }
    }
    *out = c;
    return ERR_NONE;
out:
    cohort_close(&c);
    return e;
}

/* ---- one module ---- */

struct scratch { /* one module of every file, all float32 */
    struct arena arena;
    struct adapter_file_module state, frozen, *copy;
    const struct adapter_file_module **update;
};

/* A copy of the module with every factor readable, its values finite. */
static err module_copy(struct adapter_file_module *out, const struct adapter_file *file,
                       const struct adapter_file_module *m, struct arena *arena)
{
    *out = *m;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        if (out->factor[r].tensor)
            TRY(adapter_file_f32(&out->factor[r].f32, &out->factor[r], arena));
    return adapter_file_check_finite(file, m);
}

static err gather(struct scratch *s, struct method_round *round, const struct cohort *c, size_t i)
{
    const char *name = c->state.module[i].name;
    TRY(arena_take(&s->copy, &s->arena, c->count, sizeof *s->copy));
    TRY(arena_take(&s->update, &s->arena, c->count, sizeof *s->update));
    TRY(module_copy(&s->state, &c->state, &c->state.module[i], &s->arena));
    for (size_t k = 0; k < c->count; k++) {
        const struct adapter_file_module *m = adapter_file_find(&c->update[k], name);
        if (!m) continue;
        TRY(module_copy(&s->copy[k], &c->update[k], m, &s->arena));
        s->update[k] = &s->copy[k];
    }
    const struct adapter_file_module *frozen =
        c->has_frozen ? adapter_file_find(&c->frozen, name) : NULL;
    if (frozen) {
        TRY(module_copy(&s->frozen, &c->frozen, frozen, &s->arena));
        round->frozen = &s->frozen;
    }
    round->module = &s->state;
    round->update = s->update;
    round->p = c->p;
    round->count = c->count;
    if (c->dropped) round->dropped = json_number_value(json_object_get(c->dropped, name));
    return ERR_NONE;
}

static void drop_pages(const struct cohort *c, size_t i)
{
    const char *name = c->state.module[i].name;
    adapter_file_drop(&c->state, &c->state.module[i]);
    for (size_t k = 0; k < c->count; k++) {
        const struct adapter_file_module *m = adapter_file_find(&c->update[k], name);
        if (m) adapter_file_drop(&c->update[k], m);
    }
    const struct adapter_file_module *frozen =
        c->has_frozen ? adapter_file_find(&c->frozen, name) : NULL;
    if (frozen) adapter_file_drop(&c->frozen, frozen);
}

static err next_module(struct method_state *state, struct method_report_row *row,
                       const struct method *method, const struct cohort *c,
                       const struct method_round *common, size_t i)
{
    struct scratch s = {0};
    struct method_result result = {0};
    struct method_round round = *common;
    const char *name = c->state.module[i].name;
    err e = ERR_NONE;
    TRY_OUT(e, gather(&s, &round, c, i));
    TRY_OUT(e, method->next(&result, &round));
    for (size_t k = 0; k < c->count; k++)
        result.row.sent += s.update[k] != NULL;
    *row = result.row;
    TRY_OUT(e, method_state_put(state, i, name, &result));
out:
    arena_close(&result.arena);
    arena_close(&s.arena);
    drop_pages(c, i);
    return e;
}

/* ---- the whole ---- */

static err sum_up(struct method_report *report, const struct method_report_row *row,
                  const struct cohort *c)
{
    struct method_report r = {.count = c->state.count};
    struct method_report_row *t = &r.total;
    TRY(arena_take(&r.row, &r.arena, r.count, sizeof *r.row));
    for (size_t i = 0; i < r.count; i++) {
        const char *name = c->state.module[i].name;
        r.row[i] = row[i];
        err e = arena_text(&r.row[i].module, &r.arena, name, strlen(name));
        if (err_is(e)) {
            method_report_close(&r);
            return e;
        }
        t->rank = row[i].rank > t->rank ? row[i].rank : t->rank;
        t->sent = row[i].sent > t->sent ? row[i].sent : t->sent;
        t->update_norm = hypot(t->update_norm, row[i].update_norm);
        t->error = hypot(t->error, row[i].error);
        t->dropped = hypot(t->dropped, row[i].dropped);
        t->state_norm = hypot(t->state_norm, row[i].state_norm);
    }
    *report = r;
    return ERR_NONE;
}

/* The part of carry_error that may be used up by the end of this round: evenly over the rounds of
 * the run; without their number, ever less of what is left. Errors of rounds add up at most. */
static double error_share(const struct method_next *next, uint32_t round)
{
    double t = round;
    if (next->rounds == 0) return next->carry_error * t / (t + 1);
    return next->carry_error * (t < next->rounds ? t / next->rounds : 1);
}

err method_next(struct method_report *report, const struct method *method, const char *path,
                const struct method_next *next)
{
    struct cohort c = {0};
    struct method_state state = {0};
    struct method_report_row *row = NULL;
    err e = ERR_NONE, failed = ERR_NONE;
    TRY(cohort_open(&c, method, next));
    const struct method_round common = {.error_share = error_share(next, c.state.meta.round),
                                        .no_report = next->no_report};
    size_t first = SIZE_MAX;
    TRY_OUT(e, arena_take(&row, &c.arena, c.state.count, sizeof *row));
    TRY_OUT(e, method_state_open(&state, path, c.state.count));
    int threads = next->threads > 0 ? next->threads : omp_get_max_threads();
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < c.state.count; i++) {
        err one = next_module(&state, &row[i], method, &c, &common, i);
#pragma omp critical(method_next)
        if (err_is(one) && i < first) { /* the same error whatever thread came first */
            failed = one;
            first = i;
        }
    }
    lowrank_end(before);
    TRY_OUT(e, failed);
    struct adapter_file_meta meta = c.state.meta;
    meta.round++;
    TRY_OUT(e, method_state_commit(&state, path, &meta));
    e = sum_up(report, row, &c);
out:
    method_state_close(&state);
    cohort_close(&c);
    return e;
}
