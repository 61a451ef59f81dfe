/* One worker thread with its own connection to the store and a bounded queue. The loop thread
 * pushes jobs (given away until they come back), the worker runs them in order, in batches, and the
 * loop thread takes them back with work_take(). A batch is what a single flush of the disk can
 * serve at once. */
#ifndef COORDINATOR_WORK_H
#define COORDINATOR_WORK_H

#include "coordinator/store/store.h"

struct work_job {
    struct work_job *next;
    void (*done)(struct work_job *job); /* loop thread; the job is the owner's again */
    err result;
};

struct work_options {
    const char *name; /* of the thread, at most 15 letters */
    const char *data_dir;
    size_t queue_max, batch_max;
    /* Worker thread: sets each job's `result`. */
    void (*run)(struct work_job *batch, struct store *store);
    void (*wake)(void *context); /* worker thread: something is to be taken */
    void *context;
};

struct work;
err work_open(struct work **out, const struct work_options *options);
err work_push(struct work *work, struct work_job *job); /* ERR_LIMIT: the queue is full */
/* Runs `done` of every job that has come back; returns how many. Loop thread. */
size_t work_take(struct work *work);
size_t work_pending(struct work *work); /* pushed and not yet taken back */
/* Finishes the batch in hand; the rest comes back with ERR_STOPPED. Runs their `done`. NULL is
 * fine. */
void work_close(struct work *work);

#endif
