/* One task of a member: training a round and sending its update, or evaluating a state. session.c
 * asks the coordinator for tasks and calls these functions. They end when the task is done, and
 * retry lost connections by themselves. */
#ifndef CLIENT_SESSION_ROUND_H
#define CLIENT_SESSION_ROUND_H

#include "client/session/retry.h"
#include "client/session/session_local.h"
#include "client/session/session_privacy.h"
#include "client/session/session_sent.h"
#include "client/session/session_work.h"

#include "fedlora.pb-c.h"

enum {
    SESSION_AGAIN_MS = 1000, /* shortest pause before the same task is done a second time */
    SESSION_LEFT_MAX = 64,
};

/* Tells one version of a file from the next. */
struct session_files_mark {
    uint64_t inode;
    int64_t made_s, made_ns;
};

/* Everything of one membership. The pointers of the second group belong to the current run
 * (session_runs.h) and are NULL before the first answer to Hello. `hello` describes the run; it is
 * replaced when the member reconnects. */
struct session {
    const struct session_options *o;
    struct session_local local; /* base, data and engine */
    struct session_work work;   /* the work directory, locked */
    struct session_sent sent;   /* the journal in it */
    struct rpc_client *client;
    struct retry retry; /* of all calls of this connection */
    bool only;          /* takes part in one run */
    bool held;          /* the newest Hello was not sent, because the run may not be joined */
    bool answered;      /* the coordinator has answered a call of this process */
    struct session_run *runs;

    struct session_run *now;
    Fedlora__V1__HelloReply *hello;
    struct session_privacy *privacy;
    struct session_result *result;

    char *left[SESSION_LEFT_MAX];       /* session_runs_left() */
    char refused_said[ERR_TEXT_BYTES];  /* the last refusal of another run that was printed */
    err failed;                         /* why a run was left first */
    const struct session_run *last;     /* the run that ended last; NULL: none */
    const struct session_run *prepared; /* the run that `local` was prepared for */
    char wait_reason[512];              /* the last reason for waiting that was printed */
    char status[256];                   /* the last one sent to the service manager */
    /* The certificate's file in use; the last fault of it that was printed, and when. */
    struct session_files_mark files;
    char files_said[ERR_TEXT_BYTES];
    uint64_t files_said_ms;
};

/* A note for the user on standard error, unless --quiet was given. */
void session_round_note(const struct session *s, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* After a failed call: reads the certificate's files again, and waits if a retry can help, else
 * returns `cause`. Files that cannot be used, and certificates that are not accepted any more, do
 * not end a membership. */
err session_round_retry(struct session *s, err cause);
/* Reports to the coordinator that this member cannot train in `run` ("": in any), so that operators
 * see the reason. One attempt, whose failure is ignored: the user gets the reason anyway. */
void session_round_cannot_train(struct session *s, const char *run, const char *reason);
/* Each does one task completely. ERR_STATE: the task is out of date; ask for the next one. */
err session_round_train(struct session *s, const Fedlora__V1__TrainTask *task);
err session_round_evaluate(struct session *s, const Fedlora__V1__EvaluateTask *task);

#endif
