/* A membership from its first call to the end of its runs: client/session/session.h. The tasks of a
 * round are in session_round.c, Hello and the end of a run in session_join.c, the list of runs in
 * session_runs.c. */
#include "client/session/session.h"

#include "base/notify.h"
#include "base/text.h"
#include "client/session/session_files.h"
#include "client/session/session_hold.h"
#include "client/session/session_join.h"
#include "client/session/session_status.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <string.h>

/* Files about runs that ended this long ago are deleted: 90 days. */
#define SESSION_FORGET_MS (90ull * 24 * 60 * 60 * 1000)
enum {
    SESSION_WAIT_MS = 20 * 1000,      /* one long poll; proxies often close silent connections */
    SESSION_ANSWER_MS = 5 * 1000,     /* one while the administrator may answer */
    SESSION_WAIT_MOST_MS = 60 * 1000, /* longest pause that the coordinator can ask for */
    SESSION_WAIT_LEAST_MS = 100,      /* shortest one: no answer makes it call without end */
};

/* ---------------------------------------------------------------- the loop */

/* A reason is printed once and not at every poll. Without a run there is none. */
static err do_wait(struct session *s, const Fedlora__V1__WaitTask *task)
{
    session_status(s, "%s%s", task->reason[0] ? "waiting for " : "connected; no open run",
                   task->reason);
    if (task->reason[0] != 0 &&
        strncmp(task->reason, s->wait_reason, sizeof s->wait_reason - 1) != 0) {
        snprintf(s->wait_reason, sizeof s->wait_reason, "%s", task->reason);
        session_round_note(s, "waiting: %s", s->wait_reason);
    }
    uint64_t ms = task->retry_ms > SESSION_WAIT_LEAST_MS ? task->retry_ms : SESSION_WAIT_LEAST_MS;
    return retry_sleep(ms < SESSION_WAIT_MOST_MS ? ms : SESSION_WAIT_MOST_MS);
}

/* Errors that only concern the current run of several. For a member that stays, so does a failure
 * of its machine: it leaves the run for a while and tries again, because nobody may be there to
 * start it again. */
static err unless_left(struct session *s, err e)
{
    bool mine = e.kind == ERR_MACHINE || e.kind == ERR_LIMIT;
    bool leaves = e.kind == ERR_INPUT || e.kind == ERR_REFUSED || (s->o->stay && mine);
    if (s->only || !leaves) return e;
    if (mine && s->hello && !s->hello->privacy) {
        char reason[160];
        snprintf(reason, sizeof reason, "its machine has an error%s%s", e.sys ? ": " : "",
                 e.sys ? strerror(e.sys) : "");
        session_round_cannot_train(s, s->now->name, reason);
    }
    session_join_leave(s, s->now, e);
    return ERR_NONE;
}

/* A run that this member has never joined refuses it. It is not offered again for a while, and the
 * text is printed once. */
static void note_refusal(struct session *s, err why)
{
    if (strcmp(s->refused_said, why.text) == 0) return;
    snprintf(s->refused_said, sizeof s->refused_said, "%s", why.text);
    session_round_note(s, "another run cannot be joined: %s", why.text);
}

/* The coordinator refuses to name a task of `ask` (NULL: of any run). It may want to be greeted
 * first, because a run was created or because it was restarted; or no run is left, *end. */
static err greet(bool *end, struct session *s, struct session_run *ask)
{
    err e = session_join_once(s, ask ? ask->name : NULL);
    bool none = e.kind == ERR_STATE || e.kind == ERR_REFUSED;
    if (!err_is(e)) return unless_left(s, session_join_enter(s));
    if (s->held) return ERR_NONE;
    if (ask && none) {
        session_join_leave(s, ask, e);
        return ERR_NONE;
    }
    if (none && e.kind == ERR_REFUSED && (s->runs || s->o->stay)) note_refusal(s, e);
    if (none && session_runs_any_open(s)) {
        if (e.kind == ERR_STATE) session_runs_ask_all(s);
        return retry_sleep(SESSION_AGAIN_MS);
    }
    /* An older coordinator refuses to hold the call of a member without a run. */
    if (none && s->o->stay) return retry_sleep(SESSION_WAIT_MS);
    *end = none && (s->last || err_is(s->failed));
    return *end ? ERR_NONE : session_round_retry(s, e);
}

/* The coordinator refuses the member itself, and not for a run. An operator may add it again, or
 * set a clock right, so a member that stays asks again from time to time. */
static err wait_for_operator(struct session *s, err why)
{
    session_status(s, "refused: %s", why.text);
    if (strcmp(s->refused_said, why.text) != 0)
        session_round_note(s, "the coordinator refuses this member, asking again each minute: %s",
                           why.text);
    snprintf(s->refused_said, sizeof s->refused_said, "%s", why.text);
    return retry_sleep(SESSION_WAIT_MOST_MS);
}

/* A member of one run says hello again to a coordinator that does not know it. */
static err ask_again(bool *end, struct session *s, struct session_run *ask, err cause)
{
    if (!s->only && (cause.kind == ERR_STATE || (ask && cause.kind == ERR_REFUSED)))
        return greet(end, s, ask);
    err e = session_round_retry(s, cause);
    if (s->o->stay && e.kind == ERR_REFUSED) return wait_for_operator(s, e);
    if (err_is(e)) return e;
    if (!s->only) session_runs_ask_all(s);
    if (cause.kind != ERR_STATE) return ERR_NONE;
    TRY(session_join_hello(s, s->now->name));
    session_join_print(s);
    return ERR_NONE;
}

/* The run to ask by name; NULL: ask for a task of any run. */
static struct session_run *run_to_ask(const struct session *s)
{
    if (s->only) return s->now;
    struct session_run *run = s->runs;
    while (run && (run->over || !run->ask))
        run = run->next;
    return run;
}

/* A call can exclude only so many runs. The others are named again at once. */
static err pause_if_many(struct session *s)
{
    size_t left = 0;
    for (const struct session_run *run = s->runs; run; run = run->next)
        left += run->left;
    return left >= SESSION_LEFT_MAX ? retry_sleep(SESSION_AGAIN_MS) : ERR_NONE;
}

/* The coordinator names a run to say Hello to. One that refuses this member is left out of the next
 * calls, so that it does not come again at once. */
static err do_greet(struct session *s, const char *name)
{
    err e = session_join_once(s, name);
    if (!err_is(e)) return unless_left(s, session_join_enter(s));
    if (s->held) return pause_if_many(s);
    if (e.kind != ERR_INPUT && e.kind != ERR_REFUSED) return session_round_retry(s, e);
    note_refusal(s, e);
    struct session_run *run = session_runs_find(s, name);
    if (!run) TRY(session_runs_add_left(s, name));
    session_runs_leave(s, session_runs_find(s, name));
    return pause_if_many(s);
}

/* A long poll: the coordinator answers when there is a task, or after SESSION_WAIT_MS. *out stays
 * NULL if no run is left. Of several runs, one that is asked by name is not waited for. */
static err next_task(Fedlora__V1__Task **out, struct session *s)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(next_task),
                                                &fedlora__v1__task__descriptor};
    for (bool end = false; !end;) {
        Fedlora__V1__NextTaskRequest request = FEDLORA__V1__NEXT_TASK_REQUEST__INIT;
        Fedlora__V1__Task *task = NULL;
        session_hold_answers(s);
        session_runs_forget(s);
        struct session_run *ask = run_to_ask(s);
        bool by_the_way = ask && !s->only;
        if (ask)
            request.run = ask->name;
        else
            request.without = session_runs_left(&request.n_without, s);
        bool answers = session_hold_any_waits(s);
        request.wait_ms = by_the_way ? 0 : answers ? SESSION_ANSWER_MS : SESSION_WAIT_MS;
        request.session = (ProtobufCBinaryData){LIMIT_SESSION_BYTES, s->work.id};
        request.stay = s->o->stay || answers;
        session_files_refresh(s);
        err e =
            remote_call(&task, s->client, &method, &request.base, SESSION_WAIT_MS + REMOTE_CALL_MS);
        if (err_is(e)) {
            TRY(ask_again(&end, s, ask, e));
            continue;
        }
        retry_ok(&s->retry);
        s->answered = true;
        if (by_the_way) ask->ask = false;
        if (!by_the_way || task->kind_case != FEDLORA__V1__TASK__KIND_WAIT) {
            *out = task;
            return ERR_NONE;
        }
        message_free(task);
    }
    return ERR_NONE;
}

/* The name in a task; "" in one that is about no run. */
static const char *name_in(const Fedlora__V1__Task *task)
{
    switch (task->kind_case) {
    case FEDLORA__V1__TASK__KIND_TRAIN:
        return task->train->run;
    case FEDLORA__V1__TASK__KIND_EVALUATE:
        return task->evaluate->run;
    case FEDLORA__V1__TASK__KIND_FINISHED:
        return task->finished->run;
    default:
        return "";
    }
}

/* Makes the run of a task the current one. One that an earlier process has joined is greeted, and
 * may refuse this process, for example because it has another base model. */
static err turn_to(struct session *s, const char *name)
{
    if (s->only || !*name || (s->now && strcmp(name, s->now->name) == 0)) return ERR_NONE;
    struct session_run *run = session_runs_find(s, name);
    if (run) {
        session_runs_use(s, run);
    } else {
        err e = session_join_hello(s, name);
        if (e.kind == ERR_INPUT || e.kind == ERR_REFUSED) {
            if (!session_runs_find(s, name)) TRY(session_runs_add_left(s, name));
            if (!s->held) session_join_leave(s, session_runs_find(s, name), e);
            return err_make(ERR_STATE, "run %s cannot be continued", name);
        }
        TRY(e);
        TRY(session_join_enter(s));
    }
    session_round_note(s, "working for run %s", name);
    return ERR_NONE;
}

static err do_task(struct session *s, const Fedlora__V1__Task *task)
{
    switch (task->kind_case) {
    case FEDLORA__V1__TASK__KIND_TRAIN:
        TRY(session_hold_check(s, task->train->training));
        TRY(session_join_prepare(s));
        return session_round_train(s, task->train);
    case FEDLORA__V1__TASK__KIND_WAIT:
        return do_wait(s, task->wait);
    case FEDLORA__V1__TASK__KIND_EVALUATE:
        TRY(session_join_prepare(s));
        return session_round_evaluate(s, task->evaluate);
    case FEDLORA__V1__TASK__KIND_FINISHED:
        return session_join_finish(s, task->finished);
    case FEDLORA__V1__TASK__KIND_GREET:
        return do_greet(s, task->greet->run);
    default:
        return err_make(ERR_INPUT,
                        "the coordinator sent an unknown task: it may be a newer version");
    }
}

/* One task after another until the runs have ended. A task that became out of date while it was
 * done is not an error of the member; it asks for the next one. */
static err loop(struct session *s)
{
    for (;;) {
        Fedlora__V1__Task *task = NULL;
        TRY(next_task(&task, s));
        if (!task) return ERR_NONE;
        bool end = s->only && task->kind_case == FEDLORA__V1__TASK__KIND_FINISHED;
        bool named = *name_in(task) != 0;
        const struct session_run *run = session_runs_find(s, name_in(task));
        if (!s->only && run && run->left) { /* an older coordinator does not know `without` */
            message_free(task);
            if (!s->o->stay) return ERR_NONE;
            TRY(retry_sleep(SESSION_WAIT_MS));
            continue;
        }
        if (task->kind_case != FEDLORA__V1__TASK__KIND_WAIT) s->wait_reason[0] = 0;
        err e = turn_to(s, name_in(task));
        if (!err_is(e)) e = do_task(s, task);
        if (named) e = unless_left(s, e);
        message_free(task);
        if (e.kind == ERR_STATE) { /* the task is out of date; the next one is not */
            session_round_note(s, "%s", e.text);
            e = retry_sleep(SESSION_AGAIN_MS);
            end = false;
        }
        if (err_is(e) || end) return e;
    }
}

/* The runs that an earlier process has joined. Without --run they are asked first, because they may
 * have ended meanwhile. */
static err resume(struct session *s)
{
    struct arena arena = {0};
    const char **name = NULL;
    size_t count = 0;
    err e = session_work_marked(&name, &count, &s->work, &arena);
    for (size_t i = 0; i < count && !err_is(e) && !(s->only && s->runs); i++) {
        while (err_is(e = session_join_once(s, name[i])) && e.kind != ERR_STATE &&
               e.kind != ERR_REFUSED && !s->held)
            TRY_OUT(e, session_round_retry(s, e));
        if (err_is(e)) {
            if (!s->held) session_round_note(s, "run %s is left: %s", name[i], e.text);
            session_work_unmark(&s->work, name[i]);
            e = ERR_NONE;
            continue;
        }
        retry_ok(&s->retry);
        s->now->ask = true;
        e = unless_left(s, session_join_enter(s));
    }
out:
    arena_close(&arena);
    return e;
}

/* Without the name of a run, the first one may refuse this member while another one takes it. */
static err hello_first(struct session *s)
{
    err e = session_join_hello(s, s->o->run);
    if (e.kind != ERR_REFUSED || s->o->run) return e;
    err again = session_join_once(s, NULL);
    if (err_is(again)) return e;
    note_refusal(s, e);
    return ERR_NONE;
}

/* One run: the one that the user names, or with --output, which names one file, the first. A member
 * that stays learns its runs from the tasks. */
static err start(struct session *s)
{
    s->only = s->o->run || s->o->output;
    if (!s->o->run) TRY(resume(s));
    if (s->o->stay || (session_hold_looks(s) && !s->only)) return ERR_NONE;
    if (!session_runs_any_open(s)) TRY(err_is(s->failed) ? s->failed : hello_first(s));
    for (struct session_run *run = s->runs; s->now->over && run; run = run->next)
        if (!run->over) session_runs_use(s, run);
    err e = session_join_enter(s);
    if (!err_is(e)) e = session_join_prepare(s);
    return unless_left(s, e);
}

/* The order refuses early what is cheap to check: certificates, the lock of the work directory, the
 * files, the coordinator's answer, the privacy plan. The engine comes last, because opening it
 * takes seconds and the memory of the whole model. */
err session_run(struct session_result *out, const struct session_options *o)
{
    struct session s = {.o = o, .retry = {.give_up_ms = o->retry_ms, .quiet = o->quiet}};
    err e;
    TRY_OUT(e, session_files_open(&s));
    TRY_OUT(e, session_work_open(&s.work, o->work, rpc_client_identity(s.client)));
    session_consent_forget(s.work.dir, SESSION_FORGET_MS);
    if (o->accept_restore) session_work_forget_epoch(&s.work);
    TRY_OUT(e, session_sent_open(&s.sent, s.work.dir, o->keep_sent));
    TRY_OUT(e, session_local_open(&s.local, o));
    TRY_OUT(e, session_join_check_data(&s));
    (void)notify_send("READY=1");
    session_status(&s, "connecting to %s", o->remote.server);
    TRY_OUT(e, start(&s));
    TRY_OUT(e, loop(&s));
    if (!err_is(s.failed)) {
        *out = s.last->result;
        out->data = NULL;
    }
    e = s.failed;
out:
    (void)notify_send("STOPPING=1");
    session_runs_close(&s);
    session_local_close(&s.local);
    session_sent_close(&s.sent);
    session_work_close(&s.work);
    rpc_client_close(s.client);
    return e;
}
