/* A membership from hello to the end of the run: client/session/session.h. The tasks of a round are
 * in session_round.c. */
#include "client/session/session.h"

#include "agg/adapter/state_whole.h"
#include "agg/round/method.h"
#include "base/file.h"
#include "base/text.h"
#include "client/session/session_describe.h"
#include "client/session/session_round.h"
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

/* Reports the base, the data and the libraries of this member, and gets the run's configuration.
 * The answer must be about this member and, on a reconnect, about the same run with the same
 * privacy: a coordinator must not be able to weaken a promise later. */
static err hello_once(struct session *s)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(hello),
                                                &fedlora__v1__hello_reply__descriptor};
    struct arena arena = {0};
    Fedlora__V1__HelloRequest request = FEDLORA__V1__HELLO_REQUEST__INIT;
    request.software = (char *)(uintptr_t) "fedlora " FEDLORA_VERSION;
    request.protocol = 1;
    request.session = (ProtobufCBinaryData){SESSION_WORK_ID, s->work.id};
    /* After the first answer the run is fixed, also if --run was not given. */
    if (s->result.run[0] != 0)
        request.run = s->result.run;
    else if (s->o->run != NULL)
        request.run = (char *)(uintptr_t)s->o->run;
    struct session_describe about;
    session_describe_of(&about, &s->local);
    err e = session_describe(&request, &about, &arena);
    Fedlora__V1__HelloReply *reply = NULL;
    if (!err_is(e)) e = remote_call(&reply, s->client, &method, &request.base, 0);
    arena_close(&arena);
    if (err_is(e)) return e;
    if (reply->training == NULL || !text_is_name(reply->run, LIMIT_NAME_BYTES - 1) ||
        (s->result.run[0] != 0 && strcmp(reply->run, s->result.run) != 0) ||
        strcmp(reply->member, rpc_client_identity(s->client)->id) != 0) {
        message_free(reply);
        return err_make(
            ERR_INPUT,
            "the coordinator's answer to Hello is not valid: it may be a different version");
    }
    if (s->hello) e = session_privacy_same(s->hello, reply);
    if (err_is(e)) {
        message_free(reply);
        return e;
    }
    message_free(s->hello);
    s->hello = reply;
    return ERR_NONE;
}

/* Repeats until an answer arrives or the retries are used up. */
static err hello(struct session *s)
{
    err e;
    while (err_is(e = hello_once(s)))
        TRY(session_round_retry(s, e));
    retry_ok(&s->retry);
    snprintf(s->result.run, sizeof s->result.run, "%s", s->hello->run);
    snprintf(s->result.member, sizeof s->result.member, "%s", s->hello->member);
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
    if (s->privacy.on)
        session_round_note(s, "%s", s->privacy.ledger.says);
    else if (p)
        session_round_note(
            s,
            "privacy: unit %s, epsilon %.4g at delta %.3g; the coordinator sees this member's "
            "updates and adds the noise to their mean",
            p->unit, p->epsilon, p->delta);
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
    TRY(session_round_blob(state, s, &s->result.state, "last state"));
    if (has_kept(kept, s)) return state_whole_write_own(s->o->output, state, kept);
    TRY(state_whole_needs(&needed, &digest, state));
    if (needed) {
        TRY(session_round_blob(frozen, s, &digest, "frozen factors"));
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
    snprintf(s->result.outcome, sizeof s->result.outcome, "%s", task->outcome);
    if (task->state_digest.len == DIGEST_BYTES) {
        memcpy(s->result.state.byte, task->state_digest.data, DIGEST_BYTES);
        s->result.state_size = task->state_size;
        if (task->ledger_head.len == DIGEST_BYTES)
            memcpy(s->result.ledger_head.byte, task->ledger_head.data, DIGEST_BYTES);
        if (s->o->output != NULL) TRY(write_output(s));
    }
    session_work_kept(kept, &s->work, s->hello->run);
    member_optimizer_drop(kept);
    session_work_drop_updates(&s->work, s->hello->run, UINT32_MAX);
    session_work_drop_blobs(&s->work, NULL, NULL);
    return ERR_NONE;
}

/* A long poll: the coordinator answers when there is a task, or after SESSION_WAIT_MS. ERR_STATE
 * means that it does not know this member (it was restarted), so the member says hello again. */
static err next_task(Fedlora__V1__Task **out, struct session *s)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(next_task),
                                                &fedlora__v1__task__descriptor};
    Fedlora__V1__NextTaskRequest request = FEDLORA__V1__NEXT_TASK_REQUEST__INIT;
    request.run = s->result.run; /* s->hello is replaced when the loop says hello again */
    request.wait_ms = SESSION_WAIT_MS;
    request.session = (ProtobufCBinaryData){SESSION_WORK_ID, s->work.id};
    err e;
    while (err_is(e = remote_call(out, s->client, &method, &request.base,
                                  SESSION_WAIT_MS + REMOTE_CALL_MS))) {
        TRY(session_round_retry(s, e));
        if (e.kind == ERR_STATE) {
            TRY(hello(s));
            print_joined(s);
        }
    }
    retry_ok(&s->retry);
    return ERR_NONE;
}

/* One task after another until the run has finished. A task that became out of date while it was
 * done is not an error of the member; it asks for the next one. */
static err loop(struct session *s)
{
    for (;;) {
        Fedlora__V1__Task *task = NULL;
        TRY(next_task(&task, s));
        err e = ERR_NONE;
        bool end = task->kind_case == FEDLORA__V1__TASK__KIND_FINISHED;
        if (task->kind_case != FEDLORA__V1__TASK__KIND_WAIT) s->wait_reason[0] = 0;
        switch (task->kind_case) {
        case FEDLORA__V1__TASK__KIND_TRAIN:
            e = session_round_train(s, task->train);
            break;
        case FEDLORA__V1__TASK__KIND_WAIT:
            e = do_wait(s, task->wait);
            break;
        case FEDLORA__V1__TASK__KIND_EVALUATE:
            e = session_round_evaluate(s, task->evaluate);
            break;
        case FEDLORA__V1__TASK__KIND_FINISHED:
            e = do_finished(s, task->finished);
            break;
        default:
            e = err_make(ERR_INPUT,
                         "the coordinator sent an unknown task: it may be a newer version");
            break;
        }
        message_free(task);
        if (e.kind == ERR_STATE) { /* the task is out of date; the next one is not */
            session_round_note(s, "%s", e.text);
            e = retry_sleep(SESSION_AGAIN_MS);
            end = false;
        }
        if (err_is(e) || end) return e;
    }
}

/* The order refuses early what is cheap to check: certificates, the lock of the work directory, the
 * files, the coordinator's answer, the privacy plan. The engine comes last, because opening it
 * takes seconds and the memory of the whole model. */
err session_run(struct session_result *out, const struct session_options *o)
{
    struct training_options training;
    struct session s = {.o = o, .retry = {.give_up_ms = o->retry_ms, .quiet = o->quiet}};
    err e;
    TRY_OUT(e, remote_open(&s.client, &o->remote));
    TRY_OUT(e, session_work_open(&s.work, o->work, rpc_client_identity(s.client)));
    TRY_OUT(e, session_local_open(&s.local, o));
    TRY_OUT(e, hello(&s));
    TRY_OUT(e, session_privacy_open(&s.privacy, o, s.hello, rpc_client_identity(s.client),
                                    s.local.data.count));
    print_joined(&s);
    TRY_OUT(e, session_task_training(&training, s.hello->training));
    TRY_OUT(e, session_local_prepare(&s.local, &training, s.privacy.on));
    TRY_OUT(e, loop(&s));
    s.result.charged = s.privacy.on;
    if (s.privacy.on) TRY_OUT(e, train_ledger_spent(&s.result.spent, &s.privacy.ledger));
    *out = s.result;
out:
    message_free(s.hello);
    session_local_close(&s.local);
    session_work_close(&s.work);
    rpc_client_close(s.client);
    return e;
}
