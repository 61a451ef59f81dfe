#include "coordinator/run/round.h"

#include <string.h>

/* A run that has made its first state has entered, also before a restart. */
static bool has_entered(const struct round *r)
{
    return !r->rules.queues || r->entered || r->started || r->starting;
}

/* The start of a round with a secret draw must not depend on the members that are present, because
 * that could reveal the draw. */
static bool may_open(const struct round *r)
{
    if (r->stage != ROUND_WAITING || !r->started || !has_entered(r)) return false;
    return r->published > r->rules.began || r->rules.secret || round_present(r) >= round_quorum(r);
}

/* Everything else is asked first, so that a run never takes a turn that it cannot use. */
bool round_wants_turn(const struct round *r)
{
    return r->rules.queues && !r->has_turn && r->hold == ROUND_WAITING && !r->retry_at_ms &&
           may_open(r);
}

/* A finished run stays finished, even if a hold was recorded before its last round was
 * published. */
enum round_phase round_phase(const struct round *r)
{
    if (r->stage == ROUND_FINISHED) return ROUND_FINISHED;
    if (r->hold != ROUND_WAITING) return r->hold;
    return !has_entered(r) || round_wants_turn(r) ? ROUND_QUEUED : r->stage;
}

const char *round_phase_name(enum round_phase phase)
{
    static const char *const names[] = {"waiting",  "training", "aggregating", "paused",
                                        "finished", "stopped",  "failed",      "queued"};
    return names[phase];
}

uint32_t round_under_way(const struct round *r)
{
    return r->published < r->rules.rounds ? r->published + 1 : r->published;
}

size_t round_updates(const struct round *r)
{
    return r->counts.updates[0];
}

/* A time near the end of the clock saturates. */
static uint64_t add_time(uint64_t time, uint64_t more)
{
    return more > UINT64_MAX - time ? UINT64_MAX : time + more;
}

/* A secret draw knows no grace: the end of a round must not depend on its updates. */
static uint64_t grace_ends(const struct round *r)
{
    bool runs = r->rules.grace_ms && r->quorum_at_ms && !r->rules.secret;
    return runs ? add_time(r->quorum_at_ms, r->rules.grace_ms) : 0;
}

/* 0 is no time. */
static uint64_t earlier(uint64_t a, uint64_t b)
{
    if (!a || !b) return a ? a : b;
    return a < b ? a : b;
}

/* The earlier of both, as an operator expects who gives a deadline and a grace. */
uint64_t round_closes_ms(const struct round *r)
{
    return earlier(r->deadline_at_ms, grace_ends(r));
}

/* While held or finished, time changes nothing, so no tick is needed. A retry comes before the
 * deadline because a deadline cannot close the round while the work fails. */
uint64_t round_wake_ms(const struct round *r)
{
    if (r->hold != ROUND_WAITING || r->stage == ROUND_FINISHED) return 0;
    if (r->retry_at_ms) return r->retry_at_ms;
    if (r->stage != ROUND_TRAINING) return 0;
    return earlier(r->skip_at_ms, round_closes_ms(r));
}

size_t round_present(const struct round *r)
{
    return r->counts.present;
}

/* ---- counters ---- */

/* Adds (sign 1) or subtracts (sign -1) one member's part. Every change of a member's fields comes
 * between a call with -1 and a call with 1. An update may count in the round after the one under
 * way, if it is late and comes while the round is being aggregated. */
static void count_member(struct round_counts *c, const struct round *r, size_t member, int sign)
{
    const struct round_member *m = &r->member[member];
    size_t one = sign > 0 ? 1 : SIZE_MAX; /* -1 of an unsigned number */
    uint32_t under_way = round_under_way(r);
    for (uint32_t k = 0; k < 2; k++) {
        if (m->counted_in == under_way + k) c->updates[k] += one;
        if (m->admitting == under_way + k) c->admitting[k] += one;
    }
    if (m->joined && m->seen_ms && !m->gone) c->present += one;
    bool is_in = m->counted_in >= under_way;
    bool is_left = m->gone || m->excused_in == under_way || m->skipped_in == under_way;
    if (m->not_drawn || (!is_in && is_left)) return;
    c->drawn += one;
    if (!is_in && m->refused_in == under_way) c->refused += one;
}

struct round_counts round_recount(const struct round *r)
{
    struct round_counts c = {0};
    for (size_t i = 0; i < r->members; i++)
        count_member(&c, r, i, 1);
    return c;
}

/* The stage follows from what is durable. A round that was opened but not published is training
 * again, because its updates are rows of the store, and ROUND_ON_BEGIN closes it once more if they
 * are complete. Members may be restored before or after this call, because it counts them all. */
void round_restore(struct round *r, const struct round_restored *was)
{
    REQUIRE(was->published <= r->rules.rounds);
    r->shapes_known = was->shapes_known;
    r->started = was->started;
    r->published = was->published;
    r->opened = was->opened > was->published ? was->opened : was->published;
    r->hold = was->hold;
    snprintf(r->reason, sizeof r->reason, "%s", was->reason ? was->reason : "");
    if (was->published == r->rules.rounds)
        r->stage = ROUND_FINISHED;
    else if (r->opened > r->published)
        r->stage = ROUND_TRAINING; /* ROUND_ON_BEGIN sets a new deadline */
    r->counts = round_recount(r);  /* another round is under way than before */
}

/* The fields about the current connection (seen_ms, task_round, step) are not restored, because the
 * member's next calls set them. */
void round_restore_member(struct round *r, size_t member, const struct round_member *was)
{
    struct round_member *m = &r->member[member];
    count_member(&r->counts, r, member, -1);
    m->joined = was->joined;
    m->trained_round = was->trained_round;
    m->counted_in = was->counted_in;
    m->digest = was->digest;
    m->evaluates = was->evaluates;
    m->evaluated = was->evaluated;
    m->gone = was->gone;
    m->refused_in = was->refused_in;
    m->excused_in = was->excused_in;
    memcpy(m->refusal, was->refusal, sizeof m->refusal);
    count_member(&r->counts, r, member, 1);
}

/* Opening a round, and opening it again after a restart or a pause. The deadline is counted from
 * now, so that members get the whole time. A deadline near the end of the clock saturates. After a
 * start all members are silent, so none is skipped before it had the time to call. */
static unsigned open_round(struct round *r, uint64_t now)
{
    uint64_t called = add_time(r->began_ms, r->rules.absent_ms);
    r->stage = ROUND_TRAINING;
    r->opened = r->published + 1;
    r->opened_ms = now;
    r->deadline_at_ms = r->rules.deadline_ms ? add_time(now, r->rules.deadline_ms) : 0;
    r->quorum_at_ms = 0;
    r->skip_at_ms = !r->rules.skips_absent ? 0 : called > now ? called : now;
    return ROUND_DO_OPEN | ROUND_DO_WAKE;
}

/* Once for a round, when it opens. A member that leaves later is waited for until the deadline,
 * because it may be training. One whose update is being checked is there. */
static void skip_absent(struct round *r, uint64_t now)
{
    r->skip_at_ms = 0;
    for (size_t i = 0; i < r->members; i++) {
        struct round_member *m = &r->member[i];
        bool absent = !m->seen_ms || (now > m->seen_ms && now - m->seen_ms > r->rules.absent_ms);
        if (absent && !m->admitting) m->skipped_in = round_under_way(r);
    }
    r->counts = round_recount(r);
}

/* The draw belongs to one round: `drawn_for` keeps the draw of an earlier round from being used. */
void round_draw(struct round *r, const bool *drawn, bool by_chance)
{
    REQUIRE(r->rules.drawn && r->opened == round_under_way(r));
    for (size_t i = 0; i < r->members; i++)
        r->member[i].not_drawn = !drawn[i];
    r->drawn_for = r->opened;
    r->by_chance = by_chance;
    r->counts = round_recount(r);
}

size_t round_awaited(const struct round *r)
{
    return r->counts.drawn;
}

static size_t smaller(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* Members that are gone or excused make the whole of a cohort, or of all members, smaller. */
size_t round_quorum(const struct round *r)
{
    size_t all = r->counts.drawn;
    if (r->rules.quorum) return r->rules.quorum;
    if (r->rules.cohort) all = round_is_drawn(r) ? smaller(r->rules.cohort, all) : r->rules.cohort;
    return all ? all : 1;
}

/* Without a deadline and a grace there is nothing to wait for once the quorum is in. */
size_t round_wanted(const struct round *r)
{
    bool waits = r->rules.secret || r->deadline_at_ms || r->rules.grace_ms;
    if (!waits) return round_quorum(r);
    size_t all = r->counts.drawn - r->counts.refused;
    return r->rules.cohort ? smaller(r->rules.cohort, all) : all;
}

/* Without drawing, every member takes part in every round. */
bool round_is_drawn(const struct round *r)
{
    return !r->rules.drawn || r->drawn_for == round_under_way(r);
}

/* An update that is being made durable has been accepted for this round, so the round waits for
 * its receipt or refusal in every case. */
static bool can_close(const struct round *r, uint64_t now)
{
    size_t updates = round_updates(r);
    uint64_t until = round_closes_ms(r);
    bool past = until && now >= until;
    if (!round_is_drawn(r) || r->counts.admitting[0] > 0) return false;
    /* If members are left out by chance, closing early would reveal who was drawn. */
    if (r->rules.secret) return past || (!r->by_chance && updates == r->members);
    return updates >= round_quorum(r) && (past || updates >= round_wanted(r));
}

/* The grace begins with the quorum, and again if an update is taken out of the round. */
static void watch_quorum(struct round *r, uint64_t now)
{
    bool complete = round_is_drawn(r) && round_updates(r) >= round_quorum(r);
    if (!complete)
        r->quorum_at_ms = 0;
    else if (!r->quorum_at_ms)
        r->quorum_at_ms = now;
}

/* Called after every event: takes the run as far as it can go now. Each step asks for at most
 * one piece of work, and `starting` or the stage remember that it was asked for, so no event
 * asks twice. */
static unsigned settle(struct round *r, uint64_t now)
{
    unsigned todo = 0;
    if (r->hold != ROUND_WAITING || r->stage == ROUND_FINISHED) return 0;
    if (r->retry_at_ms) {
        if (now < r->retry_at_ms) return 0;
        r->retry_at_ms = 0;
        r->reason[0] = 0;
        if (r->stage == ROUND_AGGREGATING) return ROUND_DO_AGGREGATE; /* once more */
    }
    if (!r->started) {
        if (!r->shapes_known || r->starting || !has_entered(r)) return 0;
        r->starting = true;
        return ROUND_DO_START;
    }
    if (may_open(r) && !round_wants_turn(r)) todo |= open_round(r, now);
    if (r->stage != ROUND_TRAINING) return todo;
    if (r->skip_at_ms && now >= r->skip_at_ms) skip_absent(r, now);
    watch_quorum(r, now);
    if (can_close(r, now)) {
        r->stage = ROUND_AGGREGATING;
        todo |= ROUND_DO_AGGREGATE | ROUND_DO_WAKE;
    }
    return todo;
}

/* The next round is opened by settle(), not here, because a hold may forbid it. */
static unsigned published(struct round *r)
{
    REQUIRE(r->stage == ROUND_AGGREGATING && r->published < r->rules.rounds);
    uint32_t closed = round_under_way(r);
    r->published++;
    if (round_under_way(r) != closed) r->counts = round_recount(r); /* else it is finished */
    r->deadline_at_ms = r->retry_at_ms = r->quorum_at_ms = r->skip_at_ms = 0;
    r->has_turn = false;
    r->stage = r->published == r->rules.rounds ? ROUND_FINISHED : ROUND_WAITING;
    return r->stage == ROUND_FINISHED ? ROUND_DO_END | ROUND_DO_WAKE : 0;
}

/* Decisions about a member, not calls of it. */
static bool is_about(enum round_event_kind kind)
{
    return kind == ROUND_ON_DAMAGE || kind == ROUND_ON_UNFIT || kind == ROUND_ON_EXCUSE ||
           kind == ROUND_ON_LEAVE || kind == ROUND_ON_RETURN;
}

static void about_member(struct round *r, struct round_member *m, const struct round_event *event)
{
    switch (event->kind) {
    case ROUND_ON_DAMAGE:
        if (digest_equal(&m->digest, &event->digest)) m->counted_in = m->trained_round = 0;
        break;
    case ROUND_ON_UNFIT:
        if (digest_equal(&m->digest, &event->digest)) m->counted_in = m->trained_round = 0;
        m->refused_in = round_under_way(r);
        snprintf(m->refusal, sizeof m->refusal, "%s", event->reason ? event->reason : "");
        break;
    case ROUND_ON_EXCUSE:
        if (m->counted_in == round_under_way(r)) m->counted_in = m->trained_round = 0;
        snprintf(m->refusal, sizeof m->refusal, "an operator dropped it");
        m->excused_in = m->refused_in = round_under_way(r);
        break;
    case ROUND_ON_LEAVE:
    case ROUND_ON_RETURN:
        m->gone = event->kind == ROUND_ON_LEAVE;
        break;
    case ROUND_ON_FAILING:
        if (event->round != round_under_way(r) || m->refused_in == event->round) break;
        m->failing_in = event->round;
        snprintf(m->refusal, sizeof m->refusal, "%s", event->reason ? event->reason : "");
        break;
    case ROUND_ON_EVALUATED:
        if (event->round > m->evaluated) m->evaluated = event->round;
        break;
    default:
        break;
    }
}

/* Every call of a member shows that it is alive. Fields are changed only between the two calls
 * of count_member(). */
static void member_event(struct round *r, const struct round_event *event)
{
    struct round_member *m = &r->member[event->member];
    struct round_place place = {0};
    count_member(&r->counts, r, event->member, -1);
    if (!is_about(event->kind)) m->seen_ms = event->now_ms;
    switch (event->kind) {
    case ROUND_ON_HELLO:
        m->joined = true;
        break;
    case ROUND_ON_TASK:
        /* The progress it reported was that of an earlier round. */
        if (m->task_round != round_under_way(r)) m->step = m->steps = 0;
        m->task_round = round_under_way(r);
        break;
    case ROUND_ON_STEP:
        if (event->round != m->task_round) break; /* a late report */
        m->step = event->step;
        m->steps = event->steps;
        break;
    case ROUND_ON_ADMIT:
        /* The owner judged it in this same turn of the loop, so the answer cannot have changed. */
        REQUIRE(!err_is(round_judge(&place, r, event->member, event->round, &event->digest)));
        REQUIRE(!place.have);
        m->admitting = place.counted_in;
        m->admitting_trained = event->round;
        m->admitting_digest = event->digest;
        break;
    case ROUND_ON_RECEIPT:
        REQUIRE(m->admitting > 0);
        m->trained_round = m->admitting_trained;
        m->counted_in = m->admitting;
        m->digest = m->admitting_digest;
        m->admitting = 0;
        break;
    case ROUND_ON_REFUSAL:
        m->admitting = 0;
        break;
    default:
        about_member(r, m, event);
        break;
    }
    count_member(&r->counts, r, event->member, 1);
}

/* A hold stops the next step, but not work in progress. An aggregation under way is still
 * published. A stopped run cannot be resumed. */
static unsigned hold_event(struct round *r, const struct round_event *event)
{
    bool ended = r->stage == ROUND_FINISHED || r->hold == ROUND_STOPPED;
    if (ended) return 0;
    switch (event->kind) {
    case ROUND_ON_PAUSE:
        if (r->hold == ROUND_FAILED) return 0;
        r->hold = ROUND_PAUSED;
        snprintf(r->reason, sizeof r->reason, "%s", event->reason ? event->reason : "");
        return ROUND_DO_WAKE;
    case ROUND_ON_STOP:
        r->hold = ROUND_STOPPED;
        if (event->reason) snprintf(r->reason, sizeof r->reason, "%s", event->reason);
        return ROUND_DO_WAKE | ROUND_DO_END;
    default:
        break;
    }
    if (r->hold == ROUND_WAITING) return 0;
    /* Resume. Failed work is asked for again, and a paused round gets its whole deadline back. */
    if (r->hold == ROUND_FAILED && r->stage == ROUND_AGGREGATING) r->stage = ROUND_TRAINING;
    r->hold = ROUND_WAITING;
    r->reason[0] = 0;
    /* Without ROUND_DO_OPEN: the opening is durable already. */
    if (r->stage == ROUND_TRAINING) return open_round(r, event->now_ms) & ~(unsigned)ROUND_DO_OPEN;
    return ROUND_DO_WAKE;
}

/* Trouble keeps the stage, so that settle() asks for the same work again after retry_ms. A
 * failure holds the run until an operator resumes it. */
static unsigned work_event(struct round *r, const struct round_event *event)
{
    const char *reason = event->reason ? event->reason : "";
    switch (event->kind) {
    case ROUND_ON_STARTED:
        r->started = true;
        r->starting = false;
        return 0;
    case ROUND_ON_PUBLISHED:
        return published(r);
    case ROUND_ON_TROUBLE:
        r->starting = false;
        r->retry_at_ms = event->now_ms + r->rules.retry_ms;
        snprintf(r->reason, sizeof r->reason, "%s", reason);
        return 0;
    default:
        r->starting = false;
        if (r->hold == ROUND_STOPPED) return 0; /* it has ended already */
        r->hold = ROUND_FAILED;
        snprintf(r->reason, sizeof r->reason, "%s", reason);
        return ROUND_DO_END | ROUND_DO_WAKE;
    }
}

unsigned round_apply(struct round *r, const struct round_event *event)
{
    unsigned todo = 0;
    REQUIRE(event->now_ms > 0 && event->member < r->members);
    switch (event->kind) {
    case ROUND_ON_BEGIN:
        r->began_ms = event->now_ms;
        if (r->stage == ROUND_TRAINING && r->hold == ROUND_WAITING)
            todo = open_round(r, event->now_ms);
        break;
    case ROUND_ON_TICK:
        break;
    case ROUND_ON_ENTER:
        r->entered = true;
        break;
    case ROUND_ON_TURN:
        r->has_turn = true;
        break;
    case ROUND_ON_SHAPES:
        r->shapes_known = true;
        break;
    case ROUND_ON_STARTED:
    case ROUND_ON_PUBLISHED:
    case ROUND_ON_TROUBLE:
    case ROUND_ON_FAILURE:
        todo = work_event(r, event);
        break;
    case ROUND_ON_PAUSE:
    case ROUND_ON_RESUME:
    case ROUND_ON_STOP:
        todo = hold_event(r, event);
        break;
    case ROUND_ON_REOPEN:
        if (r->stage == ROUND_AGGREGATING)
            todo = open_round(r, event->now_ms) & ~(unsigned)ROUND_DO_OPEN;
        break;
    case ROUND_ON_RECOUNT:
        if (r->stage == ROUND_AGGREGATING) r->stage = ROUND_TRAINING;
        todo = ROUND_DO_WAKE;
        break;
    default:
        member_event(r, event);
        if (event->kind >= ROUND_ON_UNFIT && event->kind <= ROUND_ON_RETURN) todo = ROUND_DO_WAKE;
        break;
    }
    return todo | settle(r, event->now_ms);
}
