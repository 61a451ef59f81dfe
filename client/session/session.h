/* A member's part in its runs, from joining to their end.
 *
 * The member says hello, then asks for tasks one after another (download the state, train, submit;
 * or evaluate) until the coordinator answers that the run has finished. Without the name of a run
 * it takes part in all open runs that it belongs to, in turn, until all are over, or with `stay`
 * until it is interrupted. It continues
 * through restarts of either side: downloads, finished updates and half-sent ones are kept in the
 * work directory. */
#ifndef CLIENT_SESSION_H
#define CLIENT_SESSION_H

#include "base/digest.h"
#include "base/dtype.h"
#include "client/session/remote.h"
#include "client/session/session_policy.h"
#include "engine/train/train_ledger.h"

#include <jansson.h>

struct session_result;
/* Everything a user can choose about a membership. Strings are borrowed for the time of the
 * call. */
struct session_options {
    struct remote_options remote;
    const char *base, *data; /* base model; training rows, JSON Lines */
    const char *eval_data;   /* held-out rows to evaluate states on; NULL: none */
    const char *run;         /* NULL: all open runs, with `output` one of them */
    const char *work;        /* work directory; NULL: see session_work.h */
    const char *keep_sent;   /* folder for copies of all updates that are sent; NULL: none */
    const char *output;      /* file for the last state; NULL: none */
    uint32_t rank;           /* LoRA rank that this machine offers; 0: the rank the run asks for */
    uint64_t memory;         /* bytes, reported to the coordinator; 0: not reported */
    uint64_t retry_ms;       /* longest time without an answer of the coordinator */
    const struct session_policy *policy; /* of the administrator; NULL: none */
    uint64_t checkpoint_ms; /* time of training between two checkpoints; 0: only when stopped */
    bool accept_restore;  /* take part also if the coordinator runs on an older copy of its store */
    bool stay;            /* serve one run after another until the user interrupts */
    const char *device;   /* "auto", "cpu", "cuda", "cuda:1" */
    enum dtype precision; /* DTYPE_NONE: the precision of the run */
    int threads;          /* 0: all */
    /* For runs with example-level privacy: this member's ledger and the key that signs it, and the
     * largest epsilon and delta it accepts, which are also the budget of a newly created ledger.
     * NULL and 0: not given. */
    const char *ledger, *ledger_key;
    double epsilon, delta;
    bool simulated;       /* the ledger is one of a simulation */
    bool checkpoint;      /* recompute activations: less memory, slower */
    bool quiet;           /* print no notes and no progress */
    bool force;           /* replace an existing output file */
    const char *template; /* chat template: a built-in name or a file; NULL: the base's own */
    bool bos; /* put the bos token before rows of text, also if the run does not ask for it */
    enum base_memory base_memory;
    /* Called at the end of each run, if it is set; an error ends the membership. */
    err (*ended)(void *user, const struct session_result *result);
    void *user;
};

/* The outcome of a run, for the user. Byte counts and rounds are those of this process, not of the
 * whole run. */
struct session_result {
    char run[LIMIT_NAME_BYTES], member[LIMIT_NAME_BYTES];
    char outcome[32];    /* "finished", "stopped" or "failed" */
    struct digest state; /* the last state; zero: none */
    uint64_t state_size;
    struct digest ledger_head; /* last hash of the coordinator's privacy ledger; zero: none */
    uint32_t rounds_trained;
    bool charged;                    /* the run has example-level privacy; `spent` is set */
    struct train_ledger_spent spent; /* totals of this member's ledger */
    uint64_t bytes_up, bytes_down;   /* contents of updates and blobs, without framing */
    /* "data" and "eval_data": client/session/data_report.h. NULL in a run with privacy, and after
     * `ended`, because it is borrowed. */
    json_t *data;
};

/* With `stay` it returns only after an interruption, or if this machine cannot work at all. Else it
 * returns when all runs have ended; *out is the result of the last one. A run that this member
 * cannot take part in is left, and its error returned after the end of the others. ERR_REFUSED: the
 * coordinator does not accept this member. ERR_MACHINE: it did not answer for too long, or this
 * machine failed. ERR_STOPPED: interrupted; calling it again with the same work directory
 * continues. */
err session_run(struct session_result *out, const struct session_options *options);

#endif
