/* One live run, on the loop thread: its configuration, its state machine (round.h), the facts about
 * its members that the store keeps, and the work given to the workers. Everything that must be
 * durable is made durable before its event is fed to the state machine. Handlers (serve_*.c) read
 * the fields and change them only through these functions. */
#ifndef COORDINATOR_RUN_H
#define COORDINATOR_RUN_H

#include "coordinator/audit/audit.h"
#include "coordinator/config.h"
#include "coordinator/run/round.h"
#include "coordinator/run/run_config.h"
#include "coordinator/run/run_privacy.h"
#include "coordinator/run/tally.h"
#include "coordinator/run/trouble.h"
#include "coordinator/work/admit.h"
#include "coordinator/work/publish.h"
#include "proto/rpc.h"

enum { RUN_SOFTWARE_BYTES = 512 };

struct run;
struct run_shop {        /* shared by all runs; the caller sets the members from `config` on */
    struct store *store; /* the loop thread's connection */
    struct work *maths, *receipts, *slow_receipts;
    struct work *keeper; /* keep.h; NULL: a simulation */
    struct troubles *troubles;
    struct audit *audit; /* NULL: a simulation */
    struct tally *tally; /* counters for metrics, or NULL; the caller's */
    const struct config *config;
    /* Tasks or events of the run have changed, so waiting calls may have an answer now. */
    void (*changed)(struct run *run, void *context);
    /* The time of every event: run_clock(), or the virtual time of a simulation. Never 0. */
    uint64_t (*now_ms)(void *context);
    void (*wake)(void *context); /* worker thread: run_shop_turn() has something to do */
    void *context;
    /* The operator whose call is being handled, for events and the log: "admin/ops at
     * 10.0.0.7:4711". Empty: none. */
    char by[TROUBLE_BY_BYTES];
    uint64_t queue_numbers;            /* run_queue.c: the last one that was given */
    char software[RUN_SOFTWARE_BYTES]; /* this program, its libraries, its processor */
    /* The work is done by run_shop_turn(), in its thread, and nothing is flushed to the disk. */
    bool simulated;
    struct run_aside *aside; /* (asides) runs of the store that cannot be loaded */
    size_t asides;
};
struct run_aside {
    char name[LIMIT_NAME_BYTES];
    err why;
};
/* Opens the store at config->path and the workers. */
/* The store of this configuration. */
struct store_place run_shop_place(const struct config *config);
err run_shop_open(struct run_shop *shop);
/* Takes back finished work, whose results are fed to the runs. Loop thread. */
void run_shop_turn(struct run_shop *shop);
/* Gives an upload to the worker for receipts of its kind. The run, or NULL for a blob of an
 * operator, is its lane. */
err run_shop_admit(struct run_shop *shop, struct admit_job *job, const struct run *run);
/* Ends the workers; then the runs can be closed, and after them the store. A shop that could be
 * opened only in part, or was zeroed, is accepted. */
void run_shop_stop(struct run_shop *shop);
void run_shop_close(struct run_shop *shop);

/* A list of modules that members have said in Hello, while the run has no shapes (run_shapes.h). */
struct run_proposal {
    struct digest digest;
    Fedlora__V1__HelloRequest *modules; /* NULL: a free place */
    size_t members;                     /* that have said it last */
};
enum { RUN_PROPOSALS_MAX = 16 };

struct run_member {
    uint32_t rank;
    uint32_t pruned;     /* the rank it has pruned itself to; 0: never */
    unsigned proposal;   /* its place in run.proposal, plus 1; 0: none */
    const char **adapts; /* (adapts_count) sorted, of run->modules or of its proposal; or NULL */
    size_t adapts_count;
    bool adapts_shared; /* the list is that of all members without one of their own */
    uint64_t examples, eval_rows, bytes_up, bytes_down;
    uint64_t bytes_down_new; /* the part of bytes_down that is not yet in the store */
    double train_loss;
    struct store_evaluation evaluation; /* its newest; rows 0: none */
    void *upload;                       /* serve_submit.c: the open upload, or NULL */
    void *session;                      /* serve_session.c: its machine, or NULL; freed here */
    bool told_end;                      /* serve_turn.c: it knows that the run is over */
    uint64_t unfit_ms;                  /* serve_turn.c: its Hello was refused then; 0: never */
    bool greeted;                       /* has said hello to this process */
    bool absent;                        /* serve_watch.c: a trouble says so */
    char address[RPC_ADDRESS_BYTES];    /* from which its last call came, or "" */
    struct ledger ledger;               /* run_ledger.c: head and newest lines of the copy of
                                           its privacy ledger */
    bool ledger_read;                   /* all of that copy, since the coordinator started */
};

struct run {
    struct run *next;
    struct run_shop *shop;
    int64_t id;
    Fedlora__V1__RunConfig *config;
    Fedlora__V1__HelloRequest *modules; /* NULL until they are known */
    struct run_proposal proposal[RUN_PROPOSALS_MAX];
    const struct method *method;
    struct method_options options;
    uint32_t rank_max; /* run_config_rank_max() */
    struct round round;
    struct run_member *member;   /* (round.members), by the same index */
    struct publish_blobs newest; /* the result of the last published round, or the start */
    struct central *noise_ahead; /* noise drawn for round `noise_ahead_round`, or NULL */
    uint32_t noise_ahead_round;
    struct publish_job *report;                /* the report being made or waiting to be, or NULL */
    struct method_report_frozen report_frozen; /* used by the worker only, report after report */
    struct digest ledger_head; /* hash of the last line of the run's ledger, once it has started */
    uint32_t opened_saved;     /* the newest round whose opening is durable */
    uint32_t woken_round;      /* serve.c: when members of all their runs were woken last, */
    enum round_phase woken_in; /* it was at this round, in this phase */
    uint64_t created_ms;
    uint32_t overdue_round;         /* serve_watch.c: the newest whose event says so */
    uint64_t ended_ms, archived_ms; /* wall clock; 0: it is not */
    bool deleted;                   /* it is in no list any more, but calls may still point to it */
    uint64_t queue_number; /* run_queue.c: its place in the line for a turn; 0: it is not in it */
    bool said_queued;      /* its newest event about the queue */
    double loss_newest;    /* training loss of the newest published round */
    uint64_t progress_ms;  /* wall clock: it last moved (run_note_progress) */
    /* Updates since this start, for metrics. Refused ones may have been counted before. */
    uint64_t updates_counted, updates_late, updates_refused;
    /* run_diverge.c: lowest losses so far, 0: none; norm of the state before, 0: not known. */
    double loss_least, evaluated_least, state_norm;
    bool diverged; /* it was paused for that once */
    bool audited;  /* run_audit.c: the audit log has its newest round; at a start only */
    /* Configurations that were replaced while a worker could still read them. */
    struct run_retired *retired;
};

uint64_t run_clock(void *context); /* run_shop.now_ms of a service: the monotonic clock */

/* Checks and completes `config`, and makes the run durable. Takes over `config`, also on
 * failure. */
err run_create(struct run **out, struct run_shop *shop, Fedlora__V1__RunConfig *config);
/* A run found in the store after a restart. ROUND_ON_BEGIN makes it continue. */
err run_load(struct run **out, struct run_shop *shop, const struct store_run *was);
/* All runs of the store, as a list in order of creation. One whose rows this version cannot read is
 * set aside by name, and the others continue. On an error *first holds those before it. */
err run_load_all(struct run **first, size_t *count, struct run_shop *shop);
void run_close(struct run *run);

/* Feeds the event to round_apply() and carries out the actions. */
void run_apply(struct run *run, const struct round_event *event);
void run_apply_member(struct run *run, enum round_event_kind kind, size_t member);
void run_tick(struct run *run, uint64_t now_ms);

/* Lets queued runs begin and open rounds, as far as the limits allow. `first`: the list of all
 * runs, in order of creation. In each turn of the loop (run_queue.c). */
void run_queue_turn(struct run *first);

err run_hello(struct run *run, size_t member, const Fedlora__V1__HelloRequest *hello);
/* Makes the opening of the round under way durable, so that it may be handed out. */
err run_save_opening(struct run *run);
/* Gives a complete upload to the worker that checks it and makes it durable. The caller sets
 * `job->job.done`. */
err run_admit(struct run *run, struct admit_job *job, uint32_t trained_round);
/* Applies the result of an admission. */
void run_admitted(struct run *run, const struct admit_job *job);
err run_hold(struct run *run, enum round_event_kind kind); /* pause, resume or stop */
/* The files that the next round needs exist and have their sizes. ERR_INPUT names one that does
 * not, and what the operator can do. */
err run_check_files(const struct run *run);

/* ---- the end of its life (run_retain.c). ERR_STATE: the run is open. The files follow with the
 * next sweep (keep.h). */
err run_archive(struct run *run);
err run_delete(struct run *run);
bool run_is_due(const struct run *run, uint64_t now_wall_ms); /* to be archived by the rules */
const char *run_phase_name(const struct run *run); /* round_phase_name(), archived or deleted */

/* ---- changes of an open run (run_change.c). They are durable on success, and hold from the round
 * under way on, or from the next one if that is being combined. ERR_INPUT: the reason why a method,
 * the privacy or the other values do not allow it. */
err run_set(struct run *run, char *const *assignment /* "key=value" */, size_t count);
err run_member_add(struct run *run, const Fedlora__V1__MemberConfig *member);
/* The member is not waited for and not served any more. An update of it that is in still counts. */
err run_member_drop(struct run *run, const char *id);
/* The round under way closes without this member, whose update, if it is in, is given up. */
err run_drop_update(struct run *run, const char *id);
/* After the list of the federation's members has changed. */
void run_members_allowed(struct run *run);
void run_retired_free(struct run *run);
/* A member's evaluation of a round's result. ERR_INPUT: that round is not published. */
err run_evaluated(struct run *run, size_t member, const struct store_evaluation *evaluation);
void run_flush_counters(struct run *run);
/* alpha and rslora of the factors that a member trains now. */
double run_alpha(const struct run *run, size_t member);
bool run_rslora(const struct run *run, size_t member);

/* The task of a member that has one to train. Makes the opening of the round durable first, so it
 * may fail; then the member asks again later. Strings are the run's. */
struct run_train_task {
    Fedlora__V1__TrainTask message;
    char *factors[3];
};
err run_train_task(struct run_train_task *out, struct run *run, size_t member);
/* Whole lines of a member's own privacy ledger (unit example), from number `from` on, under the
 * name that its certificate gives to the federation. An empty part asks how many lines are held; a
 * part that does not continue at the next line is ignored, a long one is taken in part, and *held
 * says where to continue. So a member that lost a reply can repeat its call. ERR_LIMIT: come back,
 * because the copy is being read after a restart. */
struct run_ledger_part {
    const char *federation;
    uint64_t from;
    ProtobufCBinaryData lines;
};
err run_take_ledger(const struct ledger_head **held, struct run *run, size_t member,
                    const struct run_ledger_part *part);
/* The digest of a blob for a message; empty if there is no blob. */
ProtobufCBinaryData run_blob_name(const struct store_blob *blob);
/* The answer to Hello of a member that has joined. The message points into the run. */
void run_hello_reply(Fedlora__V1__HelloReply *out, const struct run *run, size_t member);
/* The same for a member that only asks what the run is: nothing changes. Before its modules are
 * known, `targets` are those of the configuration. ERR_INPUT as from run_hello(). */
err run_look_reply(Fedlora__V1__HelloReply *out, const struct run *run, size_t member,
                   const Fedlora__V1__HelloRequest *hello);

/* The training of this round failed at the member, for this reason. */
err run_failing(struct run *run, size_t member, uint32_t round, const char *reason);

/* ---- for run*.c only */
static inline uint64_t run_now_ms(const struct run *run)
{
    return run->shop->now_ms(run->shop->context);
}
/* Fills a member's `adapts` from `modules`, which must live as long as it is used. */
err run_learn_member(struct run *run, size_t member, const Fedlora__V1__HelloRequest *modules);
/* Once run->modules is known: the same for each member. */
err run_learn_members(struct run *run);
void run_forget_members(struct run *run);
/* Whether rounds do not wait for the member: it was dropped, or is not of the federation. */
bool run_is_gone(const struct run *run, const char *id);
/* Pause the run once if the figure says that it diverges (run_diverge.c). Of a round that is about
 * to be published, of the newest evaluations, and of a report. */
void run_diverge_round(struct run *run, const struct publish_job *job);
void run_diverge_evaluated(struct run *run);
void run_diverge_state(struct run *run, uint32_t round, double norm);
err run_diverge_load(struct run *run); /* after a restart */
void run_rules(struct round_rules *out, const struct run_shop *shop,
               const Fedlora__V1__RunConfig *config);
/* Gives work of this kind to the worker, for the round under way (run_work.c). */
err run_push_work(struct run *run, enum publish_kind kind);
/* run_audit.c: lines of the audit log. */
void run_audit_published(const struct run *run, const struct publish_job *job);
void run_audit_refused(const struct run *run, const char *member, const struct store_update *u,
                       err why);
void run_audit_loaded(const struct run *run);
/* At a start: the lines of newest rounds that a crash has kept from the log. */
err run_audit_recover(struct run *first, uint64_t wall_ms);
/* A trouble: an update of this member for `round` was refused. */
void run_report_refused(struct run *run, const char *member, uint32_t round, err why);
/* The work could not be done: try again later, or fail the run. */
void run_work_failed(struct run *run, err e);

#endif
