/* The service: all runs, the RPC server, the workers, and the loop that ties them together.
 *
 * One thread (the loop thread) calls everything here. serve_step() handles whatever has happened
 * and returns. Workers have a thread and a store connection each: `receipts` makes uploads
 * durable, `maths` combines updates, `keeper` sweeps the store, `signer` signs certificates. A job
 * pushed to a worker belongs to it until it comes back. */
#ifndef COORDINATOR_SERVE_H
#define COORDINATOR_SERVE_H

#include "coordinator/run/run.h"
#include "coordinator/serve/rate.h"
#include "coordinator/serve/serve_identity.h"
#include "proto/enroll_token.h"
#include "proto/rpc.h"
#include "proto/rpc_path.h"

struct serve_poll { /* a call that waits for its run to change */
    struct serve_poll *next, *previous;
    struct rpc_call *call;
    struct run *run;
    size_t member; /* of a NextTask */
    bool any; /* it waits for any run of the member; `run` is the one that came first, or NULL */
    Fedlora__V1__NextTaskRequest *request; /* with `any`; owned by a waiting call */
    uint64_t after;                        /* of a WatchRun: the last event seen */
    uint64_t until_ms;                     /* when it must be answered */
    /* Answers the call if there is something to answer, or with `must` in any case. True: it is
     * answered. */
    bool (*answer)(const struct serve_poll *poll, bool must);
};

/* The state of serve_watch(). */
struct serve_watch {
    uint64_t next_ms, next_sweep_ms, next_certificate_ms, next_blobs_ms; /* 0: now */
    char at[LIMIT_NAME_BYTES]; /* the next run to look at; "": the first */
    bool disk_full;            /* the runs' events say so */
    uint64_t log_lost;         /* lines, when it was looked at last */
    uint64_t next_backup_ms;   /* serve_backup.c */
    int64_t backup;            /* the newest one that was seen */
    int64_t expiry_looked_s;   /* serve_expiry.c: wall clock; 0: not yet */
    uint64_t next_keep_ms;     /* serve_retain.c: the next sweep of the store */
};

struct serve {
    struct config *config;
    struct rpc_server *server;
    struct rate rate, enroll_rate, renew_rate;
    struct serve_identities identities;
    struct work *signer;
    struct run_shop shop;
    struct tally tally;  /* shop.tally */
    struct run *runs;    /* in order of creation */
    struct run *deleted; /* in no list, but calls that are under way may still point to them */
    size_t run_count;
    struct serve_poll *polls;
    uint64_t ticked_ms;   /* the time of the last ticks; 0: none yet */
    uint64_t polls_at_ms; /* earliest until_ms of all polls; 0: not known */
    bool draining;
    bool sweeping;            /* serve_retain.c: a sweep of the store is under way */
    struct store_epoch epoch; /* of this start */
    struct serve_watch watch;
    uint64_t promised; /* bytes that the open uploads have announced and not sent yet */
    /* The run that this call is about, for its refusal. Handlers are not nested, so the newest is
     * enough. */
    const struct rpc_call *asking;
    const struct run *asked;
};

/* The store must be recovered and the data folder locked (main.c). The struct must not move. */
err serve_open(struct serve *out, struct config *config);
void serve_step(struct serve *s, uint64_t timeout_ms);
/* Finishes work in progress, gives open calls at most grace_ms to end, closes everything. Accepts a
 * zeroed struct. */
void serve_close(struct serve *s, uint64_t grace_ms);

/* After limits.calls_per_second has changed. */
void serve_use_rate(struct serve *s);

/* ---- for serve_*.c */
struct serve *serve_of(struct rpc_call *call);
struct run *serve_find_run(const struct serve *s, const char *name); /* or NULL */
size_t serve_open_runs(const struct serve *s); /* runs that are neither finished nor stopped */
err serve_no_run(const struct serve *s, const char *name); /* why it was not found */
/* Refuses the call, and reports that as a trouble. After ERR_MACHINE the peer is told to come back
 * later. */
void serve_refuse(struct rpc_call *call, err cause);
/* The same without the report, for a refusal that was reported already. */
void serve_refuse_only(struct rpc_call *call, err cause);
/* serve_refuse() names this run. Called by serve_member(). */
void serve_about(struct rpc_call *call, const struct run *run);
void serve_answer(struct rpc_call *call, const ProtobufCMessage *reply);
/* Refuses the call if e is an error, else answers it. */
static inline void serve_end(struct rpc_call *call, err e, const ProtobufCMessage *reply)
{
    if (err_is(e))
        serve_refuse(call, e);
    else
        serve_answer(call, reply);
}
/* The run of this name and the peer's index in it. "" is the only open run the peer belongs to. */
err serve_member(struct run **run, size_t *member, struct rpc_call *call, const char *name);
bool serve_is_over(const struct run *run); /* finished or stopped */
/* serve_turn.c: like serve_member(), but "" is the run whose turn it is among all that the peer
 * belongs to. ERR_STATE: there is none. */
struct serve_turn {
    const char *name;
    bool ended;     /* also a run that has ended and whose end it does not know yet */
    bool stay;      /* no run is no error: *run is NULL then */
    char **without; /* not these runs */
    size_t withouts;
};
err serve_turn(struct run **run, size_t *member, struct rpc_call *call,
               const struct serve_turn *turn);
err serve_check_member(struct rpc_call *call);
err serve_check_admin(struct rpc_call *call);
/* A file that the database names is not on the disk. `run` may be NULL. */
void serve_report_missing(struct serve *s, const struct run *run, const struct digest *digest);
err serve_digest(struct digest *out, const ProtobufCBinaryData *data);
void serve_wait(struct serve *s, const struct serve_poll *poll);
/* Answers the waiting calls for a task of this member now. */
void serve_end_waits(struct serve *s, const struct run *run, size_t member);
void serve_poll_over(struct rpc_call *call, bool answered); /* `over` of calls that may wait */

/* serve_session.c: one certificate on two machines. The machine that takes part in a run keeps its
 * place, so that no work is lost; another one is refused until the first has been silent for
 * limits.absent_after. With limits.sessions = replace the newest machine takes the place, and the
 * one before is refused and told so. A call without a session is never refused.
 *
 *     serve_session_check()      another machine takes part: ERR_LIMIT for Hello, and a line in the
 *                                log; ERR_STATE for other calls
 *     serve_session_take()       this machine takes part from now on
 *     serve_session_notice()     text for the machine that keeps its place; "": there is no other
 *     serve_session_elsewhere()  it has called for any of its runs within limits.absent_after */
err serve_session_check(struct rpc_call *call, struct run *run, size_t member,
                        const ProtobufCBinaryData *session, bool hello);
void serve_session_take(struct rpc_call *call, struct run *run, size_t member,
                        const ProtobufCBinaryData *session);
bool serve_session_elsewhere(const struct run *run, size_t member, uint64_t now);
void serve_session_notice(char *out, size_t bytes, const struct run *run, size_t member);

/* serve_submit.c: the bytes of a member's open upload; false: there is none. */
bool serve_upload(uint64_t *received, uint64_t *size, const struct run_member *member);

/* A RunStatus in the arena; `whole` with members and rounds, else also without the configuration's
 * members. */
err serve_status(Fedlora__V1__RunStatus **out, struct run *run, bool whole, struct arena *arena);
/* The whole status, with the members after the first `members_after`, as far as there is room. */
err serve_status_page(Fedlora__V1__RunStatus **out, struct run *run, uint32_t members_after,
                      struct arena *arena);

/* Published rounds, as messages in the arena. */
err serve_rounds(Fedlora__V1__RoundStatus ***out, size_t *count, const struct run *run,
                 const struct store_rounds_of *of, struct arena *arena);
/* For an operator's call: the run of this name. ERR_REFUSED: the peer is no operator. */
err serve_named(struct run **out, struct rpc_call *call, const char *name);
void serve_answer_run(struct rpc_call *call, struct run *run); /* its whole status */

/* Troubles of the coordinator and of `run` (NULL: of all runs), in the arena. */
err serve_troubles(char ***out, size_t *count, struct troubles *t, const char *run,
                   struct arena *arena);

/* serve_trouble.c: refused calls, and certificates of peers that end soon. */
void serve_report(struct serve *s, const struct rpc_peer *peer, const char *method, err cause);
/* A member that named no run belongs to several. */
void serve_report_ambiguous(struct rpc_call *call, err why);
void serve_refused_early(void *context, const struct rpc_peer *peer, const char *method, err why);
/* "client/north": a member and an operator of the same name are different peers. */
const char *serve_peer_name(char out[TROUBLE_PEER_BYTES], const struct rpc_peer *peer);
void serve_check_certificate(struct serve *s, const struct rpc_peer *peer);
/* serve_audit.c. Lines of the audit log; serve_audit_turn() makes them durable at the end of a turn
 * of the loop and sends the replies that waited for that. */
void serve_audit_turn(struct serve *s);
bool serve_audit_holds(void *serve); /* for rpc_server_options */
/* A call or a handshake that was refused for who the peer is. `address` NULL: the peer's. Any
 * thread. */
void serve_audit_denied(const struct serve *s, const struct rpc_peer *peer, const char *address,
                        const char *what, const char *why);
/* Before an action of an operator: ERR_MACHINE if its line could not be written. */
err serve_audit_ready(struct rpc_call *call);
/* Its line: `e` is the result of the action; `detail` may be NULL. */
void serve_audit_act(struct rpc_call *call, const char *action, const char *object,
                     const char *detail, err e);
void serve_audit_fetched(struct rpc_call *call, const struct run *run, const struct digest *digest,
                         uint64_t offset);
/* serve_watch.c. Before any work is pushed: are the files of all runs there? */
void serve_check_blobs(struct serve *s);
/* serve_backup.c. Looks for a backup that was made since the last look. */
void serve_note_backups(struct serve *s, uint64_t now_ms);
/* serve_retain.c. Once a second: archives runs by the rules, and starts a sweep when it is time. */
void serve_retain_turn(struct serve *s, uint64_t now_ms);
/* Called in each turn, before calls: may they be counted? */
void serve_hide_calls(struct serve *s);
/* Called in each turn; looks at most once a second. */
void serve_watch(struct serve *s, uint64_t now_ms);

/* serve_enroll.c: certificates. Jobs of the signer come back by work_take(s->signer). */
err serve_enroll_open(struct serve *s);
void serve_enroll_close(struct serve *s);
/* serve_token.c: makes the token's secret, stores its digest, and prints the token. token: with
 * `who`, `server`, `made_by`, `made_ms` and `ends_ms`. */
err serve_token_make(char out[ENROLL_TOKEN_BYTES], struct store *store, const struct config *config,
                     struct store_token *token);

/* serve_methods.c: the handlers of all remote procedures, for rpc_server_open(). */
enum { SERVE_METHODS = RPC_PATHS_FEDERATION + RPC_PATHS_ADMIN + RPC_PATHS_ENROLMENT };
void serve_methods(struct rpc_method out[SERVE_METHODS]);

/* Each file's own handlers. */
extern const struct rpc_method serve_member_method[], serve_fetch_method[], serve_submit_method[],
    serve_admin_method[], serve_ledger_method[], serve_enroll_method[], serve_roster_method[],
    serve_token_method[], serve_audit_method[], serve_manifest_method[], serve_list_method[],
    serve_retain_method[];
extern const size_t serve_member_methods, serve_fetch_methods, serve_submit_methods,
    serve_admin_methods, serve_ledger_methods, serve_enroll_methods, serve_roster_methods,
    serve_token_methods, serve_audit_methods, serve_manifest_methods, serve_list_methods,
    serve_retain_methods;

#endif
