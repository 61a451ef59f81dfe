/* From one state and its contributions to the next; contract in method.h. */
#include "agg/method_options.h"
#include "agg/method_state.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

/* So many members' factors of a module may stay in memory until the module is done. */
enum { HELD_MEMBERS = 4 };

struct sent { /* one module of one update; rank 0: not sent */
    uint32_t rank;
    double scale;
    const float *value[3]; /* A, B, R in the map; NULL: not sent */
};

/* An update, open: its map and what is in it, and no more. Many are open at once. */
struct update {
    struct file_map map;
    struct sent *module; /* (state modules) */
};

struct cohort { /* the contributions in order of member id */
    const struct contribution **member;
    double *p;
    struct update *update;
    size_t count, opened;
    struct adapter_file state, frozen;
    bool has_frozen;
    struct method_options options;
    json_t *dropped;
    struct arena arena;
};

static void cohort_close(struct cohort *c)
{
    for (size_t i = 0; i < c->opened; i++)
        file_map_close(&c->update[i].map);
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

/* Keeps the map and where the factors lie; the rest of an open file is let go. */
static err update_open(struct update *out, struct cohort *c, const char *path)
{
    struct adapter_file file = {0};
    struct update u = {0};
    err e = ERR_NONE;
    TRY(adapter_file_map(&file, path));
    TRY_OUT(e, arena_take(&u.module, &c->arena, c->state.count, sizeof *u.module));
    for (size_t i = 0; i < c->state.count; i++) {
        const struct adapter_file_module *state = &c->state.module[i];
        const struct adapter_file_module *m = adapter_file_find(&file, state->name);
        if (!m) continue;
        if ((m->d_out && m->d_out != state->d_out) || (m->d_in && m->d_in != state->d_in)) {
            e = err_make(ERR_INPUT, "%s: module %s is not of the state's shape", path, m->name);
            goto out;
        }
        u.module[i] = (struct sent){.rank = m->rank, .scale = m->scale};
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_R; r++) {
            if (m->factor[r].tensor && !m->factor[r].f32) {
                e = err_make(ERR_INPUT, "%s: tensor %s: expected aligned F32", path,
                             m->factor[r].tensor->name);
                goto out;
            }
            u.module[i].value[r] = m->factor[r].f32;
        }
    }
    u.map = file.tensors.map;
    file.tensors.map = (struct file_map){0};
    *out = u;
out:
    adapter_file_close(&file);
    return e;
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
    TRY_OUT(e, method_options_read(&c.options, method, c.state.meta.options));
    TRY_OUT(e, method_state_dropped_parse(&c.dropped, &c.state));
    if (method->frozen && next->frozen_path) {
        TRY_OUT(e, adapter_file_map(&c.frozen, next->frozen_path));
        c.has_frozen = true;
    }
    for (; c.opened < c.count; c.opened++) {
        e = update_open(&c.update[c.opened], &c, c.member[c.opened]->path);
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

/* A copy of the module with every factor readable. */
static err module_copy(struct adapter_file_module *out, const struct adapter_file_module *m,
                       struct arena *arena)
{
    *out = *m;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        if (out->factor[r].tensor)
            TRY(adapter_file_f32(&out->factor[r].f32, &out->factor[r], arena));
    return ERR_NONE;
}

static void sent_shapes(uint32_t rows[3], uint32_t cols[3], const struct adapter_file_module *state,
                        uint32_t rank)
{
    rows[ADAPTER_FILE_A] = rows[ADAPTER_FILE_R] = rank;
    cols[ADAPTER_FILE_B] = cols[ADAPTER_FILE_R] = rank;
    cols[ADAPTER_FILE_A] = state->d_in;
    rows[ADAPTER_FILE_B] = state->d_out;
}

static void view_sent(struct adapter_file_module *out, const struct adapter_file_module *state,
                      const struct sent *sent)
{
    uint32_t rows[3], cols[3];
    sent_shapes(rows, cols, state, sent->rank);
    *out = (struct adapter_file_module){.name = state->name,
                                        .d_out = state->d_out,
                                        .d_in = state->d_in,
                                        .rank = sent->rank,
                                        .scale = sent->scale};
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_R; r++)
        if (sent->value[r])
            out->factor[r] = (struct adapter_file_factor){
                .f32 = sent->value[r], .rows = rows[r], .cols = cols[r]};
}

/* The whole map goes, not the module's part: the kernel brings in pages around those asked for, and
 * by how much is its own affair (whole folios of megabytes since Linux 6). What another thread is
 * reading comes back from the page cache. */
static void done_with(const struct method_round *round, size_t k)
{
    const struct cohort *c = round->files;
    file_map_drop(&c->update[k].map, 0, c->update[k].map.size);
}

static err gather(struct scratch *s, struct method_round *round, const struct cohort *c, size_t i)
{
    const char *name = c->state.module[i].name;
    TRY(arena_take(&s->copy, &s->arena, c->count, sizeof *s->copy));
    TRY(arena_take(&s->update, &s->arena, c->count, sizeof *s->update));
    TRY(module_copy(&s->state, &c->state.module[i], &s->arena));
    for (size_t k = 0; k < c->count; k++) {
        if (!c->update[k].module[i].rank) continue;
        view_sent(&s->copy[k], &s->state, &c->update[k].module[i]);
        s->update[k] = &s->copy[k];
    }
    const struct adapter_file_module *frozen =
        c->has_frozen ? adapter_file_find(&c->frozen, name) : NULL;
    if (frozen) {
        TRY(module_copy(&s->frozen, frozen, &s->arena));
        round->frozen = &s->frozen;
    }
    round->module = &s->state;
    round->update = s->update;
    round->p = c->p;
    round->count = c->count;
    if (c->count > HELD_MEMBERS) round->done = done_with;
    round->files = c;
    if (c->dropped) round->dropped = json_number_value(json_object_get(c->dropped, name));
    return ERR_NONE;
}

static void drop_pages(const struct cohort *c)
{
    file_map_drop(&c->state.tensors.map, 0, c->state.tensors.map.size);
    if (c->has_frozen) file_map_drop(&c->frozen.tensors.map, 0, c->frozen.tensors.map.size);
    for (size_t k = 0; k < c->count; k++)
        file_map_drop(&c->update[k].map, 0, c->update[k].map.size);
}

static err check_factors(const struct adapter_file_module *m)
{
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
        const struct adapter_file_factor *x = &m->factor[r];
        char name[LIMIT_TENSOR_NAME_BYTES];
        size_t n = (size_t)x->rows * x->cols, bad = x->f32 ? adapter_file_first_bad(x->f32, n) : n;
        if (bad == n) continue;
        adapter_file_tensor_name(name, m->name, (enum adapter_file_role)r);
        return err_make(ERR_INPUT, "tensor %s: value %zu is %s, expected finite numbers", name, bad,
                        isnan(x->f32[bad]) ? "NaN" : "infinite");
    }
    return ERR_NONE;
}

/* Values were finite when they were admitted. They are looked at again only where the result is
 * not: this says whose fault it is. */
static err blame(const struct scratch *s, const struct cohort *c, err otherwise)
{
    for (size_t k = 0; k < c->count; k++) {
        err e = s->update[k] ? check_factors(s->update[k]) : ERR_NONE;
        if (err_is(e)) return err_in(e, "member %s", c->member[k]->member);
    }
    err e = check_factors(&s->state);
    return err_is(e) ? err_in(e, "%s", c->state.path) : otherwise;
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
    e = method->next(&result, &round);
    if (!err_is(e)) {
        result.module.name = name;
        e = check_factors(&result.module);
    }
    if (err_is(e)) {
        e = blame(&s, c, e);
        goto out;
    }
    for (size_t k = 0; k < c->count; k++)
        result.row.sent += s.update[k] != NULL;
    *row = result.row;
    TRY_OUT(e, method_state_put(state, i, name, &result));
out:
    arena_close(&result.arena);
    arena_close(&s.arena);
    drop_pages(c);
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
    const struct method_round common = {.number =
                                            c.state.meta.round - method_setup_rounds(&c.options),
                                        .error_share = error_share(next, c.state.meta.round),
                                        .no_report = next->no_report,
                                        .options = &c.options,
                                        .server_lr = 1};
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
