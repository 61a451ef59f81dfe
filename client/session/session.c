/* A membership from hello to the end of its runs: client/session/session.h. The tasks of a round
 * are in session_round.c, the list of runs in session_runs.c. */
#include "client/session/session.h"

#include "agg/adapter/state_whole.h"
#include "agg/round/method.h"
#include "base/file.h"
#include "base/text.h"
#include "base/version.h"
#include "client/session/session_describe.h"
#include "client/session/session_round.h"
#include "client/session/session_runs.h"
#include "client/session/session_task.h"
#include "engine/member/member_optimizer.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <string.h>

enum {
    SESSION_WAIT_MS = 20 * 1000,      /* one long poll; proxies often close silent connections */
    SESSION_WAIT_MOST_MS = 60 * 1000, /* longest pause that the coordinator can ask for */
    SESSION_WAIT_LEAST_MS = 100,      /* shortest one: no answer makes it call without end */
};

/* ---------------------------------------------------------------- hello */

/* The answer must be about this member and the run that was named (NULL: any). */
static err check_answer(const struct session *s, const Fedlora__V1__HelloReply *reply,
                        const char *run)
{
    if (reply->training != NULL && text_is_name(reply->run, LIMIT_NAME_BYTES - 1) &&
        (run == NULL || strcmp(reply->run, run) == 0) &&
        strcmp(reply->member, rpc_client_identity(s->client)->id) == 0)
        return ERR_NONE;
    return err_make(
        ERR_INPUT, "the coordinator's answer to Hello is not valid: it may be a different version");
}

/* Takes over `reply` on success. A later answer must have the same privacy settings: a coordinator
 * must not be able to weaken a promise later. */
static err take_answer(struct session *s, Fedlora__V1__HelloReply *reply)
{
    struct session_run *known = session_runs_find(s, reply->run);
    if (!known) return session_runs_add(s, reply);
    TRY(session_privacy_same(known->hello, reply));
    message_free(known->hello);
    known->hello = reply;
    known->over = false;
    session_runs_use(s, known);
    return ERR_NONE;
}

/* Reports the base, the data and the libraries of this member, and gets the configuration of this
 * run, or with NULL of one that the coordinator chooses. It becomes the current run. */
static err hello_once(struct session *s, const char *run)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(hello),
                                                &fedlora__v1__hello_reply__descriptor};
    struct arena arena = {0};
    Fedlora__V1__HelloRequest request = FEDLORA__V1__HELLO_REQUEST__INIT;
    char software[80];
    snprintf(software, sizeof software, "fedlora %s", version_text());
    request.software = software;
    request.protocol = 1;
    request.session = (ProtobufCBinaryData){LIMIT_SESSION_BYTES, s->work.id};
    if (run)
        request.run = (char *)(uintptr_t)run;
    else
        request.without = session_runs_left(&request.n_without, s);
    uint8_t epoch[SESSION_WORK_EPOCH];
    request.epoch = (ProtobufCBinaryData){session_work_epoch(epoch, &s->work), epoch};
    struct session_describe about;
    session_describe_of(&about, &s->local);
    err e = session_describe(&request, &about, &arena);
    Fedlora__V1__HelloReply *reply = NULL;
    if (!err_is(e)) e = remote_call(&reply, s->client, &method, &request.base, 0);
    arena_close(&arena);
    if (err_is(e)) return e;
    e = check_answer(s, reply, run);
    if (!err_is(e)) e = session_work_keep_epoch(&s->work, reply->epoch.data, reply->epoch.len);
    if (!err_is(e)) e = take_answer(s, reply);
    if (err_is(e)) message_free(reply);
    if (err_is(e)) return e;
    s->now->told_examples = about.examples;
    s->now->told_eval_rows = about.eval_rows;
    return ERR_NONE;
}

/* Repeats until an answer arrives or the retries are used up. */
static err hello(struct session *s, const char *run)
{
    err e;
    while (err_is(e = hello_once(s, run)))
        TRY(session_round_retry(s, e));
    retry_ok(&s->retry);
    return ERR_NONE;
}

/* With client-level privacy the note says that the coordinator sees the plain updates, because
 * "private run" could be understood otherwise. */
static void print_joined(const struct session *s)
{
    const Fedlora__V1__Privacy *p = s->hello->privacy;
    session_round_note(s, "joined run %s as %s: %s, rank %u, %u rounds, %zu rows of data",
                       s->hello->run, s->hello->member, s->hello->method, s->hello->rank,
                       s->hello->rounds, s->local.data.count);
    if (s->privacy->on)
        session_round_note(s, "%s", s->privacy->ledger.says);
    else if (p)
        session_round_note(
            s,
            "privacy: unit %s, epsilon %.4g at delta %.3g; the coordinator sees this member's "
            "updates and adds the noise to their mean",
            p->unit, p->epsilon, p->delta);
}

/* Once for each run, after the first answer to Hello: compares its privacy with the limits of this
 * member, and remembers the run until its end. */
static err enter(struct session *s)
{
    if (s->now->entered) return ERR_NONE;
    TRY(session_privacy_open(s->privacy, s->o, s->hello, rpc_client_identity(s->client),
                             s->local.data.count));
    TRY(session_work_mark(&s->work, s->now->name));
    s->now->entered = true;
    print_joined(s);
    return ERR_NONE;
}

/* ERR_INPUT if the data has nothing to train from. The coordinator is told, because its operators
 * would else wait for this member; but not in a run with privacy, whose budget does not count what
 * it reveals, and not by a member with a ledger. The path of the file stays here. */
static err check_data(struct session *s)
{
    char reason[160];
    const char *run = s->hello ? s->hello->run : s->o->run ? s->o->run : "";
    err e = session_local_check(&s->local, s->hello ? s->hello->run : NULL);
    if (!err_is(e) || s->o->ledger || (s->hello && s->hello->privacy)) return e;
    snprintf(reason, sizeof reason, "none of its %zu rows of training data has a token to learn",
             s->local.data.count);
    session_round_cannot_train(s, run, reason);
    return e;
}

/* The data and the engine for the current run. Its options may cut rows, so that fewer of them
 * teach than Hello said; the numbers are then reported again. */
static err prepare(struct session *s)
{
    struct training_options training;
    struct session_describe is;
    if (s->prepared != s->now) {
        TRY(session_task_training(&training, s->hello->training));
        TRY(session_local_prepare(&s->local, &training, s->privacy->on));
        s->prepared = s->now;
        if (!s->now->data) s->now->data = session_local_report(&s->local, s->hello->run);
        if (!s->hello->privacy) s->result->data = s->now->data;
        TRY(check_data(s));
    }
    session_describe_of(&is, &s->local);
    if (is.examples == s->now->told_examples && is.eval_rows == s->now->told_eval_rows)
        return ERR_NONE;
    return hello(s, s->now->name);
}

/* ---------------------------------------------------------------- the loop */

/* A reason is printed once and not at every poll. */
static err do_wait(struct session *s, const Fedlora__V1__WaitTask *task)
{
    if (task->reason[0] != 0 &&
        strncmp(task->reason, s->wait_reason, sizeof s->wait_reason - 1) != 0) {
        snprintf(s->wait_reason, sizeof s->wait_reason, "%s", task->reason);
        session_round_note(s, "waiting: %s", s->wait_reason);
    }
    uint64_t ms = task->retry_ms > SESSION_WAIT_LEAST_MS ? task->retry_ms : SESSION_WAIT_LEAST_MS;
    return retry_sleep(ms < SESSION_WAIT_MOST_MS ? ms : SESSION_WAIT_MOST_MS);
}

/* An earlier run of the same name may have left a file, so the method decides. */
static bool has_kept(char path[LIMIT_PATH_BYTES], const struct session *s)
{
    const struct method *method = method_find(s->hello->method);
    session_work_kept(path, &s->work, s->hello->run);
    return method && method->keeps && file_exists(path);
}

/* Writes the last state to --output, together with the frozen factors that it needs, or with those
 * that this member keeps, so that the file can be used alone. */
static err write_output(struct session *s)
{
    char state[LIMIT_PATH_BYTES], frozen[LIMIT_PATH_BYTES], kept[LIMIT_PATH_BYTES];
    struct digest digest;
    struct file_map map = {0};
    bool needed = false;
    TRY(session_round_blob(state, s, &s->result->state, s->result->state_size, "last state"));
    if (has_kept(kept, s)) return state_whole_write_own(s->o->output, state, kept);
    TRY(state_whole_needs(&needed, &digest, state));
    if (needed) {
        TRY(session_round_blob(frozen, s, &digest, /*size*/ 0, "frozen factors"));
        return state_whole_write(s->o->output, state, frozen, &digest);
    }
    TRY(file_map_open(&map, state));
    err e = file_write(s->o->output, map.data, map.size, s->o->force);
    file_map_close(&map);
    return e;
}

/* The output is written before the work directory is emptied: if writing fails, the next join finds
 * the run finished and writes it then. */
static err do_finished(struct session *s, const Fedlora__V1__FinishedTask *task)
{
    char kept[LIMIT_PATH_BYTES];
    struct session_result *result = s->result;
    snprintf(result->outcome, sizeof result->outcome, "%s", task->outcome);
    if (task->state_digest.len == DIGEST_BYTES) {
        memcpy(result->state.byte, task->state_digest.data, DIGEST_BYTES);
        result->state_size = task->state_size;
        if (task->ledger_head.len == DIGEST_BYTES)
            memcpy(result->ledger_head.byte, task->ledger_head.data, DIGEST_BYTES);
        if (s->o->output != NULL) TRY(write_output(s));
    }
    result->charged = s->privacy->on;
    if (result->charged) TRY(train_ledger_spent(&result->spent, &s->privacy->ledger));
    session_work_kept(kept, &s->work, s->hello->run);
    member_optimizer_drop(kept);
    session_work_drop_updates(&s->work, s->hello->run, UINT32_MAX);
    session_runs_drop_blobs(s, NULL, NULL);
    session_work_unmark(&s->work, s->now->name);
    s->now->over = true;
    s->last = s->now;
    return s->o->ended ? s->o->ended(s->o->user, result) : ERR_NONE;
}

/* This member cannot take part in the run: its options or limits do not allow it, the coordinator
 * refuses its updates, or does not have the run any more. The other runs go on, and the first such
 * error is the result of the whole membership. */
static void leave(struct session *s, struct session_run *run, err why)
{
    session_round_note(s, "run %s is left: %s", run->name, why.text);
    session_work_unmark(&s->work, run->name);
    run->over = run->left = true;
    if (!err_is(s->failed)) s->failed = why;
}

/* Errors that only concern the current run of several. */
static err unless_left(struct session *s, err e)
{
    if (s->only || (e.kind != ERR_INPUT && e.kind != ERR_REFUSED)) return e;
    leave(s, s->now, e);
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
    err e = hello_once(s, ask ? ask->name : NULL);
    bool none = e.kind == ERR_STATE || e.kind == ERR_REFUSED;
    if (!err_is(e)) return unless_left(s, enter(s));
    if (ask && none) {
        leave(s, ask, e);
        return ERR_NONE;
    }
    if (none && e.kind == ERR_REFUSED && s->runs) note_refusal(s, e);
    if (none && session_runs_any_open(s)) {
        if (e.kind == ERR_STATE) session_runs_ask_all(s);
        return retry_sleep(SESSION_AGAIN_MS);
    }
    *end = none && (s->last || err_is(s->failed));
    return *end ? ERR_NONE : session_round_retry(s, e);
}

/* A member of one run says hello again to a coordinator that does not know it. */
static err ask_again(bool *end, struct session *s, struct session_run *ask, err cause)
{
    if (!s->only && (cause.kind == ERR_STATE || (ask && cause.kind == ERR_REFUSED)))
        return greet(end, s, ask);
    TRY(session_round_retry(s, cause));
    if (!s->only) session_runs_ask_all(s);
    if (cause.kind != ERR_STATE) return ERR_NONE;
    TRY(hello(s, s->now->name));
    print_joined(s);
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

/* A long poll: the coordinator answers when there is a task, or after SESSION_WAIT_MS. *out stays
 * NULL if no run is left. Of several runs, one that is asked by name is not waited for. */
static err next_task(Fedlora__V1__Task **out, struct session *s)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(next_task),
                                                &fedlora__v1__task__descriptor};
    for (bool end = false; !end;) {
        Fedlora__V1__NextTaskRequest request = FEDLORA__V1__NEXT_TASK_REQUEST__INIT;
        Fedlora__V1__Task *task = NULL;
        struct session_run *ask = run_to_ask(s);
        bool by_the_way = ask && !s->only;
        if (ask)
            request.run = ask->name;
        else
            request.without = session_runs_left(&request.n_without, s);
        request.wait_ms = by_the_way ? 0 : SESSION_WAIT_MS;
        request.session = (ProtobufCBinaryData){LIMIT_SESSION_BYTES, s->work.id};
        err e =
            remote_call(&task, s->client, &method, &request.base, SESSION_WAIT_MS + REMOTE_CALL_MS);
        if (err_is(e)) {
            TRY(ask_again(&end, s, ask, e));
            continue;
        }
        retry_ok(&s->retry);
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
    if (s->only || !*name || strcmp(name, s->now->name) == 0) return ERR_NONE;
    struct session_run *run = session_runs_find(s, name);
    if (run) {
        session_runs_use(s, run);
    } else {
        err e = hello(s, name);
        if (e.kind == ERR_INPUT || e.kind == ERR_REFUSED) {
            TRY(session_runs_add_left(s, name));
            leave(s, session_runs_find(s, name), e);
            return err_make(ERR_STATE, "run %s cannot be continued", name);
        }
        TRY(e);
        TRY(enter(s));
    }
    session_round_note(s, "working for run %s", name);
    return ERR_NONE;
}

static err do_task(struct session *s, const Fedlora__V1__Task *task)
{
    switch (task->kind_case) {
    case FEDLORA__V1__TASK__KIND_TRAIN:
        TRY(prepare(s));
        return session_round_train(s, task->train);
    case FEDLORA__V1__TASK__KIND_WAIT:
        return do_wait(s, task->wait);
    case FEDLORA__V1__TASK__KIND_EVALUATE:
        TRY(prepare(s));
        return session_round_evaluate(s, task->evaluate);
    case FEDLORA__V1__TASK__KIND_FINISHED:
        return do_finished(s, task->finished);
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
            return ERR_NONE;
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
        while (err_is(e = hello_once(s, name[i])) && e.kind != ERR_STATE && e.kind != ERR_REFUSED)
            TRY_OUT(e, session_round_retry(s, e));
        if (err_is(e)) {
            session_round_note(s, "run %s is left: %s", name[i], e.text);
            session_work_unmark(&s->work, name[i]);
            e = ERR_NONE;
            continue;
        }
        retry_ok(&s->retry);
        s->now->ask = true;
        e = unless_left(s, enter(s));
    }
out:
    arena_close(&arena);
    return e;
}

/* Without the name of a run, the first one may refuse this member while another one takes it. */
static err hello_first(struct session *s)
{
    err e = hello(s, s->o->run);
    if (e.kind != ERR_REFUSED || s->o->run) return e;
    err again = hello_once(s, NULL);
    if (err_is(again)) return e;
    note_refusal(s, e);
    return ERR_NONE;
}

/* One run: the one that the user names, or with --output, which names one file, the first. */
static err start(struct session *s)
{
    s->only = s->o->run || s->o->output;
    if (!s->o->run) TRY(resume(s));
    if (!session_runs_any_open(s)) TRY(err_is(s->failed) ? s->failed : hello_first(s));
    for (struct session_run *run = s->runs; s->now->over && run; run = run->next)
        if (!run->over) session_runs_use(s, run);
    err e = enter(s);
    if (!err_is(e)) e = prepare(s);
    return unless_left(s, e);
}

/* The order refuses early what is cheap to check: certificates, the lock of the work directory, the
 * files, the coordinator's answer, the privacy plan. The engine comes last, because opening it
 * takes seconds and the memory of the whole model. */
err session_run(struct session_result *out, const struct session_options *o)
{
    struct session s = {.o = o, .retry = {.give_up_ms = o->retry_ms, .quiet = o->quiet}};
    err e;
    TRY_OUT(e, remote_open(&s.client, &o->remote));
    TRY_OUT(e, session_work_open(&s.work, o->work, rpc_client_identity(s.client)));
    TRY_OUT(e, session_local_open(&s.local, o));
    TRY_OUT(e, check_data(&s));
    TRY_OUT(e, start(&s));
    TRY_OUT(e, loop(&s));
    if (!err_is(s.failed)) {
        *out = s.last->result;
        out->data = NULL;
    }
    e = s.failed;
out:
    session_runs_close(&s);
    session_local_close(&s.local);
    session_work_close(&s.work);
    rpc_client_close(s.client);
    return e;
}
