#include "sim/cost_rounds.h"

#include "coordinator/run/run_config.h"
#include "coordinator/run/run_draw.h"
#include "coordinator/run/run_privacy.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The task of a client that was handed out and is not over. */
struct task {
    uint64_t at_ms;    /* its end */
    uint64_t start_ms; /* the time at which the device is on and asks for it */
    uint64_t down;     /* bytes that it then fetches */
    uint32_t round;    /* 0: the client is free */
    bool drops;        /* it ends without a result */
    bool has_frozen;   /* of the client: it has fetched the frozen factors */
};
struct arrival {
    uint64_t at_ms;
    size_t member;
};
struct walk {
    const struct cost_rounds *r;
    struct cost *c;
    struct task *task;       /* (members) */
    bool *drawn;             /* (members) for this round; all without a cohort */
    struct arrival *arrival; /* (members) of results, in the order in which they come */
    uint64_t *ms;            /* durations of all tasks */
    size_t arrivals, timed;
    uint64_t *carried, *ranks; /* (modules) of the carry; of all clients, in one round */
    size_t *adapting;          /* (modules) clients that adapt it */
    uint64_t state_bytes, now_ms;
    ptrdiff_t closer; /* the member whose result closed the last round; -1: its deadline did */
    double clients;   /* handed out, all rounds */
    double up, down, tokens, lost; /* totals */
    struct arena arena;
};

/* ---- sizes ---- */

static err sum_ranks(struct walk *w)
{
    const struct cost_files *f = w->r->files;
    uint64_t cohort = (uint64_t)w->r->config->cohort + w->r->config->over_select, largest = 0;
    TRY(arena_take(&w->carried, &w->arena, f->count, sizeof *w->carried));
    TRY(arena_take(&w->ranks, &w->arena, f->count, sizeof *w->ranks));
    TRY(arena_take(&w->adapting, &w->arena, f->count, sizeof *w->adapting));
    for (size_t i = 0; i < w->r->fleet->members; i++)
        for (size_t k = 0; k < f->count; k++) {
            if (!member_round_adapts(&w->r->round[i], f->module[k].name)) continue;
            w->ranks[k] += w->r->round[i].rank;
            w->adapting[k]++;
            if (w->r->round[i].rank > largest) largest = w->r->round[i].rank;
        }
    for (size_t k = 0; k < f->count && cohort; k++) {
        if (w->adapting[k] > cohort) w->adapting[k] = cohort;
        if (w->ranks[k] > cohort * largest) w->ranks[k] = cohort * largest;
    }
    return ERR_NONE;
}

/* After a round of training. All clients that may take part count, with the ranks of the largest
 * if they are drawn. */
static bool grow_carry(struct walk *w)
{
    const struct cost_files *f = w->r->files;
    bool grown = false;
    for (size_t k = 0; k < f->count; k++) {
        const struct method_module *m = &f->module[k];
        uint64_t most = m->d_out < m->d_in ? m->d_out : m->d_in, before = w->carried[k];
        w->carried[k] += cost_files_carry(f, w->ranks[k], w->adapting[k]);
        if (w->carried[k] > most) w->carried[k] = most;
        grown = grown || w->carried[k] != before;
    }
    return grown;
}

static void widen(struct cost_range *range, uint64_t value)
{
    if (value > range->most) range->most = value;
    if (value < range->least) range->least = value;
}

/* The updates of one round. The table shows the round in which the most is sent. */
static err size_updates(struct walk *w, uint32_t round)
{
    const struct cost_rounds *r = w->r;
    struct cost_range trained = {UINT64_MAX, 0}, up = {UINT64_MAX, 0};
    struct method_task task;
    uint64_t sent = 0, bytes = 0;
    method_task(&task, r->files->method, r->options, round);
    for (size_t i = 0; i < r->fleet->members; i++) {
        struct cost_size size;
        r->round[i].round = round;
        r->round[i].trains = task.trains;
        r->round[i].gradient = task.gradient;
        TRY(cost_files_update(&size, r->files, &r->round[i]));
        widen(&trained, size.values);
        widen(&up, size.bytes);
        if (!size_add(&sent, sent, size.values) || !size_add(&bytes, bytes, size.bytes))
            return err_make(ERR_LIMIT, "the updates of round %u are larger than can be counted",
                            round);
    }
    if (sent < w->c->sent) return ERR_NONE;
    w->c->trained = trained;
    w->c->up = up;
    w->c->sent = sent;
    w->c->spool_bytes = bytes;
    return ERR_NONE;
}

/* ---- time ---- */

static int by_size(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* A simulation counts a download when its task begins at once, or else when the task ends. */
static void count_download(struct walk *w, struct task *t, double share)
{
    w->down += share * (double)t->down;
    t->down = 0;
}

static err hand_out(struct walk *w, size_t i, uint32_t round, double share)
{
    const struct cost_rounds *r = w->r;
    const struct fleet_member *m = &r->fleet->member[i];
    struct task *t = &w->task[i];
    struct cost_size up;
    TRY(cost_files_update(&up, r->files, &r->round[i]));
    bool fetches = w->c->frozen.bytes && round > method_setup_rounds(r->options) && !t->has_frozen;
    const struct device_work work = {.member = m->id,
                                     .round = round,
                                     .tokens = cost_rounds_tokens(r->config, r->training, m),
                                     .down_bytes =
                                         w->state_bytes + (fetches ? w->c->frozen.bytes : 0),
                                     .up_bytes = up.bytes,
                                     .from_ms = w->now_ms};
    uint64_t ms = device_ms(&t->drops, &r->fleet->devices, m->device, &work);
    if (r->vanishes[i] == round) t->drops = true;
    t->at_ms = w->now_ms + ms;
    t->start_ms = device_start_ms(&r->fleet->devices, m->device, m->id, w->now_ms);
    t->round = round;
    t->down = w->state_bytes + (fetches && share == 1 ? w->c->frozen.bytes : 0);
    if (fetches && share == 1) t->has_frozen = true;
    w->ms[w->timed++] = ms;
    w->clients += share;
    if (t->start_ms == w->now_ms) count_download(w, t, share);
    return ERR_NONE;
}

/* Results that are not too late count in this round; clients with others give up when it opens. A
 * device that was off has not asked for its task yet, so it gets one of this round. */
static bool still_busy(const struct walk *w, size_t member, uint32_t round)
{
    const struct task *t = &w->task[member];
    bool after = (ptrdiff_t)member > w->closer; /* of two ends at one time */
    if (!t->round || t->start_ms > w->now_ms) return false;
    if (t->drops) return t->at_ms > w->now_ms || (t->at_ms == w->now_ms && after);
    return round - t->round <= run_config_late_rounds(w->r->config);
}

static void draw(struct walk *w, uint32_t round)
{
    const Fedlora__V1__RunConfig *c = w->r->config;
    const struct run_draw_cohort of = {.members = w->r->fleet->members,
                                       .count = c->cohort + c->over_select,
                                       .seed = c->seed,
                                       .round = round};
    if (c->cohort)
        run_draw_cohort(w->drawn, &of);
    else
        memset(w->drawn, true, of.members);
}

/* At one time the member with the smaller number is first. */
static int by_arrival(const void *a, const void *b)
{
    const struct arrival *x = a, *y = b;
    if (x->at_ms != y->at_ms) return x->at_ms < y->at_ms ? -1 : 1;
    return x->member < y->member ? -1 : 1;
}

/* The arrivals before this time; the coordinator looks at a deadline before it takes an update. */
static size_t before(const struct walk *w, uint64_t ms)
{
    size_t n = 0;
    while (n < w->arrivals && w->arrival[n].at_ms < ms)
        n++;
    return n;
}

/* The end of a round, and the number of arrivals that count: coordinator/run/round.h. 0: it never
 * ends. A round with a secret draw ends at its deadline, but where all members take part. */
static uint64_t round_end(size_t *count, const struct walk *w, double share)
{
    const Fedlora__V1__RunConfig *c = w->r->config;
    size_t awaited = c->cohort ? c->cohort : w->r->fleet->members;
    uint64_t deadline = c->deadline_ms ? w->now_ms + c->deadline_ms : 0;
    if (c->grace_ms && c->quorum && w->arrivals >= c->quorum) {
        uint64_t grace = w->arrival[c->quorum - 1].at_ms + c->grace_ms;
        if (!deadline || grace < deadline) deadline = grace;
    }
    size_t in_time = deadline ? before(w, deadline) : w->arrivals;
    bool early = c->quorum && c->quorum < awaited && !deadline;
    *count = awaited;
    if (share == 1 && in_time >= awaited && !early) return w->arrival[awaited - 1].at_ms;
    *count = in_time;
    if (run_privacy_central(c)) return deadline;
    *count = c->quorum ? c->quorum : awaited;
    if (w->arrivals < *count) return 0;
    if (!c->quorum || !deadline || in_time < c->quorum) return w->arrival[*count - 1].at_ms;
    *count = in_time;
    return deadline;
}

/* Results that have arrived by the end count, the others are on their way. */
static err close_round(struct walk *w, uint64_t end, size_t count, double share)
{
    memset(w->drawn, false, w->r->fleet->members); /* now those whose results count */
    for (size_t i = 0; i < count; i++)
        w->drawn[w->arrival[i].member] = true;
    for (size_t i = 0; i < w->r->fleet->members; i++) {
        struct task *t = &w->task[i];
        struct cost_size up;
        if (!t->round) continue;
        if (t->drops && t->at_ms < end) count_download(w, t, share);
        if (!w->drawn[i]) continue;
        count_download(w, t, share);
        TRY(cost_files_update(&up, w->r->files, &w->r->round[i]));
        w->up += share * (double)up.bytes;
        const struct fleet_member *m = &w->r->fleet->member[i];
        w->tokens += share * (double)cost_rounds_tokens(w->r->config, w->r->training, m);
        t->round = 0;
    }
    w->now_ms = end;
    return ERR_NONE;
}

static err time_round(struct walk *w, uint32_t round)
{
    const struct cost_rounds *r = w->r;
    double share = run_privacy_sampling(r->config, r->options, round);
    size_t count = 0;
    w->arrivals = 0;
    draw(w, round);
    for (size_t i = 0; i < r->fleet->members; i++) {
        struct task *t = &w->task[i];
        if (!still_busy(w, i, round)) {
            if (t->round) w->lost += share;
            if (t->round && t->start_ms <= w->now_ms) count_download(w, t, share);
            t->round = 0;
            bool gone = r->vanishes[i] && r->vanishes[i] < round;
            if (w->drawn[i] && !gone) TRY(hand_out(w, i, round, share));
        }
        if (t->round && !t->drops) w->arrival[w->arrivals++] = (struct arrival){t->at_ms, i};
    }
    qsort(w->arrival, w->arrivals, sizeof *w->arrival, by_arrival);
    uint64_t end = round_end(&count, w, share);
    if (end) {
        bool by_result = count && w->arrival[count - 1].at_ms == end;
        w->closer = by_result ? (ptrdiff_t)w->arrival[count - 1].member : -1;
        return close_round(w, end, count, share);
    }
    return err_make(ERR_STATE,
                    "round %u can never close: %zu of %zu updates arrive; set a quorum and a "
                    "deadline",
                    round, w->arrivals,
                    r->config->cohort ? (size_t)r->config->cohort : r->fleet->members);
}

uint64_t cost_rounds_tokens(const Fedlora__V1__RunConfig *config,
                            const struct training_options *training, const struct fleet_member *m)
{
    double sampling = run_privacy_local(config) ? config->privacy->sampling : 0;
    if (m->data.count) return fleet_task_tokens(training, sampling, m->data.count, m->data.tokens);
    return fleet_task_tokens(training, 0, 1, (uint64_t)training->seq);
}

/* ---- the whole ---- */

/* The size of a state changes with its carry, in the first rounds, and with the digits of its
 * number. */
static err size_state(struct walk *w, struct cost_size *size, uint32_t round, bool changed)
{
    bool digits = false;
    for (uint32_t ten = 10; ten <= LIMIT_ROUNDS; ten *= 10)
        digits = digits || round == ten;
    if (changed || digits || round <= method_setup_rounds(w->r->options) + 2)
        TRY(cost_files_state(size, w->r->files, round, w->carried));
    return ERR_NONE;
}

static err walk_rounds(struct walk *w, uint32_t timed)
{
    struct cost_size state = {0};
    uint32_t setup = method_setup_rounds(w->r->options);
    bool changed = true, alone = w->r->files->method->carries;
    for (uint32_t round = 1; round <= w->c->rounds; round++) {
        TRY(size_state(w, &state, round, changed));
        if (round == 1) w->c->first = state;
        w->state_bytes = state.bytes;
        if (round <= timed || round <= setup + 2) TRY(size_updates(w, round));
        if (round <= timed) TRY(time_round(w, round));
        changed = alone && round > setup && grow_carry(w);
    }
    w->c->last = state;
    return size_state(w, &w->c->result, w->c->rounds + 1, true);
}

static err to_count(uint64_t *out, double value)
{
    if (!(value < 0x1p63)) return err_make(ERR_LIMIT, "the totals are larger than can be counted");
    *out = (uint64_t)(value + 0.5);
    return ERR_NONE;
}

/* Members are drawn anew in each round, so this is the mean number that is ever drawn. */
static double ever_drawn(const struct walk *w)
{
    const struct cost_rounds *r = w->r;
    double never = 1, share = run_privacy_sampling(r->config, r->options, w->c->rounds);
    if (share == 1) return 0; /* counted member by member */
    for (uint32_t i = method_setup_rounds(r->options); i < w->c->rounds && never > 1e-12; i++)
        never *= 1 - share;
    return (double)r->fleet->members * (1 - never);
}

static err sum_up(struct walk *w, uint32_t timed)
{
    double more = (double)w->c->rounds / timed;
    qsort(w->ms, w->timed, sizeof *w->ms, by_size);
    w->c->p50_ms = w->ms[w->timed / 2];
    w->c->p95_ms = w->ms[(size_t)((double)(w->timed - 1) * 0.95)];
    w->c->clients = w->clients / timed;
    if (w->r->config->cohort || run_privacy_central(w->r->config)) { /* else all of them */
        double part = w->c->clients / (double)w->r->fleet->members;
        TRY(to_count(&w->c->spool_bytes, (double)w->c->spool_bytes * part));
        TRY(to_count(&w->c->sent, (double)w->c->sent * part));
    }
    TRY(to_count(&w->c->up_total, w->up * more));
    TRY(to_count(&w->c->down_total, w->down * more + ever_drawn(w) * (double)w->c->frozen.bytes));
    TRY(to_count(&w->c->tokens, w->tokens * more));
    TRY(to_count(&w->c->lost, w->lost * more));
    return to_count(&w->c->virtual_ms, (double)w->now_ms * more);
}

err cost_rounds(struct cost *cost, const struct cost_rounds *r)
{
    struct walk w = {.r = r, .c = cost, .now_ms = 1};
    size_t members = r->fleet->members;
    uint32_t timed = COST_ROUNDS_TASKS / (uint32_t)members + 1;
    err e;
    if (timed > cost->rounds) timed = cost->rounds;
    if (!r->fleet->member[0].data.count && !r->training->steps)
        return err_make(ERR_INPUT, "--steps is missing: without --data a round has no length");
    TRY_OUT(e, arena_take(&w.task, &w.arena, members, sizeof *w.task));
    TRY_OUT(e, arena_take(&w.drawn, &w.arena, members, sizeof *w.drawn));
    TRY_OUT(e, arena_take(&w.arrival, &w.arena, members, sizeof *w.arrival));
    TRY_OUT(e, arena_take(&w.ms, &w.arena, members * timed, sizeof *w.ms));
    TRY_OUT(e, sum_ranks(&w));
    TRY_OUT(e, walk_rounds(&w, timed));
    e = sum_up(&w, timed);
out:
    arena_close(&w.arena);
    return e;
}
