/* Turns an upload that has all its bytes into a durable update, or refuses it with the reason.
 * Worker thread. In order:
 *
 *     1. the digest of the file
 *     2. unit example: the copy of the member's ledger accounts for it
 *     3. the length of the header, and then the checks of the method (method_check_update)
 *     4. the file is flushed and named: a blob
 *     5. the rows of the whole batch, in one commit
 *
 * A refused or failed upload leaves nothing counted. Before, round_judge() has decided in which
 * round it may count. */
#ifndef COORDINATOR_ADMIT_H
#define COORDINATOR_ADMIT_H

#include "agg/round/method.h"
#include "coordinator/work/work.h"

struct admit_job {
    struct work_job job; /* first: work.h's part */
    void *owner;         /* for the loop thread only */
    size_t member_index;
    /* NULL: an operator's blob. Its digest is checked and it is pinned. */
    const struct method *method;
    char part[LIMIT_PATH_BYTES]; /* the upload's file in the spool */
    bool resumed;  /* it came in pieces, so wrong bytes may not be the sender's fault */
    bool digested; /* this process has written the file and computed its digest: no check of it */
    char run[LIMIT_NAME_BYTES], member[LIMIT_NAME_BYTES];
    struct digest state;         /* of the state it was trained from */
    err damage;                  /* out: the state cannot be used any more, so the run fails */
    uint64_t header_max;         /* bytes of the file's header, by the run's modules */
    struct method_expect expect; /* without state and member, which admit.c fills in */
    struct store_update update;  /* update.member is set from `member` */
    /* Unit example: the run's budget for the records of a member. The copy of the member's ledger
     * must account for the update, within this budget. epsilon 0: no such check. */
    double epsilon, delta;
};

enum {
    ADMIT_BATCH_MAX = 32,
    ADMIT_PINS_MAX = 64,
    ADMIT_KINDS_MAX = 4, /* of releases in a member's ledger for one run */
};
/* Bytes that are read and flushed within some tenths of a second. A batch has no more, except that
 * one job may have; such a job belongs to a worker of its own (admit_is_slow). */
#define ADMIT_QUICK_BYTES (64ull << 20)

/* This job can take seconds: a large file, or the accounting of a ledger. Sets job.cost. */
bool admit_is_slow(struct admit_job *job);

/* work_options.run for a queue of admit_jobs. */
void admit_run(struct work_job *batch, struct store *store);

#endif
