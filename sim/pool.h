/* Trains members on several engines at the same time: one engine for each worker, all over one
 * packed base. The caller's thread is the first worker: it trains while it waits for a task, and
 * the other workers train meanwhile and while it does something else. A worker trains several small
 * tasks together, which share passes over the base. The results depend neither on that nor on the
 * number of workers. */
#ifndef SIM_POOL_H
#define SIM_POOL_H

#include "engine/member/member_evaluate.h"
#include "engine/member/member_train.h"
#include "sim/fleet.h"

struct pool;
struct pool_options {
    size_t workers;
    struct engine_options engine; /* `threads` is for one worker alone; several have one each */
    bool alone;                   /* no tasks share a pass */
};
struct pool_task {
    const struct dataset *data;
    struct member_round round; /* without `state`; paths must stay valid */
    const struct training_options *training;
    const struct train_ledger *ledger; /* the member's plan, unit example; else NULL */
    bool checkpoint;
    char path[LIMIT_PATH_BYTES]; /* of the update */
    struct train_result result;  /* out */
    struct digest digest;        /* out: of the update */
    uint64_t size;               /* out: bytes of the update */
    err error;                   /* out */
    enum pool_stage { POOL_NEW, POOL_WAITING, POOL_TAKEN, POOL_DONE } stage; /* the pool's */
    struct pool_task *next;                                                  /* the pool's */
    size_t tokens; /* the pool's: of a pass, on average; 0: it shares passes with no other task */
};

err pool_open(struct pool **out, const struct fleet *fleet, const struct pool_options *o);
void pool_close(struct pool *p); /* accepts NULL */
/* Hands over tasks, which must stay valid until pool_wait() or pool_drop(). They are begun in this
 * order. */
void pool_start(struct pool *p, struct pool_task *const *task, size_t count);
/* Other workers wait for tasks. */
bool pool_idle(struct pool *p);
/* The number of tasks so far that were trained in passes with others. */
size_t pool_shared(struct pool *p);
/* Returns when the task is done. */
void pool_wait(struct pool *p, struct pool_task *task);
/* Sets size and digest from the update's file. */
err pool_describe(struct pool_task *task);
/* The task is not needed any more: forgets it, or waits if it has begun. */
void pool_drop(struct pool *p, struct pool_task *task);
/* Does all tasks. Those that the user's interrupt left out have ERR_STOPPED. */
void pool_train(struct pool *p, struct pool_task *const *task, size_t count);
/* Loss and accuracy of a state on at most `rows` rows (0: all) of the data. */
err pool_evaluate(struct member_evaluation *out, struct pool *p, const struct member_round *round,
                  const struct dataset *data, size_t rows);

#endif
