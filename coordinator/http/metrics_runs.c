/* Metrics of runs. */
#include "coordinator/http/metrics_read.h"

#include <math.h>

/* Of all runs, not only those with series of their own. */
err metrics_read_runs(struct metrics_out *out, const struct facts *f)
{
    size_t count[ROUND_PHASES] = {0};
    for (const struct run *run = f->serve->runs; run; run = run->next)
        count[round_phase(&run->round)]++;
    for (int i = 0; i < ROUND_PHASES; i++)
        TRY(METRICS_SAMPLE(out, count[i], round_phase_name((enum round_phase)i)));
    return ERR_NONE;
}

/* Calls `value` for each run with series of its own; NaN: it has none. With `open` only for open
 * runs. */
static err each_run(struct metrics_out *out, double (*value)(const struct run *), bool open)
{
    for (size_t i = 0; i < out->runs; i++)
        if (!open || !serve_is_over(out->run[i]))
            TRY(METRICS_SAMPLE(out, value(out->run[i]), out->run[i]->config->name));
    return ERR_NONE;
}

/* One sample for a run, so that `on(run)` of an alert joins it with the run's other series. */
err metrics_read_phase(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    for (size_t i = 0; i < out->runs; i++)
        if (!serve_is_over(out->run[i]))
            TRY(METRICS_SAMPLE(out, 1, out->run[i]->config->name,
                               round_phase_name(round_phase(&out->run[i]->round))));
    return ERR_NONE;
}

/* Small functions instead of offsets, because most figures are computed. */
static double round_of(const struct run *run)
{
    return round_under_way(&run->round);
}
err metrics_read_round(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, round_of, true);
}

static double rounds_of(const struct run *run)
{
    return run->round.rules.rounds;
}
err metrics_read_rounds(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, rounds_of, true);
}

/* 0 before the start has opened the run. */
static double progress_of(const struct run *run)
{
    return run->progress_ms ? (double)(run->progress_ms / 1000) : NAN;
}
err metrics_read_progress(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, progress_of, true);
}

/* A secret round always closes at its deadline. */
err metrics_read_overdue(struct metrics_out *out, const struct facts *f)
{
    for (size_t i = 0; i < out->runs; i++) {
        const struct round *r = &out->run[i]->round;
        if (serve_is_over(out->run[i])) continue;
        bool late = round_phase(r) == ROUND_TRAINING && r->deadline_at_ms && !r->rules.secret &&
                    f->now_ms > r->deadline_at_ms && round_updates(r) < round_quorum(r);
        TRY(METRICS_SAMPLE(out, late ? (f->now_ms - r->deadline_at_ms) / 1000 : 0,
                           out->run[i]->config->name));
    }
    return ERR_NONE;
}

/* In a secret round the number of members that are still to come is that of the drawn ones. */
static double awaited_of(const struct run *run)
{
    const struct round *r = &run->round;
    if (r->rules.secret) return NAN;
    size_t all = round_awaited(r), updates = round_updates(r);
    if (round_phase(r) != ROUND_TRAINING) return 0;
    return (double)(all > updates ? all - updates : 0);
}
err metrics_read_awaited(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, awaited_of, true);
}

/* A mean over few members is close to the loss of one of them, and no budget counts it. */
static double loss_of(const struct run *run)
{
    return run->config->privacy || !run->round.published ? NAN : run->loss_newest;
}
err metrics_read_loss(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, loss_of, true);
}

/* A run without privacy has no budget, which is not a budget of 0. */
static double budget_of(const struct run *run)
{
    return run->config->privacy ? run->config->privacy->epsilon : NAN;
}
err metrics_read_budget(struct metrics_out *out, const struct facts *f)
{
    (void)f;
    return each_run(out, budget_of, true);
}

/* From the ledgers in the store, so only for open runs. Of members' own ledgers the largest. */
err metrics_read_epsilon(struct metrics_out *out, const struct facts *f)
{
    struct arena arena = {0};
    err e = ERR_NONE;
    for (size_t i = 0; i < out->runs; i++) {
        const struct run *run = out->run[i];
        const char *member = NULL;
        double spent = 0;
        if (!run->config->privacy || serve_is_over(run)) continue;
        if (run_privacy_local(run->config))
            e = store_copies_spent(&spent, &member, f->serve->shop.store, run->id, &arena);
        else
            e = store_ledger_spent(&spent, f->serve->shop.store, run->id);
        if (!err_is(e)) e = METRICS_SAMPLE(out, spent, run->config->name);
        if (err_is(e)) break;
    }
    arena_close(&arena);
    return e;
}

static bool is_shown(const struct metrics_out *out, const struct run *run)
{
    for (size_t i = 0; i < out->runs; i++)
        if (out->run[i] == run) return true;
    return false;
}

/* From the store, so this counter does not begin again with the process. */
static double published_of(const struct run *run)
{
    return run->round.published;
}
/* A run that moves to "other" takes its rounds along, which looks like rounds closed at once; the
 * sum over all series stays right. */
err metrics_read_rounds_total(struct metrics_out *out, const struct facts *f)
{
    double others = 0;
    TRY(each_run(out, published_of, false));
    for (const struct run *run = f->serve->runs; run; run = run->next)
        if (!is_shown(out, run)) others += published_of(run);
    return others > 0 ? METRICS_SAMPLE(out, others, "other") : ERR_NONE;
}

/* All three outcomes, so that the first refusal is an increase from 0. */
static err updates_samples(struct metrics_out *out, const char *name, const uint64_t count[3])
{
    TRY(METRICS_SAMPLE(out, count[0], name, "counted"));
    TRY(METRICS_SAMPLE(out, count[1], name, "late"));
    return METRICS_SAMPLE(out, count[2], name, "refused");
}

/* Since the start of the coordinator: rates over a restart are what Prometheus makes of counters
 * that begin again. */
err metrics_read_updates(struct metrics_out *out, const struct facts *f)
{
    uint64_t others[3] = {0};
    for (const struct run *run = f->serve->runs; run; run = run->next) {
        const uint64_t count[3] = {run->updates_counted, run->updates_late, run->updates_refused};
        if (is_shown(out, run)) {
            TRY(updates_samples(out, run->config->name, count));
            continue;
        }
        for (int i = 0; i < 3; i++)
            others[i] += count[i];
    }
    return others[0] + others[1] + others[2] ? updates_samples(out, "other", others) : ERR_NONE;
}
