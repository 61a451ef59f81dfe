#include "client/session/session_hold.h"

#include "base/text.h"
#include "client/session/session_day.h"
#include "client/session/session_status.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

enum {
    HOLD_TELL_MS = 6 * 60 * 60 * 1000, /* the coordinator shows it for a day */
    HOLD_CALL_MS = 5000,
    HOLD_PAUSE_MS = 5000, /* between two looks at the clock */
};

/* A member that stays tries a run again from time to time that it has left, so it must not join it
 * each time before it compares its limits. */
bool session_hold_looks(const struct session *s)
{
    const struct session_options *o = s->o;
    bool limits = o->ledger || o->epsilon > 0 || o->delta > 0;
    return session_policy_is_set(o->policy) || (o->stay && limits);
}

/* ---- telling the operator */

/* Nothing depends on the report. A refusal is an answer too, and is not asked for again. */
enum lasting { FOR_EVER, UNDECIDED, FOR_NOW };
static void tell(struct session *s, struct session_run *run, const char *why, enum lasting lasting)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(report),
                                                &fedlora__v1__report_reply__descriptor};
    Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
    Fedlora__V1__ReportReply *reply = NULL;
    uint64_t now = text_now_ms();
    bool same = strcmp(run->held_told, why) == 0 && now - run->held_told_ms < HOLD_TELL_MS;
    if (same && run->held_told_ms) return;
    request.run = run->name;
    request.held = (char *)(uintptr_t)why;
    request.undecided = lasting == UNDECIDED;
    request.for_now = lasting == FOR_NOW;
    err e = remote_call(&reply, s->client, &method, &request.base, HOLD_CALL_MS);
    if (e.kind != ERR_MACHINE && e.kind != ERR_STOPPED) {
        run->held_told_ms = now;
        snprintf(run->held_told, sizeof run->held_told, "%s", why);
    }
    message_free(reply);
}

/* ---- before a run is joined */

/* The state of the run under the policy and the answer; `why` is empty if it may be joined. */
static void decide(struct session_consent_run *c, struct session *s,
                   const Fedlora__V1__HelloReply *reply)
{
    const struct session_policy_run is = {
        .hello = reply, .base = s->local.base_text, .rows = s->local.data.count};
    const char *state = "joined";
    bool asks = s->o->policy && s->o->policy->approve == POLICY_APPROVE_ASK;
    enum session_consent_answer answer = session_consent_answer(s->work.dir, c);
    err e = session_privacy_accepts(reply->privacy, s->o, reply->run);
    if (!session_policy_allows(c->why, s->o->policy, &is)) {
        state = "outside";
    } else if (err_is(e)) {
        state = "outside";
        snprintf(c->why, sizeof c->why, "%.300s", e.text);
    } else if (answer == CONSENT_DECLINED) {
        state = "declined";
        snprintf(c->why, sizeof c->why, "declined by its administrator");
    } else if (asks && answer != CONSENT_APPROVED) {
        state = "waits";
        snprintf(c->why, sizeof c->why, "waits for its administrator (fedlora approve %s)", c->run);
    }
    snprintf(c->state, sizeof c->state, "%s", state);
}

/* The run is not offered again until the answer changes, or until its time for another look. */
static void hold(struct session *s, struct session_run *run, const struct session_consent_run *c)
{
    bool waits = strcmp(c->state, "waits") == 0;
    if (strcmp(run->consent.why, c->why) != 0)
        session_round_note(s, "run %s is not joined: %s", c->run, c->why);
    run->consent = *c;
    session_runs_leave(s, run);
    run->waits = waits;
    session_work_unmark(&s->work, run->name);
    tell(s, run, c->why, waits ? UNDECIDED : FOR_EVER);
}

bool session_hold_judge(struct session *s, const Fedlora__V1__HelloReply *reply, err *why)
{
    struct session_consent_run c;
    err e = session_consent_of(&c, reply, s->local.base_text);
    if (!err_is(e)) {
        decide(&c, s, reply);
        e = session_consent_note(s->work.dir, &c);
    }
    if (err_is(e)) { /* a decision that cannot be read or kept is not taken as a yes */
        *why = e;
        return false;
    }
    struct session_run *run = session_runs_find(s, reply->run);
    if (!*c.why) {
        if (run && run->waits) session_round_note(s, "run %s is approved", run->name);
        if (run) run->waits = false;
        return true;
    }
    if (!run && err_is(*why = session_runs_add_left(s, reply->run))) return false;
    hold(s, session_runs_find(s, reply->run), &c);
    *why = err_make(ERR_INPUT, "run %s: %s", reply->run, c.why);
    s->held = true;
    if (!session_runs_find(s, reply->run)->waits && !err_is(s->failed)) s->failed = *why;
    return false;
}

void session_hold_answers(struct session *s)
{
    for (struct session_run *run = s->runs; run; run = run->next)
        if (run->waits && run->left) {
            if (session_consent_answer(s->work.dir, &run->consent) != CONSENT_NONE)
                run->left = false;
            else
                tell(s, run, run->consent.why, UNDECIDED);
        }
}

err session_hold_wait(struct session *s)
{
    for (;;) {
        bool waits = false;
        session_hold_answers(s);
        for (const struct session_run *run = s->runs; run; run = run->next)
            waits |= run->waits && run->left;
        if (!waits) return ERR_NONE;
        TRY(retry_sleep(SESSION_AGAIN_MS));
    }
}

bool session_hold_any_waits(const struct session *s)
{
    for (const struct session_run *run = s->runs; run; run = run->next)
        if (run->waits) return true;
    return false;
}

/* ---- in a run */

/* The options of a task may differ from those of the run. */
err session_hold_check(struct session *s, const Fedlora__V1__Training *training)
{
    char why[SESSION_POLICY_WHY];
    Fedlora__V1__HelloReply reply = *s->hello;
    if (training) reply.training = (Fedlora__V1__Training *)(uintptr_t)training;
    const struct session_policy_run is = {
        .hello = &reply, .base = s->local.base_text, .rows = s->local.data.count};
    bool allowed = session_policy_allows(why, s->o->policy, &is);
    if (allowed && session_consent_answer(s->work.dir, &s->now->consent) == CONSENT_DECLINED) {
        allowed = false;
        snprintf(why, sizeof why, "declined by its administrator");
    }
    if (allowed) return ERR_NONE;
    (void)err_is(session_hold_note(s, "declined"));
    tell(s, s->now, why, FOR_EVER);
    return err_make(ERR_INPUT, "%s", why);
}

static struct tm local_time(void)
{
    time_t now = time(NULL);
    struct tm tm = {0};
    (void)localtime_r(&now, &tm);
    return tm;
}

bool session_hold_now(struct session *s, err *paused)
{
    char why[SESSION_POLICY_WHY];
    const struct tm now = local_time();
    *paused = ERR_NONE;
    if (session_policy_now(why, s->o->policy, &now, session_day_used_ms(s->work.dir, &now))) {
        s->now->paused = false;
        return true;
    }
    if (!s->now->paused) session_round_note(s, "run %s: not now: %s", s->now->name, why);
    s->now->paused = true;
    session_status(s, "run %s: not now: %s", s->now->name, why);
    for (struct session_run *run = s->runs; run; run = run->next) /* it is about all of them */
        if (run->entered && !run->over) tell(s, run, why, FOR_NOW);
    *paused = retry_sleep(HOLD_PAUSE_MS);
    return false;
}

err session_hold_count(struct session *s, double seconds)
{
    const struct tm now = local_time();
    return session_day_add(s->work.dir, &now, (uint64_t)(seconds * 1000));
}

err session_hold_note(struct session *s, const char *state)
{
    struct session_consent_run c;
    TRY(session_consent_of(&c, s->hello, s->local.base_text));
    snprintf(c.state, sizeof c.state, "%s", state);
    s->now->consent = c;
    return session_consent_note(s->work.dir, &c);
}
