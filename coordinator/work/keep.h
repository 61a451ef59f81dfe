/* Housekeeping of the store, on a worker thread of its own: the files and rows of archived and
 * deleted runs, old events, and free pages of the database. Everything goes in small steps with
 * pauses, so that no call waits for it; when the service stops, the next start continues.
 *
 * With a folder for archives, the last state of an archived run is first copied to
 * DIR/NAME.ID/state.safetensors (and frozen.safetensors), with record.json: the digests of all
 * states, the digests and weights of all updates, and the reports. If that fails, nothing is
 * removed. */
#ifndef COORDINATOR_KEEP_H
#define COORDINATOR_KEEP_H

#include "coordinator/work/work.h"

struct keep_job {
    struct work_job job; /* first: work.h's part */
    void *owner;         /* for the loop thread only */
    uint64_t events_before_ms;
    char archive[LIMIT_PATH_BYTES]; /* "": none */
    bool shrinks;                   /* give free pages of the database back */
    size_t steps;                   /* out */
};
/* work_options.run for a queue of keep_jobs, one at a time. */
void keep_run(struct work_job *batch, struct store *store);

#endif
