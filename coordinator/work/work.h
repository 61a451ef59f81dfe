/* A worker: a thread with its own connection to the store and a bounded queue. The loop thread
 * pushes jobs and takes them back with work_take(); in between a job belongs to the worker, which
 * runs them in batches. One flush of the disk can serve a whole batch. Jobs of one lane run in
 * order, and lanes take turns, so that many jobs of one lane do not delay those of another.
 *
 * Background jobs (work_push_background) run one at a time, and only while nothing else waits. A
 * background job calls work_gives_way() often; when the answer is true it ends soon with
 * ERR_STOPPED. If it gave way to other work it is run again later, from its start; if it was
 * abandoned, or the worker is closing, it comes back with ERR_STOPPED. */
#ifndef COORDINATOR_WORK_H
#define COORDINATOR_WORK_H

#include "coordinator/store/store.h"

#include <stdatomic.h>

struct work;
struct work_job {
    struct work_job *next;
    void (*done)(struct work_job *job); /* loop thread; the job is the owner's again */
    err result;
    const void *lane; /* equal pointers, equal lanes; NULL is a lane as well */
    uint64_t cost;    /* in the unit of work_options.cost_max */
    /* for work.c only */
    struct work *work;
    bool in_background;
    atomic_bool abandoned;
    struct work_job *lane_next, *lane_last; /* last: only in the first waiting job of a lane */
};

struct work_options {
    const char *name; /* of the thread, at most 15 letters */
    struct store_place place;
    size_t queue_max, batch_max;
    uint64_t cost_max; /* of a batch of several jobs; 0: any */
    /* Worker thread: sets each job's `result`. */
    void (*run)(struct work_job *batch, struct store *store);
    void (*wake)(void *context); /* worker thread: a finished job can be taken */
    void *context;
    /* No thread: work_take() does the work. For simulations, where the order of everything is
     * decided by virtual time. */
    bool in_caller;
};

err work_open(struct work **out, const struct work_options *options);
err work_push(struct work *work, struct work_job *job); /* ERR_LIMIT: the queue is full */
err work_push_background(struct work *work, struct work_job *job);
/* This background job is no longer needed. It still comes back: at the next work_take() if it has
 * not begun, and with its result if it was about to end. Loop thread. */
void work_abandon(struct work_job *job);
bool work_gives_way(const struct work_job *job); /* worker thread */
/* Runs `done` of every job that has come back; returns how many. Loop thread. With in_caller it
 * first does all work that waits, also work that was pushed meanwhile. */
size_t work_take(struct work *work);
/* Finishes the batch in hand (a background job gives way); the rest comes back with ERR_STOPPED.
 * Runs their `done`. NULL is fine. */
void work_close(struct work *work);

#endif
