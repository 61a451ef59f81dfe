/* An upload that has all its bytes becomes a durable update, or is refused with the reason: its
 * digest, then everything the method asks of it (agg's method_check_update), then the file is
 * flushed and named, and all rows of the batch are committed at once. Worker thread; a refused or
 * failed upload leaves nothing counted. What round it may count in was decided before, by
 * round_judge(). */
#ifndef COORDINATOR_ADMIT_H
#define COORDINATOR_ADMIT_H

#include "agg/round/method.h"
#include "coordinator/work/work.h"

struct admit_job {
    struct work_job job; /* first: work.h's part */
    void *owner;         /* the loop thread's own */
    size_t member_index;
    const struct method
        *method; /* NULL: an operator's blob: only its digest is checked, and pinned */
    char part[LIMIT_PATH_BYTES]; /* the upload in the spool */
    bool resumed;                /* in several pieces: wrong bytes may be the resumption's fault */
    char run[LIMIT_NAME_BYTES], member[LIMIT_NAME_BYTES];
    struct digest state;         /* of the state it was trained from; its blob is here */
    struct method_expect expect; /* without state and member, which this file fills in */
    struct store_update update;  /* update.member is set from `member` */
    /* Unit example: what the run promises for each member's records; epsilon 0: nothing. Then the
     * copy of the member's ledger must account for the update, within the promise. */
    double epsilon, delta;
};

enum { ADMIT_BATCH_MAX = 32, ADMIT_PINS_MAX = 64 };

/* work_options.run for a queue of admit_jobs. */
void admit_run(struct work_job *batch, struct store *store);

#endif
