#include "sim/simulate.h"

#include "base/file.h"
#include "base/log.h"
#include "base/stop.h"
#include "base/text.h"
#include "sim/cost_memory.h"
#include "sim/fairness.h"
#include "sim/federation_privacy.h"
#include "sim/folder.h"
#include "sim/page.h"
#include "sim/simulation.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- arrival ---- */

static err crash_sometimes(struct simulation *s)
{
    if (s->o->crash <= 0 || rng_unit(&s->crashes) >= s->o->crash) return ERR_NONE;
    s->crashed++;
    return federation_crash(&s->federation);
}

/* A task whose update would not be accepted is not trained: its device worked in vain. */
static err arrive(struct simulation *s, struct event *e, enum results_fate *fate)
{
    uint32_t round = e->task.round.round;
    *fate = e->drops ? RESULTS_DROPPED : RESULTS_LOST;
    if (e->drops || !federation_accepts(&s->federation, e->task.member, round)) return ERR_NONE;
    TRY(tasks_train(s, e));
    TRY(attack_update(e->done, &s->attack, s->fleet, e->task.member));
    uint32_t under_way = round_under_way(&s->federation.run->round);
    err er = federation_submit(&s->federation, &e->task, e->done, (e->at_ms - e->from_ms) / 1000);
    if (er.kind == ERR_STATE) return ERR_NONE;
    if (err_is(er)) return er;
    *fate = s->federation.refused ? RESULTS_REFUSED
            : round < under_way   ? RESULTS_LATE
                                  : RESULTS_COUNTED;
    s->now.bytes_up += e->done->size;
    return crash_sometimes(s);
}

static err note_update(struct simulation *s, const struct event *e, enum results_fate fate)
{
    const struct fleet_member *m = &s->fleet->member[e->task.member];
    bool attacks = s->attack.is[e->task.member];
    bool private = s->federation.run->config->privacy != NULL; /* then no loss is told */
    const struct pool_task *sent = fate == RESULTS_LOST || fate == RESULTS_DROPPED ? NULL : e->done;
    const struct results_update u = {
        .member = e->task.round.member,
        .round = e->task.round.round,
        .rank = e->task.round.rank,
        .examples = federation_privacy_examples(&s->federation, e->task.member),
        .from_ms = e->from_ms,
        .at_ms = e->at_ms,
        .fate = fate,
        .loss = sent && !private ? sent->result.mean_loss : NAN,
        .bytes = sent ? sent->size : 0,
        .joules =
            device_joules(&s->fleet->devices, m->device, m->id, (uint64_t[]){e->from_ms, e->at_ms}),
        .attack = attacks ? s->attack.attack->name : ""};
    s->now.joules += u.joules;
    if (e->start_ms > e->from_ms) s->now.bytes_down += e->task.down_bytes;
    s->now.updates += fate == RESULTS_COUNTED || fate == RESULTS_LATE;
    s->now.late += fate == RESULTS_LATE;
    s->now.lost += fate == RESULTS_LOST;
    s->now.dropped += fate == RESULTS_DROPPED;
    TRY(results_update(&s->results, &u));
    if (fate != RESULTS_REFUSED || attacks) return ERR_NONE;
    return err_make(ERR_STATE, "the coordinator refused the update of %s for round %u: %s",
                    u.member, u.round, s->federation.refusal);
}

static err next_event(struct simulation *s)
{
    struct event *e = &s->event[s->next]; /* stays until tasks_hand_out_next() adds one */
    enum results_fate fate = RESULTS_LOST;
    s->federation.now_ms = e->at_ms;
    err er = arrive(s, e, &fate);
    if (!err_is(er)) er = note_update(s, e, fate);
    err forgotten = fate == RESULTS_LOST ? tasks_forget(s, e) : ERR_NONE;
    if (!err_is(er)) er = forgotten;
    tasks_close(s, e);
    size_t member = e->task.member;
    s->busy[member] = false;
    s->next++;
    s->answered++;
    if (!err_is(er) && s->o->on_update) s->o->on_update(s->o->user, s->answered, s->tasks, &s->now);
    bool ends = fate == RESULTS_DROPPED || fate == RESULTS_REFUSED; /* for this round */
    return err_is(er) || ends ? er : tasks_hand_out_next(s, member);
}

/* ---- rounds ---- */

/* A run with privacy stops when its budget allows no further round, as it would when deployed. */
static bool spent(const struct simulation *s)
{
    const struct run *run = s->federation.run;
    return run->config->privacy && round_phase(&run->round) == ROUND_STOPPED;
}

static bool ended(const struct simulation *s)
{
    return round_phase(&s->federation.run->round) == ROUND_FINISHED || spent(s) || *s->stopped;
}

/* The newest state on the test set. Where members keep a part of their models, there is no common
 * one, and the mean over some members, evenly chosen, is measured. */
static err measure(struct member_evaluation *out, const struct simulation *s, size_t rows)
{
    enum { MEMBERS = 8 };
    struct federation_paths paths;
    struct member_round round;
    struct member_evaluation one, sum = {0};
    size_t members = s->fleet->members, count = members < MEMBERS ? members : MEMBERS;
    if (!s->federation.run->method->keeps) {
        federation_newest(&paths, &round, &s->federation);
        return pool_evaluate(out, s->pool, &round, &s->fleet->test, rows);
    }
    for (size_t i = 0; i < count; i++) {
        federation_model(&paths, &round, &s->federation, i * members / count);
        TRY(pool_evaluate(&one, s->pool, &round, &s->fleet->test, rows));
        sum.rows = one.rows;
        sum.loss += one.loss / (double)count;
        sum.accuracy += one.accuracy / (double)count;
    }
    *out = sum;
    return ERR_NONE;
}

static err evaluate(struct simulation *s)
{
    struct member_evaluation found = {0};
    bool last = s->now.round == s->now.rounds || spent(s);
    int64_t every = s->o->evaluate_every;
    s->now.loss = NAN;
    s->now.accuracy = -1;
    if (!s->fleet->test.count || !every || (!last && s->now.round % every)) return ERR_NONE;
    TRY(measure(&found, s, last ? 0 : (size_t)s->o->check_rows));
    s->now.loss = found.loss;
    s->now.accuracy = found.accuracy;
    return ERR_NONE;
}

/* Mean of the members' training losses, weighted by their examples; kept by the coordinator. */
static double mean_loss(const struct run *run, uint32_t round)
{
    double sum = 0, weight = 0;
    if (run->config->privacy) return NAN;
    for (size_t i = 0; i < run->round.members; i++) {
        const struct run_member *m = &run->member[i];
        if (run->round.member[i].counted_in != round) continue;
        sum += m->train_loss * (double)m->examples;
        weight += (double)m->examples;
    }
    return weight > 0 ? sum / weight : NAN;
}

static void count_anew(struct simulation *s)
{
    s->now.updates = s->now.late = s->now.lost = s->now.dropped = 0;
}

static void end_early(struct simulation *s, const struct simulate_round *r)
{
    if (!early_ends(&s->early, r->round, r->loss, r->accuracy, s->stopped)) return;
    s->early.any = false; /* the first reason stays */
}

static err published(struct simulation *s)
{
    const struct run *run = s->federation.run;
    struct federation_figures figures;
    if (run->round.published == s->published) return ERR_NONE;
    s->published = run->round.published;
    s->now.round = s->published;
    s->now.rounds = run->round.rules.rounds;
    s->now.virtual_ms = s->federation.now_ms;
    s->now.train_loss = mean_loss(run, s->published);
    s->now.state = run->newest.state.digest;
    TRY(federation_spent(&s->now.epsilon, &s->federation));
    TRY(federation_figures(&figures, &s->federation));
    s->now.error = figures.error;
    s->now.cut = figures.cut;
    s->now.combine_s = figures.combine_s;
    for (size_t i = 0; i < run->round.members; i++) /* by the norm bound, after it was counted */
        s->now.updates -= run->round.member[i].refused_in == s->published;
    TRY(evaluate(s));
    end_early(s, &s->now);
    s->now.seconds = (double)(text_now_ms() - s->began_ms) / 1000;
    s->last = s->now;
    TRY(tasks_save(s));
    TRY(results_round(&s->results, &s->now));
    if (s->o->on_round) s->o->on_round(s->o->user, &s->now);
    count_anew(s);
    return ERR_NONE;
}

/* The next thing that happens: a tick of the coordinator, or an arrival. */
static err step(struct simulation *s)
{
    const struct round *r = &s->federation.run->round;
    TRY(tasks_open_round(s));
    bool any = s->next < s->events;
    uint64_t wake = round_wake_ms(r);
    /* A deadline that has passed without a quorum stays; every update is looked at then. */
    if (wake > s->ticked_ms && (!any || wake <= s->event[s->next].at_ms)) {
        s->ticked_ms = wake;
        federation_tick(&s->federation, wake);
        return ERR_NONE;
    }
    if (any) return next_event(s);
    return err_make(ERR_STATE,
                    "round %u cannot close: %zu of %zu updates are in and no more will come; set "
                    "a quorum and a deadline",
                    round_under_way(r), round_updates(r), round_awaited(r));
}

/* Also in place of the error of a worker, which names a step of one member. */
static err interrupted(const struct round *r)
{
    return err_make(ERR_STOPPED,
                    "interrupted in round %u; the same command, without --force, continues",
                    round_under_way(r));
}

static err run_all(struct simulation *s)
{
    for (;;) {
        const struct round *r = &s->federation.run->round;
        enum round_phase phase = round_phase(r);
        TRY(published(s));
        if (ended(s)) return ERR_NONE;
        if (stop_asked) return interrupted(r);
        if (phase != ROUND_TRAINING && phase != ROUND_AGGREGATING)
            return err_make(ERR_STATE, "the run is %s: %s", round_phase_name(phase), r->reason);
        if (r->retry_at_ms)
            return err_make(ERR_MACHINE, "round %u: %s", round_under_way(r), r->reason);
        err e = step(s);
        if (err_is(e)) return stop_asked && e.kind == ERR_STOPPED ? interrupted(r) : e;
    }
}

/* ---- opening ---- */

/* The coordinator has the member's update of the round under way. */
static bool holds_update(void *context, const char *member)
{
    const struct simulation *s = context;
    const struct round *r = &s->federation.run->round;
    size_t m;
    return round_find(&m, r, member) && r->member[m].counted_in > s->published;
}

/* The counts of the round under way begin with the updates of an earlier call. */
static err open_results(struct simulation *s)
{
    const struct simulate_round *kept = &s->results.kept;
    s->results.holds = holds_update;
    s->results.context = s;
    TRY(results_open(&s->results, s->o->dir, s->published, &s->now));
    TRY(federation_start(&s->federation, s->o->dir, s->now.virtual_ms));
    s->last = s->now;
    count_anew(s);
    s->now.updates = kept->updates;
    s->now.late = kept->late;
    s->now.bytes_up += kept->bytes_up;
    return ERR_NONE;
}

/* For this process: a power cut costs a simulation only time. */
static int flush_nothing(int fd)
{
    (void)fd;
    return 0;
}

/* The rounds of earlier calls count for an early end too. The rule that the last round has met
 * before it was interrupted is met now. */
static err read_early(struct simulation *s)
{
    struct arena arena = {0};
    struct simulate_round *round = NULL;
    size_t rounds = 0;
    s->early = s->o->early;
    if (!s->early.any) return ERR_NONE;
    err e = results_read(&round, &rounds, s->o->dir, &arena);
    for (size_t i = 0; i < rounds && !err_is(e); i++)
        end_early(s, &round[i]);
    arena_close(&arena);
    return e;
}

static bool wants_fairness(const struct simulation *s)
{
    bool any = false;
    for (size_t i = 0; i < s->fleet->members; i++)
        any |= s->fleet->member[i].held_out.count > 0;
    return any && !fairness_measured(s->o->dir);
}

static err simulation_open(struct simulation *s)
{
    size_t threads =
        s->o->pool.workers > 1 ? s->o->pool.workers : (size_t)s->o->pool.engine.threads;
    log_init(LOG_ERROR, false); /* the coordinator's events are in its store */
    file_disk.fsync = flush_nothing;
    if (!(s->busy = calloc(s->fleet->members, 1))) return err_sys(ENOMEM, "simulation");
    rng_init(&s->crashes, "crashes", s->o->seed, "coordinator", 0);
    TRY(federation_check(s->fleet, s->o->config));
    TRY(cost_memory_check(&(struct cost_options){.fleet = s->fleet,
                                                 .config = s->o->config,
                                                 .method = s->o->config->method,
                                                 .precision = s->o->pool.engine.precision,
                                                 .checkpoint = s->o->checkpoint}));
    TRY(folder_check(s->fleet, s->o));
    TRY(federation_open(&s->federation, s->fleet, s->o->dir, s->o->config, threads));
    s->published = s->federation.run->round.published;
    TRY(attack_open(&s->attack, &s->o->attack, s->fleet, s->o->config->rounds));
    TRY(tasks_load(s));
    TRY(open_results(s));
    tasks_adopt(s);
    TRY(read_early(s));
    if (s->o->on_start) s->o->on_start(s->o->user, s->federation.now_ms, s->published);
    if (!ended(s)) fairness_forget(s->o->dir);
    if (ended(s) && !wants_fairness(s)) return ERR_NONE;
    struct pool_options pool = s->o->pool;
    TRY(pool_open(&s->pool, s->fleet, &pool));
    return farm_open(&s->farm, s->fleet, &pool);
}

static void simulation_close(struct simulation *s)
{
    for (size_t i = s->next; i < s->events; i++)
        tasks_close(s, &s->event[i]);
    free(s->event);
    free(s->busy);
    attack_close(&s->attack);
    farm_close(s->farm);
    pool_close(s->pool);
    results_close(&s->results);
    federation_close(&s->federation);
}

err simulate_run(struct simulate_result *out, const struct fleet *fleet,
                 const struct simulate_options *o)
{
    struct simulation s = {.fleet = fleet, .o = o, .began_ms = text_now_ms()};
    err e = simulation_open(&s);
    if (!err_is(e)) e = run_all(&s);
    if (!err_is(e)) {
        struct federation_paths paths;
        struct member_round round;
        federation_newest(&paths, &round, &s.federation);
        *out = (struct simulate_result){
            .state = s.federation.run->newest.state.digest, .last = s.last, .crashes = s.crashed};
        out->shared = s.pool ? pool_shared(s.pool) : 0;
        if (spent(&s))
            snprintf(out->stopped, sizeof out->stopped, "%s", s.federation.run->round.reason);
        else
            memcpy(out->stopped, s.stopped, sizeof s.stopped);
        snprintf(out->state_path, sizeof out->state_path, "%s", paths.state);
        e = spectrum_measure(&out->spectrum, &s.federation);
        if (!err_is(e) && wants_fairness(&s)) e = fairness_measure(o->dir, s.pool, &s.federation);
        if (!err_is(e)) e = results_end(&s.results, out, s.federation.run->config);
        if (!err_is(e)) e = page_write(o->dir);
    }
    simulation_close(&s);
    return e;
}
