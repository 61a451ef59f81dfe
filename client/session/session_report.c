/* Reports of a round's training: client/session/session_report.h.
 *
 * Two threads share struct session_report. The training thread writes the progress under `lock`;
 * the reporting thread copies it under `lock` and sends it without. `abandon` goes the other way
 * and is atomic, because the trainer reads it at every step. */
#include "client/session/session_report.h"

#include "base/stop.h"
#include "base/text.h"
#include "client/session/remote.h"
#include "proto/message.h"
#include "proto/rpc_path.h"

#include "fedlora.pb-c.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Often enough for `run watch`, seldom enough for 10,000 members. The short time limit bounds the
 * wait for the thread at the end of a round. */
enum { REPORT_EVERY_S = 3, REPORT_CALL_MS = 5000 };

/* The reason is written before `abandon` is set, which makes it visible to the other thread. */
static void send_report(struct session_report *r, const Fedlora__V1__ReportRequest *request)
{
    static const struct remote_method method = {RPC_PATH_FEDERATION(report),
                                                &fedlora__v1__report_reply__descriptor};
    Fedlora__V1__ReportReply *reply = NULL;
    err e = remote_call(&reply, r->client, &method, &request->base, REPORT_CALL_MS);
    if (err_is(e)) return;
    if (reply->abandon && !atomic_load(&r->abandon)) {
        snprintf(r->reason, sizeof r->reason, "%s", reply->reason);
        atomic_store(&r->abandon, true);
    } else if (!reply->abandon) {
        pthread_mutex_lock(&r->lock);
        snprintf(r->notice, sizeof r->notice, "%s", reply->reason);
        pthread_mutex_unlock(&r->lock);
    }
    message_free(reply);
}

/* The first report is sent at once, so that the coordinator sees that the member has started. The
 * condition variable ends the pause early when training ends. */
static void *report_main(void *argument)
{
    struct session_report *r = argument;
    pthread_mutex_lock(&r->lock);
    while (!r->ending) {
        Fedlora__V1__ReportRequest request = FEDLORA__V1__REPORT_REQUEST__INIT;
        request.run = (char *)(uintptr_t)r->run;
        request.round = r->round;
        request.step = r->step;
        request.steps = r->steps;
        request.loss = r->loss;
        request.tokens_per_second = r->tokens_per_second;
        pthread_mutex_unlock(&r->lock);
        send_report(r, &request);
        struct timespec until;
        clock_gettime(CLOCK_MONOTONIC, &until);
        until.tv_sec += REPORT_EVERY_S;
        pthread_mutex_lock(&r->lock);
        while (!r->ending && pthread_cond_timedwait(&r->wake, &r->lock, &until) == 0) {
        }
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* The condition waits on the monotonic clock: a clock that is set back must not stop the reports.
 * If no thread can be created, training continues without reports. */
static void begin(struct session_report *r)
{
    char what[64];
    snprintf(what, sizeof what, "%.30s round %" PRIu32, r->run, r->round);
    progress_begin(&r->progress, r->quiet, what, "tokens");
    pthread_condattr_t attributes;
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_mutex_init(&r->lock, NULL);
    pthread_cond_init(&r->wake, &attributes);
    pthread_condattr_destroy(&attributes);
    r->running = pthread_create(&r->thread, NULL, report_main, r) == 0;
}

/* Called by the trainer after each step. In a private run only the step number is passed on: the
 * loss depends on the records, and so does the speed, by the length of the rows drawn. */
static bool on_step(void *user, const struct train_step *step)
{
    struct session_report *r = user;
    char detail[64] = "private";
    r->tokens += step->tokens;
    r->seconds += step->seconds;
    if (!r->loss_is_private) snprintf(detail, sizeof detail, "loss %.4f", step->loss);
    pthread_mutex_lock(&r->lock);
    r->step = (uint32_t)step->step + 1;
    r->steps = (uint32_t)step->steps;
    if (!r->loss_is_private) {
        r->loss = step->loss;
        r->tokens_per_second = r->seconds > 0 ? (double)r->tokens / r->seconds : 0;
    }
    bool noticed = r->notice[0] != 0 && strcmp(r->notice, r->said) != 0;
    if (noticed) memcpy(r->said, r->notice, sizeof r->said);
    pthread_mutex_unlock(&r->lock);
    if (noticed) {
        text_tame(r->said); /* it ends on a terminal */
        progress_note(&r->progress, r->said);
    }
    progress_update(&r->progress, step->step + 1, step->steps, r->tokens, detail);
    return !atomic_load(&r->abandon) && !stop_asked;
}

/* Waits for a report that is being sent. */
static void end(struct session_report *r)
{
    progress_end(&r->progress, NULL);
    pthread_mutex_lock(&r->lock);
    r->ending = true;
    pthread_cond_signal(&r->wake);
    pthread_mutex_unlock(&r->lock);
    if (r->running) pthread_join(r->thread, NULL);
    pthread_cond_destroy(&r->wake);
    pthread_mutex_destroy(&r->lock);
}

/* Training that was ended by the coordinator returns an error of the trainer; the caller needs to
 * see ERR_STATE. An interruption by the user takes precedence. */
err session_report_train(struct train_result *out, struct session_report *r, const char *path,
                         const struct member_train *work)
{
    struct member_train reporting = *work;
    reporting.on_step = on_step;
    reporting.user = r;
    begin(r);
    err e = member_train(out, path, &reporting);
    end(r);
    if (atomic_load(&r->abandon) && !stop_asked)
        e = err_make(ERR_STATE, "round %" PRIu32 ": the coordinator ended it early", r->round);
    else
        r->failed = e.kind == ERR_STATE; /* the only reason for which a trainer returns it */
    return e;
}
