/* The tasks of a round: client/session/session_round.h.
 *
 * Each task is done completely before the next one is asked for. The order inside a round is:
 * download the state, train, write the update to disk, charge the privacy ledger, send the ledger,
 * send the update. A kill between any two steps is repaired by the next start: finished steps are
 * recognised by their files and not repeated, and nothing is sent that was not charged. */
#include "client/session/session_round.h"

#include "base/file.h"
#include "base/text.h"
#include "client/session/session_checkpoint.h"
#include "client/session/session_describe.h"
#include "client/session/session_files.h"
#include "client/session/session_hold.h"
#include "client/session/session_report.h"
#include "client/session/session_runs.h"
#include "client/session/session_status.h"
#include "client/session/session_task.h"
#include "client/session/session_transfer.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include <float.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum {
    SESSION_TRIES = 3,          /* of a round whose training fails on its numbers */
    SESSION_TELL_MS = 5000,     /* for a report that nothing depends on */
    SESSION_TROUBLE_BYTES = 240 /* of the reason told to the coordinator */
};

void session_round_note(const struct session *s, const char *format, ...)
{
    char line[1024];
    if (s->o->quiet) return;
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    fprintf(stderr, "%s\n", line);
}

/* The files of the certificate are read again before each new attempt, because an expired
 * certificate fails like any refusal, and members renew theirs while a run of weeks continues. With
 * a new certificate the call is repeated at once. Before the first answer to Hello a certificate
 * that is not accepted is an error of the setup, and the user is told at once. */
err session_round_retry(struct session *s, err cause)
{
    bool changed = false, known = s->hello || s->answered;
    if (cause.kind == ERR_STOPPED) return cause;
    err e = rpc_client_reload(&changed, s->client);
    if (err_is(e) && known && (cause.kind == ERR_INPUT || cause.kind == ERR_MACHINE))
        return session_files_wait(s, e);
    if (err_is(e) && session_files_is_news(s, e))
        session_round_note(s, "the certificate was not reloaded: %s", e.text);
    if (changed) {
        session_round_note(s, "the certificate was renewed; connecting again");
        return ERR_NONE;
    }
    if (known && session_files_refused(s, cause)) cause.kind = ERR_MACHINE;
    session_status(s, "waiting for the coordinator: %s", cause.text);
    return retry_wait(&s->retry, cause, "the coordinator");
}

/* ---------------------------------------------------------------- one round */

/* The files of one round: the state and, for some methods, frozen factors. */
struct round_files {
    struct digest state, frozen;
    bool has_frozen; /* false: the other members of `frozen` are not set */
    char state_path[LIMIT_PATH_BYTES], frozen_path[LIMIT_PATH_BYTES], kept_path[LIMIT_PATH_BYTES],
        frozen_text[DIGEST_TEXT_BYTES];
};

/* Digests and sizes in a task. */
struct announced {
    ProtobufCBinaryData state, frozen;
    uint64_t state_size, frozen_size;
};

/* Blobs of earlier rounds are deleted before the download, so that the disk holds one state and not
 * one per round. */
static err fetch_round(struct round_files *f, struct session *s, const struct announced *is)
{
    TRY(session_transfer_digest(&f->state, &is->state, "state"));
    f->has_frozen = is->frozen.len != 0;
    if (f->has_frozen) {
        TRY(session_transfer_digest(&f->frozen, &is->frozen, "frozen factors"));
        digest_text(f->frozen_text, &f->frozen);
    }
    session_work_kept(f->kept_path, &s->work, session_task_origin(s->hello));
    session_runs_drop_blobs(s, &f->state, f->has_frozen ? &f->frozen : NULL);
    if (f->has_frozen)
        TRY(session_transfer_blob(f->frozen_path, s, &f->frozen, is->frozen_size,
                                  "frozen factors"));
    return session_transfer_blob(f->state_path, s, &f->state, is->state_size, "state");
}

/* The part of a round's description that only this machine knows. */
static void name_files(struct member_round *round, const struct session *s,
                       const struct round_files *f)
{
    round->base = s->local.base_text;
    round->state_path = f->state_path;
    round->frozen_path = f->has_frozen ? f->frozen_path : NULL;
    round->frozen_digest = f->frozen_text;
    round->kept_path = f->kept_path;
}

/* The coordinator shows it to the operator. A refusal changes nothing for this member. */
static err tell_failure(struct session *s, uint32_t round, const err *cause)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(report),
                                                &fedlora__v1__report_reply__descriptor};
    Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
    Fedlora__V1__ReportReply *reply = NULL;
    char text[SESSION_TROUBLE_BYTES];
    snprintf(text, sizeof text, "%.*s", SESSION_TROUBLE_BYTES - 1, cause->text);
    request.run = s->hello->run;
    request.round = round;
    request.trouble = text;
    err e;
    const struct session_sent_call call = {.kind = "trouble", .run = request.run, .round = round};
    TRY(session_sent_message(&s->sent, &call, &request.base));
    while (err_is(e = remote_call(&reply, s->client, &method, &request.base, 0))) {
        if (e.kind == ERR_STATE || e.kind == ERR_INPUT || e.kind == ERR_REFUSED) return ERR_NONE;
        TRY(session_round_retry(s, err_in(e, "reporting a failed training")));
    }
    retry_ok(&s->retry);
    message_free(reply);
    return ERR_NONE;
}

void session_round_cannot_train(struct session *s, const char *run, const char *reason)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(report),
                                                &fedlora__v1__report_reply__descriptor};
    Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
    Fedlora__V1__ReportReply *reply = NULL;
    char text[SESSION_TROUBLE_BYTES];
    snprintf(text, sizeof text, "%s", reason);
    request.run = (char *)(uintptr_t)run;
    request.cannot_train = text;
    const struct session_sent_call call = {.kind = "trouble", .run = run};
    if (!err_is(session_sent_message(&s->sent, &call, &request.base)))
        (void)err_is(remote_call(&reply, s->client, &method, &request.base, SESSION_TELL_MS));
    message_free(reply);
}

/* A state or a learning rate that gives a loss of NaN or infinity does so again, but the
 * operator may change the run meanwhile. So the task is asked for again, SESSION_TRIES times in
 * all. In a run with privacy nothing is said, because no budget counts what a failure reveals. */
static err training_failed(struct session *s, uint32_t round, err cause)
{
    s->now->failures++;
    if (!s->hello->privacy) TRY(tell_failure(s, round, &cause));
    if (s->now->failures < SESSION_TRIES)
        return err_in(cause, "try %u of %d", s->now->failures, SESSION_TRIES);
    return err_make(ERR_MACHINE,
                    "%s; gave up after %d tries: the run's learning rate may be too high, or its "
                    "state is damaged by another member's update; ask the operator",
                    cause.text, SESSION_TRIES);
}

/* The journal's line about the reports that follow during a training. One line for all of them,
 * because they come every few seconds. With privacy they have nothing about the data. */
static err note_reports(struct session *s, const Fedlora__V1__TrainTask *task)
{
    const struct session_sent_call call = {
        .kind = "progress", .run = s->hello->run, .round = task->round};
    return s->hello->privacy || task->gradient ? ERR_NONE : session_sent_add(&s->sent, &call);
}

/* One attempt, from a checkpoint if there is one. A checkpoint that the trainer does not accept is
 * deleted, and the task is asked for again. */
static err train_once(struct train_result *out, struct session *s, struct session_report *report,
                      const char *path, const struct member_train *given,
                      struct session_checkpoint *c)
{
    struct member_train work = *given;
    work.keep = &c->keep;
    err e = session_report_train(out, report, path, &work);
    if (e.kind == ERR_INPUT && c->keep.resume) {
        session_checkpoint_drop(s, s->hello->run);
        e = err_make(ERR_STATE, "its checkpoint cannot be used: %.400s", e.text);
        snprintf(report->reason, sizeof report->reason, "its checkpoint cannot be used");
    } else if (e.kind == ERR_STATE) {
        session_checkpoint_drop(s, s->hello->run);
    }
    return e;
}

/* Trains one round and stores the update. The description of the update is written after the update
 * itself, see session_work.h. With privacy, neither the progress line nor the reports contain the
 * loss. An ERR_STATE means that the coordinator closed the round meanwhile. */
static err train_round(struct session_update *out, struct session *s,
                       const Fedlora__V1__TrainTask *task)
{
    struct round_files files = {0};
    session_status(s, "run %s: training round %u of %u", s->hello->run, task->round,
                   s->hello->rounds);
    char path[LIMIT_PATH_BYTES];
    struct train_result result = {0};
    struct member_round round;
    struct training_options training;
    const struct announced announced = {task->state_digest, task->frozen_digest, task->state_size,
                                        task->frozen_size};
    TRY(fetch_round(&files, s, &announced));
    TRY(session_task_round(&round, s->hello, task));
    TRY(session_task_training(&training, task->training));
    name_files(&round, s, &files);
    session_work_update(path, &s->work, s->hello->run, task->round);
    struct session_report report = {.client = s->client,
                                    .run = s->hello->run,
                                    .round = task->round,
                                    .quiet = s->o->quiet || task->gradient,
                                    .loss_is_private = s->hello->privacy != NULL};
    const struct member_train work = {.engine = s->local.engine,
                                      .data = &s->local.data,
                                      .round = &round,
                                      .training = &training,
                                      .ledger = s->privacy->on ? &s->privacy->ledger : NULL,
                                      .checkpoint = s->o->checkpoint};
    struct session_checkpoint checkpoint;
    TRY(note_reports(s, task));
    session_checkpoint_open(&checkpoint, s, task);
    err e = train_once(&result, s, &report, path, &work, &checkpoint);
    session_checkpoint_close(&checkpoint);
    if (report.failed) return training_failed(s, task->round, e);
    if (e.kind == ERR_STATE)
        session_round_note(s, "round %u: training stopped: %s", task->round, report.reason);
    if (err_is(e)) return e;
    s->now->failures = 0;
    struct session_update update = {.state = files.state,
                                    .examples = session_local_examples(&s->local),
                                    .tokens = result.tokens,
                                    .values = result.values,
                                    .train_loss = result.mean_loss,
                                    .seconds = result.seconds};
    TRY(digest_of_file(&update.digest, path));
    update.size = file_size(path);
    session_privacy_promise(update.promise, s->privacy, task->round);
    TRY(session_work_keep(&s->work, s->hello->run, task->round, &update));
    TRY(session_checkpoint_done(&checkpoint, result.seconds));
    s->result->rounds_trained++;
    *out = update;
    return ERR_NONE;
}

/* The loss is printed only in a run without privacy. An update that arrived after its round was
 * closed may count in a later one (--late next, --late-rounds). */
static void count_upload(struct session *s, const struct session_update *update, uint32_t round,
                         const Fedlora__V1__SubmitReply *reply)
{
    char size[32], late[64] = "";
    s->result->bytes_up += update->size;
    s->now->submitted_round = round;
    s->now->times_left = 0;
    text_size(size, sizeof size, update->size);
    if (reply->counted_in > round)
        snprintf(late, sizeof late, "; it was late and counts in round %u", reply->counted_in);
    if (s->privacy->on)
        session_round_note(s, "round %u: update of %s charged and sent%s", round, size, late);
    else
        session_round_note(s, "round %u: update of %s sent, loss %.4f%s", round, size,
                           update->train_loss, late);
}

/* Charges the update in the local ledger before it is sent, and sends the ledger's lines first: the
 * coordinator rejects updates that its copy does not list. In the other order a crash could
 * leave an update that was sent but is missing in the ledger, and the ledger's epsilon would be too
 * small. Charging the same update twice has no effect, so a repeated task is safe. */
static err charge_update(struct session *s, const struct session_update *update,
                         const Fedlora__V1__TrainTask *task)
{
    struct digest given = {0};
    err e;
    if (!s->privacy->on) return ERR_NONE;
    if (task->frozen_digest.len)
        TRY(session_transfer_digest(&given, &task->frozen_digest, "frozen factors"));
    TRY(session_privacy_charge(s->privacy, task->round, update, &given));
    const struct session_privacy_send to = {
        .client = s->client, .sent = &s->sent, .run = s->hello->run, .round = task->round};
    while (err_is(e = session_privacy_send_ledger(s->privacy, &to)))
        TRY(session_round_retry(s, err_in(e, "sending the ledger")));
    retry_ok(&s->retry);
    return ERR_NONE;
}

/* Sends the update until the coordinator has stored it durably. In a run with privacy, the loss
 * and the time are left out of the header, because they depend on the data and are not accounted
 * for. */
static err submit(struct session *s, const struct session_update *update, uint32_t round)
{
    char path[LIMIT_PATH_BYTES];
    struct digest digest = update->digest;
    session_work_update(path, &s->work, s->hello->run, round);
    Fedlora__V1__SubmitHeader header = FEDLORA__V1__SUBMIT_HEADER__INIT;
    header.run = s->hello->run;
    header.round = round;
    header.digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    header.size = update->size;
    /* The coordinator refuses more than this member's Hello has, which may have lost rows since the
     * update was trained. */
    uint64_t rows = session_local_examples(&s->local);
    header.examples = update->examples < rows ? update->examples : rows;
    if (!s->hello->privacy) {
        header.train_loss = update->train_loss;
        header.seconds = update->seconds;
        header.tokens = update->tokens;
    }
    for (;;) {
        Fedlora__V1__SubmitReply *reply = NULL;
        err e = session_transfer_update(&reply, s, &header, path);
        if (!err_is(e) && reply->durable) {
            retry_ok(&s->retry);
            count_upload(s, update, round, reply);
            message_free(reply);
            return ERR_NONE;
        }
        message_free(reply);
        if (!err_is(e)) e = err_make(ERR_MACHINE, "the coordinator did not store the update");
        if (e.kind == ERR_STATE) return e; /* the round was closed meanwhile */
        TRY(session_round_retry(s, err_in(e, "sending the update")));
    }
}

/* A stored update of this round is used again if it was trained from the same state under the same
 * privacy settings. Otherwise the round is trained again: an update made with less noise than the
 * current plan requires must never be sent. */
err session_round_train(struct session *s, const Fedlora__V1__TrainTask *task)
{
    struct session_update update = {0};
    struct digest state;
    char promise[SESSION_WORK_PROMISE];
    if (task->training == NULL || strcmp(task->run, s->hello->run) != 0 || task->round == 0)
        return err_make(ERR_INPUT,
                        "the coordinator sent a task of a different run, expected run %s",
                        s->hello->run);
    TRY(session_transfer_digest(&state, &task->state_digest, "state"));
    session_privacy_promise(promise, s->privacy, task->round);
    /* A late update can only count in this round, so updates of earlier rounds can be deleted. */
    session_work_drop_updates(&s->work, s->hello->run, task->round > 1 ? task->round - 1 : 0);
    /* The coordinator accepted the update of this round and asks for it again, for example after
     * its database was restored. The pause keeps the two from looping at full speed. */
    bool repeated = s->now->submitted_round == task->round;
    if (repeated) TRY(retry_sleep(SESSION_AGAIN_MS));
    err e = ERR_NONE;
    if (session_work_find(&update, &s->work, s->hello->run, task->round, &state) &&
        strcmp(update.promise, promise) == 0) {
        if (!repeated)
            session_round_note(s, "round %u: already trained, sending the update", task->round);
    } else {
        if (!session_hold_now(s, &e)) return e;
        e = train_round(&update, s, task);
    }
    if (!err_is(e)) e = charge_update(s, &update, task);
    if (!err_is(e)) e = submit(s, &update, task->round);
    return err_is(e) ? err_in(e, "round %u", task->round) : e;
}

/* Evaluates a state on the held-out rows and reports loss and accuracy. A run with privacy must not
 * ask for it: the report would reveal information about the rows that no budget counts. */
err session_round_evaluate(struct session *s, const Fedlora__V1__EvaluateTask *task)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(report),
                                                &fedlora__v1__report_reply__descriptor};
    struct round_files files = {0};
    struct member_evaluation evaluation = {0};
    if (s->hello->privacy)
        return err_make(ERR_INPUT,
                        "round %u: the coordinator asks for an evaluation, which the run's privacy "
                        "does not allow",
                        task->round);
    const struct announced announced = {task->state_digest, task->frozen_digest, task->state_size,
                                        task->frozen_size};
    TRY(fetch_round(&files, s, &announced));
    struct member_round round = {.run = session_task_origin(s->hello),
                                 .member = s->hello->member,
                                 .method = s->hello->method,
                                 .round = task->round,
                                 .evaluates = true};
    name_files(&round, s, &files);
    TRY(session_local_evaluate(&evaluation, &s->local, &round));
    if (evaluation.rows == 0) return ERR_NONE; /* no loss; Hello has said so */
    Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
    request.run = s->hello->run;
    request.round = task->round;
    request.eval_rows = evaluation.rows;
    /* The coordinator refuses numbers that are not finite, and must learn of this one. */
    request.eval_loss = evaluation.loss <= (double)FLT_MAX ? evaluation.loss : (double)FLT_MAX;
    request.eval_accuracy = evaluation.accuracy;
    Fedlora__V1__ReportReply *reply = NULL;
    err e;
    const struct session_sent_call call = {.kind = "evaluation",
                                           .run = s->hello->run,
                                           .round = task->round,
                                           .has_rows = true,
                                           .rows = evaluation.rows};
    TRY(session_sent_message(&s->sent, &call, &request.base));
    while (err_is(e = remote_call(&reply, s->client, &method, &request.base, 0)))
        TRY(session_round_retry(s, e));
    retry_ok(&s->retry);
    message_free(reply);
    if (evaluation.accuracy < 0)
        session_round_note(s, "round %u: loss %.4f over %" PRIu64 " held-out rows", task->round,
                           evaluation.loss, evaluation.rows);
    else
        session_round_note(s, "round %u: loss %.4f, accuracy %.4f over %" PRIu64 " held-out rows",
                           task->round, evaluation.loss, evaluation.accuracy, evaluation.rows);
    return ERR_NONE;
}
