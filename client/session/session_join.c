/* Joining and leaving: client/session/session_join.h. */
#include "client/session/session_join.h"

#include "agg/adapter/state_whole.h"
#include "agg/round/method.h"
#include "base/file.h"
#include "base/text.h"
#include "base/version.h"
#include "client/session/session_checkpoint.h"
#include "client/session/session_describe.h"
#include "client/session/session_hold.h"
#include "client/session/session_status.h"
#include "client/session/session_task.h"
#include "client/session/session_transfer.h"
#include "engine/member/member_optimizer.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <stdio.h>
#include <string.h>

/* ---------------------------------------------------------------- hello */

/* The answer must be about this member and the run that was named (NULL: any). Both names of the
 * run become parts of file names. */
static err check_answer(const struct session *s, const Fedlora__V1__HelloReply *reply,
                        const char *run)
{
    if (reply->training != NULL && text_is_name(reply->run, LIMIT_NAME_BYTES - 1) &&
        (!*reply->origin || text_is_name(reply->origin, LIMIT_NAME_BYTES - 1)) &&
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
    if (known->hello) TRY(session_privacy_same(known->hello, reply));
    session_runs_renew(known, reply);
    session_runs_use(s, known);
    return ERR_NONE;
}

/* A look tells nothing about the data and the machine: the member may not take part. */
static void tell_less(Fedlora__V1__HelloRequest *request)
{
    request->look = true;
    request->examples = request->eval_rows = request->memory_bytes = 0;
    request->libraries = (char *)(uintptr_t) "";
}

/* One call of Hello. The answer is about the run that was named, or with NULL about one that the
 * coordinator chooses. */
static err ask(Fedlora__V1__HelloReply **out, struct session *s, const char *run,
               struct session_describe *about, bool look)
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
    session_describe_of(about, &s->local);
    err e = session_describe(&request, about, &arena);
    Fedlora__V1__HelloReply *reply = NULL;
    if (look) tell_less(&request);
    const struct session_sent_call call = {
        .kind = "hello", .run = run, .has_rows = true, .rows = about->examples};
    if (!err_is(e) && !look) e = session_sent_message(&s->sent, &call, &request.base);
    if (!err_is(e)) e = remote_call(&reply, s->client, &method, &request.base, 0);
    arena_close(&arena);
    if (err_is(e)) return e;
    e = check_answer(s, reply, run);
    if (!err_is(e)) e = session_work_keep_epoch(&s->work, reply->epoch.data, reply->epoch.len);
    if (err_is(e))
        message_free(reply);
    else
        *out = reply;
    return e;
}

/* With a policy the run is looked at before this member reports its data and joins. */
err session_join_once(struct session *s, const char *run)
{
    char name[LIMIT_NAME_BYTES];
    struct session_describe about;
    Fedlora__V1__HelloReply *reply = NULL;
    err e = ERR_NONE;
    s->held = false;
    if (session_hold_looks(s)) {
        TRY(ask(&reply, s, run, &about, /*look*/ true));
        snprintf(name, sizeof name, "%s", reply->run);
        bool may = session_hold_judge(s, reply, &e);
        message_free(reply);
        reply = NULL;
        if (!may) return e;
        run = name;
    }
    TRY(ask(&reply, s, run, &about, /*look*/ false));
    e = take_answer(s, reply);
    if (err_is(e)) message_free(reply);
    if (err_is(e)) return e;
    s->now->told_examples = about.examples;
    s->now->told_eval_rows = about.eval_rows;
    s->answered = true;
    return ERR_NONE;
}

/* Repeats until an answer arrives or the retries are used up. A member of one run waits for its
 * administrator here. */
err session_join_hello(struct session *s, const char *run)
{
    err e;
    while (err_is(e = session_join_once(s, run))) {
        if (s->only && s->held && session_hold_any_waits(s))
            TRY(session_hold_wait(s));
        else
            TRY(session_round_retry(s, e));
    }
    retry_ok(&s->retry);
    return ERR_NONE;
}

/* With client-level privacy the note says that the coordinator sees the plain updates, because
 * "private run" could be understood otherwise. */
void session_join_print(const struct session *s)
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
err session_join_enter(struct session *s)
{
    if (s->now->entered) return ERR_NONE;
    TRY(session_privacy_open(s->privacy, s->o, s->hello, rpc_client_identity(s->client),
                             s->local.data.count));
    TRY(session_hold_note(s, "joined"));
    TRY(session_hold_check(s, NULL));
    TRY(session_work_mark(&s->work, s->now->name));
    s->now->entered = true;
    session_join_print(s);
    return ERR_NONE;
}

/* ERR_INPUT if the data has nothing to train from. The coordinator is told, because its operators
 * would else wait for this member; but not in a run with privacy, whose budget does not count what
 * it reveals, and not by a member with a ledger. The path of the file stays here. */
err session_join_check_data(struct session *s)
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
err session_join_prepare(struct session *s)
{
    struct training_options training;
    struct session_describe is;
    if (s->prepared != s->now) {
        TRY(session_task_training(&training, s->hello->training));
        TRY(session_local_prepare(&s->local, &training, s->privacy->on));
        s->prepared = s->now;
        if (!s->now->data) s->now->data = session_local_report(&s->local, s->hello->run);
        if (!s->hello->privacy) s->result->data = s->now->data;
        TRY(session_join_check_data(s));
    }
    session_describe_of(&is, &s->local);
    if (is.examples == s->now->told_examples && is.eval_rows == s->now->told_eval_rows)
        return ERR_NONE;
    return session_join_hello(s, s->now->name);
}

/* ---------------------------------------------------------------- the end */

/* An earlier run of the same name may have left a file, so the method decides. */
static bool has_kept(char path[LIMIT_PATH_BYTES], const struct session *s)
{
    const struct method *method = method_find(s->hello->method);
    session_work_kept(path, &s->work, session_task_origin(s->hello));
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
    TRY(session_transfer_blob(state, s, &s->result->state, s->result->state_size, "last state"));
    if (has_kept(kept, s)) return state_whole_write_own(s->o->output, state, kept);
    TRY(state_whole_needs(&needed, &digest, state));
    if (needed) {
        TRY(session_transfer_blob(frozen, s, &digest, /*size*/ 0, "frozen factors"));
        return state_whole_write(s->o->output, state, frozen, &digest);
    }
    TRY(file_map_open(&map, state));
    err e = file_write(s->o->output, map.data, map.size, s->o->force);
    file_map_close(&map);
    return e;
}

/* The output is written before the work directory is emptied: if writing fails, the next join finds
 * the run finished and writes it then. */
err session_join_finish(struct session *s, const Fedlora__V1__FinishedTask *task)
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
    TRY(session_hold_note(s, task->outcome));
    session_work_kept(kept, &s->work, session_task_origin(s->hello));
    member_optimizer_drop(kept);
    session_checkpoint_drop(s, s->hello->run);
    session_work_drop_updates(&s->work, s->hello->run, UINT32_MAX);
    session_runs_drop_blobs(s, NULL, NULL);
    session_work_unmark(&s->work, s->now->name);
    s->now->over = true;
    s->now->times_left = 0;
    s->last = s->now;
    session_status(s, "run %s: %s", s->now->name, task->outcome);
    return s->o->ended ? s->o->ended(s->o->user, result) : ERR_NONE;
}

/* This member cannot take part in the run: its options or limits do not allow it, the coordinator
 * refuses its updates, or does not have the run any more. The other runs go on, and the first such
 * error is the result of the whole membership. */
void session_join_leave(struct session *s, struct session_run *run, err why)
{
    session_round_note(s, "run %s is left: %s", run->name, why.text);
    session_work_unmark(&s->work, run->name);
    run->entered = false;
    session_runs_leave(s, run);
    if (!err_is(s->failed)) s->failed = why;
}
