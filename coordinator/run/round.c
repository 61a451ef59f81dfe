#include "coordinator/run/round.h"

#include <stdlib.h>
#include <string.h>

/* Sorted by id, so that round_find() can search by halves and every restart gives a member the
 * same index. */
static int member_compare(const void *a, const void *b)
{
    return strcmp(((const struct round_member *)a)->id, ((const struct round_member *)b)->id);
}

/* A quorum of 0 is replaced by the number of members, or of the cohort, here, so that no later code
 * needs the special case. */
err round_init(struct round *out, const struct round_rules *rules, const char *const *id,
               size_t ids)
{
    if (ids == 0 || ids > LIMIT_POPULATION)
        return err_make(ERR_INPUT, "a run needs 1 to %d members, not %zu", LIMIT_POPULATION, ids);
    if (rules->quorum > ids)
        return err_make(ERR_INPUT, "quorum %u is more than the %zu members", rules->quorum, ids);
    if (rules->cohort > ids)
        return err_make(ERR_INPUT, "cohort %u is more than the %zu members", rules->cohort, ids);
    if (rules->rounds == 0 || rules->rounds > LIMIT_ROUNDS)
        return err_make(ERR_INPUT, "rounds: %u, expected 1 to %d", rules->rounds, LIMIT_ROUNDS);
    struct round_member *member = calloc(ids, sizeof *member);
    if (!member) return err_make(ERR_MACHINE, "no memory for %zu members", ids);
    for (size_t i = 0; i < ids; i++) {
        REQUIRE(strlen(id[i]) < sizeof member[i].id);
        memcpy(member[i].id, id[i], strlen(id[i]) + 1);
    }
    qsort(member, ids, sizeof *member, member_compare);
    for (size_t i = 1; i < ids; i++) {
        if (strcmp(member[i - 1].id, member[i].id)) continue;
        err e = err_make(ERR_INPUT, "member %s is named twice", member[i].id);
        free(member);
        return e;
    }
    *out =
        (struct round){.rules = *rules, .members = ids, .member = member, .stage = ROUND_WAITING};
    if (out->rules.quorum == 0) out->rules.quorum = rules->cohort ? rules->cohort : (uint32_t)ids;
    out->counts = round_recount(out);
    return ERR_NONE;
}

void round_close(struct round *r)
{
    free(r->member);
    *r = (struct round){0};
}

bool round_find(size_t *member, const struct round *r, const char *id)
{
    size_t low = 0, high = r->members;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(r->member[middle].id, id);
        if (order == 0) {
            *member = middle;
            return true;
        }
        if (order < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return false;
}

/* A finished run stays finished, even if a hold was recorded before its last round was
 * published. */
enum round_phase round_phase(const struct round *r)
{
    if (r->stage == ROUND_FINISHED) return ROUND_FINISHED;
    return r->hold != ROUND_WAITING ? r->hold : r->stage;
}

const char *round_phase_name(enum round_phase phase)
{
    static const char *const names[] = {"waiting",  "training", "aggregating", "paused",
                                        "finished", "stopped",  "failed"};
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

/* While held or finished, time changes nothing, so no tick is needed. A retry comes before the
 * deadline because a deadline cannot close the round while the work fails. */
uint64_t round_wake_ms(const struct round *r)
{
    if (r->hold != ROUND_WAITING || r->stage == ROUND_FINISHED) return 0;
    return r->retry_at_ms ? r->retry_at_ms : r->stage == ROUND_TRAINING ? r->deadline_at_ms : 0;
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
    if (m->joined && m->seen_ms) c->present += one;
    if (!m->not_drawn) c->drawn += one;
}

struct round_counts round_recount(const struct round *r)
{
    struct round_counts c = {0};
    for (size_t i = 0; i < r->members; i++)
        count_member(&c, r, i, 1);
    return c;
}

/* Called when the next round becomes the one under way. */
static void shift_counts(struct round_counts *c)
{
    c->updates[0] = c->updates[1];
    c->admitting[0] = c->admitting[1];
    c->updates[1] = c->admitting[1] = 0;
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
    count_member(&r->counts, r, member, 1);
}

/* Opening a round, and opening it again after a restart or a pause. The deadline is counted from
 * now, so that members get the whole time. A deadline near the end of the clock saturates. */
static unsigned open_round(struct round *r, uint64_t now)
{
    r->stage = ROUND_TRAINING;
    r->opened = r->published + 1;
    r->opened_ms = now;
    uint64_t length = r->rules.deadline_ms;
    r->deadline_at_ms = length == 0 ? 0 : length > UINT64_MAX - now ? UINT64_MAX : now + length;
    return ROUND_DO_OPEN | ROUND_DO_WAKE;
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

/* Without a deadline there is nothing to wait for once the quorum is in. */
size_t round_wanted(const struct round *r)
{
    if (!r->rules.secret && r->deadline_at_ms == 0) return r->rules.quorum;
    return r->rules.cohort ? r->rules.cohort : r->members;
}

/* Without drawing, every member takes part in every round. */
static bool is_drawn(const struct round *r)
{
    return !r->rules.drawn || r->drawn_for == round_under_way(r);
}

/* An update that is being made durable has been accepted for this round, so the round waits for
 * its receipt or refusal in every case. */
static bool can_close(const struct round *r, uint64_t now)
{
    size_t updates = round_updates(r);
    bool past = r->deadline_at_ms && now >= r->deadline_at_ms;
    if (!is_drawn(r) || r->counts.admitting[0] > 0) return false;
    /* If members are left out by chance, closing early would reveal who was drawn. */
    if (r->rules.secret) return past || (!r->by_chance && updates == r->members);
    return updates >= r->rules.quorum && (past || updates >= round_wanted(r));
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
        if (!r->shapes_known || r->starting) return 0;
        r->starting = true;
        return ROUND_DO_START;
    }
    /* The start of a round with a secret draw must not depend on the members that are present,
     * because that could reveal the draw. */
    bool may_open = r->published > 0 || r->rules.secret || round_present(r) >= r->rules.quorum;
    if (r->stage == ROUND_WAITING && may_open) todo |= open_round(r, now);
    if (r->stage == ROUND_TRAINING && can_close(r, now)) {
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
    if (round_under_way(r) != closed) shift_counts(&r->counts); /* else the run is finished */
    r->deadline_at_ms = r->retry_at_ms = 0;
    r->stage = r->published == r->rules.rounds ? ROUND_FINISHED : ROUND_WAITING;
    return r->stage == ROUND_FINISHED ? ROUND_DO_END | ROUND_DO_WAKE : 0;
}

/* Every event of a member shows that it is alive. Fields are changed only between the two calls
 * of count_member(). */
static void member_event(struct round *r, const struct round_event *event)
{
    struct round_member *m = &r->member[event->member];
    struct round_place place = {0};
    count_member(&r->counts, r, event->member, -1);
    m->seen_ms = event->now_ms;
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
    case ROUND_ON_DAMAGE:
        if (digest_equal(&m->digest, &event->digest)) m->counted_in = m->trained_round = 0;
        break;
    case ROUND_ON_EVALUATED:
        if (event->round > m->evaluated) m->evaluated = event->round;
        break;
    default:
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
        if (r->stage == ROUND_TRAINING && r->hold == ROUND_WAITING)
            todo = open_round(r, event->now_ms);
        break;
    case ROUND_ON_TICK:
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
    default:
        member_event(r, event);
        /* The round continues, and the member sends its update again. */
        if (event->kind == ROUND_ON_DAMAGE && r->stage == ROUND_AGGREGATING)
            todo = open_round(r, event->now_ms) & ~(unsigned)ROUND_DO_OPEN;
        break;
    }
    return todo | settle(r, event->now_ms);
}

/* An update that is not too late may count in the round that trains now; while a round is being
 * aggregated, late updates count in the round after it. A member has at most one update in each
 * round. */
static err judge_late(struct round_place *out, const struct round *r, const struct round_member *m,
                      uint32_t trained_round)
{
    uint32_t target = r->stage == ROUND_AGGREGATING ? r->published + 2 : r->published + 1;
    if (!r->rules.late_rounds)
        return err_make(ERR_STATE,
                        "round %u is closed and this run refuses late updates (the run is at "
                        "round %u); ask for the next task",
                        trained_round, round_under_way(r));
    if (target - trained_round > r->rules.late_rounds || target > r->rules.rounds)
        return err_make(ERR_STATE,
                        "round %u is closed and the run is at round %u: too late even for %s; ask "
                        "for the next task",
                        trained_round, round_under_way(r),
                        r->rules.late_rounds > 1 ? "a later round" : "the next round");
    if (trained_round < m->trained_round || m->counted_in > r->published)
        return err_make(ERR_STATE, "an update of %s already counts in round %u", m->id,
                        m->counted_in);
    *out = (struct round_place){.counted_in = target};
    return ERR_NONE;
}

/* The order of the checks matters. An update that is already durable gets its receipt again in
 * every phase, because the first receipt may have been lost with a crash or a connection. Wrong
 * rounds come before late ones, so that a member gets the true reason. */
err round_judge(struct round_place *out, const struct round *r, size_t member,
                uint32_t trained_round, const struct digest *digest)
{
    const struct round_member *m = &r->member[member];
    uint32_t under_way = r->published + 1;
    if (m->counted_in && m->trained_round == trained_round && digest_equal(&m->digest, digest)) {
        *out = (struct round_place){.counted_in = m->counted_in, .have = true};
        return ERR_NONE;
    }
    enum round_phase phase = round_phase(r);
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED)
        return err_make(ERR_STATE, "the run is %s", round_phase_name(phase));
    if (trained_round == 0 || trained_round > under_way ||
        (trained_round == under_way && r->stage == ROUND_WAITING))
        return err_make(ERR_INPUT, "update for round %u, but the run is at round %u%s",
                        trained_round, under_way,
                        r->stage == ROUND_WAITING ? ", which is not open yet" : "");
    if (m->counted_in && m->trained_round == trained_round) {
        char have[DIGEST_TEXT_BYTES];
        digest_text(have, &m->digest);
        return err_make(ERR_STATE,
                        "a second update of %s for round %u with another digest; the one held "
                        "is %.16s",
                        m->id, trained_round, have);
    }
    if (m->admitting)
        return err_make(ERR_LIMIT, "an update of %s is being made durable; ask again", m->id);
    if (trained_round == under_way && (m->not_drawn || !is_drawn(r)))
        return err_make(ERR_STATE, "%s is not drawn for round %u; ask for the next task", m->id,
                        trained_round);
    if (trained_round < under_way || r->stage == ROUND_AGGREGATING)
        return judge_late(out, r, m, trained_round);
    /* Its update of an earlier round came late and was taken into this one. */
    if (m->counted_in >= under_way)
        return err_make(ERR_STATE, "the update of %s for round %u came late and counts in round %u",
                        m->id, m->trained_round, under_way);
    *out = (struct round_place){.counted_in = under_way};
    return ERR_NONE;
}

/* A member evaluates before its next training, and before it learns that the run is over. */
static bool should_evaluate(const struct round *r, const struct round_member *m)
{
    uint32_t every = r->rules.evaluate_every;
    if (every == 0 || !m->evaluates || m->evaluated >= r->published) return false;
    return r->published % every == 0 || r->published == r->rules.rounds;
}

/* A held run hands out nothing, except that a finished run still lets members evaluate its last
 * state. */
enum round_task round_task(const struct round *r, size_t member)
{
    const struct round_member *m = &r->member[member];
    enum round_phase phase = round_phase(r);
    bool held = r->hold != ROUND_WAITING && r->stage != ROUND_FINISHED;
    if (!held && should_evaluate(r, m)) return ROUND_TASK_EVALUATE;
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED) return ROUND_TASK_FINISHED;
    if (phase != ROUND_TRAINING) return ROUND_TASK_WAIT;
    bool waits =
        m->counted_in >= round_under_way(r) || m->admitting || m->not_drawn || !is_drawn(r);
    return waits ? ROUND_TASK_WAIT : ROUND_TASK_TRAIN;
}
