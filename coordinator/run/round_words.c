/* Descriptions of a run's state for people; contract in round.h. They are advisory. A text that
 * does not fit is cut, so errors of bytes_printf() are ignored here. */
#include "coordinator/run/round.h"

#include "base/bytes.h"
#include "base/text.h"

#include <stdio.h>

enum { NAMED_MEMBERS_MAX = 6 }; /* of those waited for */

/* Absence is only shown to operators. Rounds do not depend on it. */
static bool is_absent(const struct round *r, const struct round_member *m, uint64_t now_ms)
{
    return m->seen_ms == 0 || (now_ms > m->seen_ms && now_ms - m->seen_ms > r->rules.absent_ms);
}

/* "submitted" comes before "absent": a member may leave once its update is in. */
const char *round_activity(const struct round *r, size_t member, uint64_t now_ms)
{
    const struct round_member *m = &r->member[member];
    enum round_phase phase = round_phase(r);
    bool open = r->stage == ROUND_TRAINING || r->stage == ROUND_AGGREGATING;
    if (open && m->counted_in >= round_under_way(r)) return "submitted";
    if (m->gone) return "dropped";
    if (m->held) return m->held;
    if (open && m->refused_in == round_under_way(r)) return "refused";
    if (is_absent(r, m, now_ms)) return "absent";
    if (phase == ROUND_TRAINING && r->rules.cohort && m->not_drawn) return "not drawn";
    bool handed = m->task_round == round_under_way(r);
    return phase == ROUND_TRAINING && handed ? "training" : "waiting";
}

/* One member that is waited for, with the reason in parentheses. */
static void say_member(struct bytes *out, const struct round *r, const struct round_member *m,
                       uint64_t now_ms)
{
    char ago[32];
    err e = bytes_printf(out, "%s (", m->id);
    if (m->admitting)
        e = bytes_printf(out, "update being checked)");
    else if (m->held)
        e = bytes_printf(out, "%s)", m->held);
    else if (m->refused_in == round_under_way(r))
        e = bytes_printf(out, "update refused: %s)", m->refusal);
    else if (m->failing_in == round_under_way(r))
        e = bytes_printf(out, "its training fails: %s)", m->refusal);
    else if (m->seen_ms == 0)
        e = bytes_printf(out,
                         m->joined ? "not seen since the coordinator started)" : "never seen)");
    else if (is_absent(r, m, now_ms)) {
        text_duration(ago, sizeof ago, now_ms - m->seen_ms);
        e = bytes_printf(out, "not seen for %s)", ago);
    } else if (m->task_round != round_under_way(r))
        e = bytes_printf(out, "has not asked for the round yet)");
    else if (m->steps > 0)
        e = bytes_printf(out, "training, step %u of %u)", m->step, m->steps);
    else
        e = bytes_printf(out, "training)");
    (void)e; /* a text too long is cut */
}

/* The first NAMED_MEMBERS_MAX members that are waited for, by name, and the number of the
 * others. for_hello: those that have not joined; else those without an update in the round. */
static void say_members(struct bytes *out, const struct round *r, bool for_hello, uint64_t now_ms)
{
    size_t named = 0, missing = 0;
    err e = ERR_NONE;
    for (size_t i = 0; i < r->members; i++) {
        const struct round_member *m = &r->member[i];
        bool there = for_hello ? m->joined && m->seen_ms : m->counted_in >= round_under_way(r);
        if (there || m->gone || (!for_hello && m->not_drawn)) continue;
        uint32_t under_way = round_under_way(r);
        if (!for_hello && (m->excused_in == under_way || m->skipped_in == under_way)) continue;
        if (missing++ >= NAMED_MEMBERS_MAX) continue;
        e = bytes_printf(out, named++ ? ", " : ": ");
        if (for_hello)
            e = bytes_printf(out, m->held ? "%s (%s)" : "%s", m->id, m->held);
        else
            say_member(out, r, m, now_ms);
    }
    if (missing > named) e = bytes_printf(out, " and %zu more", missing - named);
    (void)e;
}

/* They may come back and send an update in time, so they are named. */
static void say_skipped(struct bytes *out, const struct round *r)
{
    size_t skipped = 0;
    err e = ERR_NONE;
    for (size_t i = 0; i < r->members; i++) {
        const struct round_member *m = &r->member[i];
        uint32_t under_way = round_under_way(r);
        if (m->skipped_in != under_way || m->counted_in >= under_way || m->not_drawn || m->gone)
            continue;
        if (skipped++ < NAMED_MEMBERS_MAX)
            e = bytes_printf(out, "%s%s", skipped == 1 ? "; not waited for: " : ", ", m->id);
    }
    if (skipped > NAMED_MEMBERS_MAX)
        e = bytes_printf(out, " and %zu more", skipped - NAMED_MEMBERS_MAX);
    if (skipped) e = bytes_printf(out, " (absent when the round opened)");
    (void)e;
}

static void say_closing(struct bytes *out, const struct round *r, uint64_t now_ms)
{
    char time[32];
    uint64_t closes_ms = round_closes_ms(r);
    bool past = now_ms >= closes_ms;
    if (!closes_ms) return;
    text_duration(time, sizeof time, past ? now_ms - closes_ms : closes_ms - now_ms);
    err e = bytes_printf(out, past ? "; the deadline passed %s ago" : "; closes in %s", time);
    (void)e;
}

/* In a drawn round only drawn members are counted, and only operators see this text. */
static void say_training(struct bytes *out, const struct round *r, uint64_t now_ms)
{
    size_t updates = round_updates(r);
    size_t all = round_awaited(r), cohort = r->rules.cohort;
    err e = ERR_NONE;
    if (!cohort)
        e = bytes_printf(out, "%zu of %zu members", all - updates, all);
    else /* late updates may come from members that are not drawn */
        e = bytes_printf(out, "%zu more of %zu updates, from %zu drawn members",
                         updates < cohort ? cohort - updates : 0, cohort, all);
    say_members(out, r, false, now_ms);
    if (round_quorum(r) < (cohort ? cohort : r->members))
        e = bytes_printf(out, "; quorum %zu, %zu in", round_quorum(r), updates);
    if (r->counts.refused && all - r->counts.refused < round_quorum(r))
        e = bytes_printf(out,
                         "; without the refused updates the quorum of %zu cannot be reached: an "
                         "operator can close the round without a member (fedlora run drop-update), "
                         "drop it (run member drop) or change the quorum (run set)",
                         round_quorum(r));
    else if (round_quorum(r) > all && !r->rules.skips_absent)
        e = bytes_printf(out,
                         "; only %zu members are left: an operator must lower the quorum of %zu "
                         "(fedlora run set)",
                         all, round_quorum(r));
    say_skipped(out, r);
    say_closing(out, r, now_ms);
    (void)e;
}

void round_waiting_for(char *out, size_t size, const struct round *r, uint64_t now_ms)
{
    struct bytes b = {.max = size - 1};
    err e = ERR_NONE;
    enum round_phase phase = round_phase(r);
    if (phase == ROUND_FINISHED || phase == ROUND_STOPPED)
        e = bytes_printf(&b, "nothing: the run is %s%s%s", round_phase_name(phase),
                         phase == ROUND_STOPPED && *r->reason ? ": " : "",
                         phase == ROUND_STOPPED ? r->reason : "");
    else if (phase == ROUND_PAUSED)
        e = bytes_printf(&b, "an operator to resume the run%s%s", *r->reason ? ": " : "",
                         r->reason);
    else if (phase == ROUND_FAILED)
        e = bytes_printf(&b, "an operator: %s", r->reason);
    else if (phase == ROUND_QUEUED && !r->ahead)
        e = bytes_printf(&b, "its turn (queued: it is the next one)");
    else if (phase == ROUND_QUEUED)
        e = bytes_printf(&b, "its turn (queued: %zu run%s ahead of it)", r->ahead,
                         r->ahead == 1 ? " is" : "s are");
    else if (r->retry_at_ms)
        e = bytes_printf(&b, "the coordinator, which will try again: %s", r->reason);
    else if (phase == ROUND_AGGREGATING)
        e = bytes_printf(&b, "the coordinator to combine %zu updates", round_updates(r));
    else if (phase == ROUND_TRAINING)
        say_training(&b, r, now_ms);
    else if (round_present(r) < round_quorum(r)) {
        e = bytes_printf(&b, "%zu more of %zu members to join", round_quorum(r) - round_present(r),
                         r->members);
        say_members(&b, r, true, now_ms);
    } else
        e = bytes_printf(&b, "the coordinator to make the first state");
    (void)e;
    snprintf(out, size, "%s", b.data ? (char *)b.data : "");
    bytes_close(&b);
}

void round_wait_reason(char *out, size_t size, const struct round *r)
{
    enum round_phase phase = round_phase(r);
    size_t updates = round_updates(r), all = round_awaited(r);
    if (phase == ROUND_PAUSED || phase == ROUND_FAILED)
        snprintf(out, size, "an operator");
    else if (r->retry_at_ms)
        snprintf(out, size, "the coordinator, which will try again");
    else if (phase == ROUND_AGGREGATING)
        snprintf(out, size, "the coordinator to combine %zu updates", updates);
    else if (phase == ROUND_TRAINING)
        snprintf(out, size, "%zu of %zu members", all > updates ? all - updates : 0, all);
    else if (round_present(r) < round_quorum(r))
        snprintf(out, size, "%zu more of %zu members to join", round_quorum(r) - round_present(r),
                 r->members);
    else
        snprintf(out, size, "the coordinator to make the first state");
}
