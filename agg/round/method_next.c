/* From one state and its contributions to the next; contract in method.h. */
#include "agg/round/method_budget.h"
#include "agg/round/method_cohort.h"
#include "agg/round/method_robust.h"
#include "agg/round/method_server.h"
#include "agg/round/method_setup.h"
#include "agg/round/method_state.h"
#include "base/digest.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

struct work { /* a round being closed */
    const struct method *method;
    struct method_cohort cohort;
    struct method_round round; /* fields that are the same for every module */
    double carry_error;
    uint32_t *rank_max; /* (state modules) of a budget of bytes; NULL: none */
    double *norm;       /* (members) norms from a robust rule; NULL: no such rule */
    struct method_report_row *row;
    struct method_state state, frozen, memory; /* being made */
    bool makes_frozen, makes_memory;
    char frozen_digest[DIGEST_TEXT_BYTES], memory_digest[DIGEST_TEXT_BYTES];
};

/* No member sent this module, so its factors stay as they were, bit by bit. */
static void keep_module(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *m = round->module;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        method_result_keep(out, m, (enum adapter_file_role)r);
    out->module.rank = m->rank;
    out->module.carry_rank = m->carry_rank;
    out->row.rank = m->carry_rank > m->rank ? m->carry_rank : m->rank;
    out->dropped = round->dropped;
}

static err learn_module(struct work *w, struct method_result *result,
                        const struct method_round *round, size_t i)
{
    const char *name = w->cohort.state.module[i].name;
    struct method_round own = *round;
    struct method_memory memory = {0};
    err e = ERR_NONE;
    TRY_OUT(e, method_memory_open(&memory, &own, &w->cohort, w->method));
    if (result->row.sent)
        TRY_OUT(e, w->method->next(result, &own));
    else
        keep_module(result, &own);
    if (result->row.sent && w->makes_memory && !w->method->averages)
        TRY_OUT(e, method_memory_add(&memory, &own, w->method, w->carry_error));
    if (w->makes_memory) TRY_OUT(e, method_memory_put(&w->memory, i, name, &memory));
out:
    method_memory_close(&memory);
    return e;
}

static err find_basis(struct work *w, struct method_result *result,
                      const struct method_round *round, size_t i)
{
    const struct adapter_file_meta *meta = &w->cohort.state.meta;
    const struct method_setup setup = {
        .method = w->method, .round = meta->round, .rank = meta->rank};
    struct method_result frozen = {0};
    err e = method_setup_next(result, &frozen, round, &setup);
    if (!err_is(e) && w->makes_frozen)
        e = method_state_put(&w->frozen, i, w->cohort.state.module[i].name, &frozen);
    arena_close(&frozen.arena);
    return e;
}

static err next_module(void *context, size_t i)
{
    struct work *w = context;
    struct method_view view = {0};
    struct method_result result = {0};
    struct method_round round = w->round;
    const struct method_cohort *c = &w->cohort;
    const char *name = c->state.module[i].name;
    err e = ERR_NONE;
    if (w->rank_max) round.rank_max = w->rank_max[i];
    TRY(method_view_open(&view, &round, c, i));
    for (size_t k = 0; k < c->count; k++)
        result.row.sent += view.update[k] != NULL;
    e = c->task.gradient ? find_basis(w, &result, &round, i) : learn_module(w, &result, &round, i);
    if (!err_is(e)) { /* also finite updates can overflow float32 together */
        result.module.name = name;
        e = method_view_finite(&result.module);
    }
    if (err_is(e)) {
        e = method_view_blame(&view, c, e);
        goto out;
    }
    w->row[i] = result.row; /* a place of its own for each module, so no lock is needed */
    TRY_OUT(e, method_state_put(&w->state, i, name, &result));
out:
    arena_close(&result.arena);
    method_view_close(&view, c);
    return e;
}

/* ---- the whole ---- */

static err sum_up(struct method_report *report, const struct work *w)
{
    const struct method_cohort *c = &w->cohort;
    const struct method_report_row *row = w->row;
    struct method_report r = {.count = c->state.count, .measured = c->task.gradient};
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
    }
    *report = r;
    return ERR_NONE;
}

/* The part of carry_error that may be used up by the end of round t: t/N of it, or t/(t+1) if the
 * number of rounds N is not known. By the triangle inequality the error of all rounds together is
 * at most the sum of theirs. */
static double error_share(const struct method_next *next, uint32_t round)
{
    double t = round;
    if (next->rounds == 0) return next->carry_error * t / (t + 1);
    return next->carry_error * (t < next->rounds ? t / next->rounds : 1);
}

/* Applies a robust rule to the members' weights, before anything is summed. */
static err weigh(struct work *w, int threads)
{
    struct method_cohort *c = &w->cohort;
    bool by_value =
        c->options.robust == METHOD_ROBUST_MEDIAN || c->options.robust == METHOD_ROBUST_TRIMMED;
    if (c->options.robust == METHOD_ROBUST_NONE || by_value || c->task.gradient) return ERR_NONE;
    TRY(arena_take(&w->norm, &c->arena, c->count, sizeof *w->norm));
    return method_robust_weigh(c->p, w->norm, c, w->method, threads);
}

static err list_members(struct method_report *report, const struct work *w)
{
    const struct method_cohort *c = &w->cohort;
    if (!w->norm) return ERR_NONE;
    TRY(arena_take(&report->member, &report->arena, c->count, sizeof *report->member));
    for (size_t k = 0; k < c->count; k++) {
        struct method_report_member *m = &report->member[k];
        const char *name = c->member[k]->member;
        *m = (struct method_report_member){.weight = c->p[k], .norm = w->norm[k]};
        TRY(arena_text(&m->member, &report->arena, name, strlen(name)));
    }
    report->member_count = c->count;
    return ERR_NONE;
}

/* Opens the files to be written before any work, so that a missing path fails at once. */
static err open_files(struct work *w, const char *path, const struct method_next *next)
{
    const struct method_cohort *c = &w->cohort;
    size_t count = c->state.count;
    w->makes_memory = c->options.server != METHOD_SERVER_NONE && !c->task.gradient;
    w->makes_frozen = c->task.gradient && c->state.meta.round == method_setup_rounds(&c->options);
    if (w->makes_frozen && !next->frozen_out)
        return err_make(ERR_INPUT, "no path is given for the frozen factors of this round");
    TRY(method_state_open(&w->state, path, count));
    if (w->makes_frozen) TRY(method_state_open(&w->frozen, next->frozen_out, count));
    return w->makes_memory ? method_state_open(&w->memory, next->memory_out, 2 * count) : ERR_NONE;
}

static err commit_one(char digest_out[DIGEST_TEXT_BYTES], struct method_state *s, const char *path,
                      const struct adapter_file_meta *meta)
{
    struct digest digest;
    TRY(method_state_commit(s, path, meta));
    TRY(digest_of_file(&digest, path));
    digest_text(digest_out, &digest);
    return ERR_NONE;
}

/* The state is written last, because it names the others by digest: a crash in between leaves the
 * old state and files that no state names. */
static err commit_files(struct work *w, const char *path, const struct method_next *next)
{
    struct adapter_file_meta meta = w->cohort.state.meta;
    w->makes_memory = w->makes_memory && w->memory.scratch.size > 0;
    if (w->makes_frozen) {
        const struct adapter_file_meta frozen = {
            .kind = ADAPTER_FILE_FROZEN, .base = meta.base, .rank = meta.rank, .alpha = meta.rank};
        TRY(commit_one(w->frozen_digest, &w->frozen, next->frozen_out, &frozen));
        meta.frozen = w->frozen_digest;
    }
    meta.round++;
    if (w->makes_memory) {
        const struct adapter_file_meta memory = {.kind = ADAPTER_FILE_MEMORY,
                                                 .run = meta.run,
                                                 .method = meta.method,
                                                 .round = meta.round};
        TRY(commit_one(w->memory_digest, &w->memory, next->memory_out, &memory));
        meta.memory = w->memory_digest;
    }
    return method_state_commit(&w->state, path, &meta);
}

err method_next(struct method_report *report, const struct method *method, const char *path,
                const struct method_next *next)
{
    int threads = next->threads > 0 ? next->threads : omp_get_max_threads();
    struct method_report made = {0};
    struct work w = {.method = method, .carry_error = next->carry_error};
    struct method_cohort *c = &w.cohort;
    err e = ERR_NONE;
    TRY(method_cohort_open(c, method, next, /*memory*/ true));
    w.round =
        (struct method_round){.number = c->state.meta.round - method_setup_rounds(&c->options),
                              .error_share = error_share(next, c->state.meta.round),
                              .options = &c->options,
                              .server_lr = 1};
    TRY_OUT(e, arena_take(&w.row, &c->arena, c->state.count, sizeof *w.row));
    TRY_OUT(e, open_files(&w, path, next));
    TRY_OUT(e, weigh(&w, threads));
    TRY_OUT(e, method_budget(&w.rank_max, method, c, &w.round, threads));
    TRY_OUT(e, lowrank_each(w.cohort.state.count, threads, next_module, &w));
    TRY_OUT(e, sum_up(&made, &w));
    TRY_OUT(e, list_members(&made, &w));
    TRY_OUT(e, commit_files(&w, path, next));
    made.memory_made = w.makes_memory;
    made.frozen_made = w.makes_frozen;
    *report = made;
    made = (struct method_report){0};
out:
    method_report_close(&made);
    method_state_close(&w.state);
    method_state_close(&w.frozen);
    method_state_close(&w.memory);
    method_cohort_close(c);
    return e;
}
