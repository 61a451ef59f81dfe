/* A member's part in a run, from joining to the end: hello, then task after task (download the
 * state, train, submit) until the coordinator says that the run has finished. Goes on through
 * restarts of either side: what was downloaded, trained or half sent is kept in the work folder. */
#ifndef CLIENT_SESSION_H
#define CLIENT_SESSION_H

#include "base/digest.h"
#include "base/dtype.h"
#include "client/session/remote.h"
#include "engine/train/train_ledger.h"

struct session_options {
    struct remote_options remote;
    const char *base, *data;
    const char *eval_data; /* held-out rows to evaluate states on; NULL: none */
    const char *run;       /* NULL: the one open run this member belongs to */
    const char *work;      /* NULL: see session_work.h */
    const char *output;    /* where the last state goes, or NULL */
    uint32_t rank;         /* of LoRA factors, what this machine offers; 0: whatever the run asks */
    uint64_t memory;       /* told to the coordinator; 0: no bound */
    uint64_t retry_ms;     /* how long the coordinator may be away */
    const char *device;
    enum dtype precision; /* DTYPE_NONE: as the run says */
    int threads;
    /* Where a run's unit of privacy is one record: our ledger and the key that signs it; and the
     * most we let a run spend, also the ledger's budget if it begins now. NULL and 0: not given. */
    const char *ledger, *ledger_key;
    double epsilon, delta;
    bool checkpoint, quiet, force;
};

struct session_result {
    char run[LIMIT_NAME_BYTES], member[LIMIT_NAME_BYTES], outcome[32];
    struct digest state; /* the last one */
    uint64_t state_size;
    struct digest ledger_head; /* of the coordinator's privacy ledger; zero: none */
    uint32_t rounds_trained;   /* by this process */
    bool charged;              /* the run hides each record: what our own ledger comes to */
    struct train_ledger_spent spent;
    uint64_t bytes_up, bytes_down;
};

/* ERR_REFUSED: the coordinator will not have us. ERR_MACHINE: it was away too long, or this machine
 * failed. */
err session_run(struct session_result *out, const struct session_options *options);

#endif
