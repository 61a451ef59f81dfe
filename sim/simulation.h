/* A simulation while it runs, and its tasks: what members are handed, when their updates arrive,
 * and what is trained before that. Internal to sim/simulate.c and sim/tasks.c. */
#ifndef SIM_SIMULATION_H
#define SIM_SIMULATION_H

#include "base/rng.h"
#include "sim/farm.h"
#include "sim/federation.h"
#include "sim/results.h"
#include "sim/simulate.h"

/* A task on its way. Tasks are trained some time before their updates arrive, several at once. */
struct event {
    struct federation_task task;
    uint64_t from_ms, at_ms; /* the task was handed out; its update arrives */
    uint64_t start_ms;       /* the member's device is on for the first time */
    bool drops;              /* it never arrives */
    struct pool_task *done;  /* in training or trained, or NULL */
};

struct simulation {
    const struct fleet *fleet;
    const struct simulate_options *o;
    struct federation federation;
    struct pool *pool;
    struct farm *farm; /* NULL: this process trains alone */
    struct results results;
    struct event *event; /* sorted by time, then by member; [next, events) are still to come */
    size_t next, events, capacity;
    uint32_t handed;        /* the newest round whose tasks were handed out */
    size_t tasks, answered; /* of that round */
    bool *busy;             /* (members) has a task */
    uint32_t published;
    uint64_t ticked_ms;         /* the newest time that the coordinator wanted a tick at */
    struct simulate_round now;  /* counts since the last published round */
    struct simulate_round last; /* the last published round */
    struct attack_plan attack;
    struct rng crashes;
    uint64_t crashed;
    uint64_t began_ms;
    struct early early;
    char stopped[EARLY_TEXT_BYTES]; /* why it ends before its last round; "": it does not */
};

/* Once for each round: members get its tasks. Those that cannot count any more are given up. */
err tasks_open_round(struct simulation *s);
/* A member that has finished a task may get one of the round under way. */
err tasks_hand_out_next(struct simulation *s, size_t member);
/* Returns when the event's task is trained, as it is then e->done; others may be in training. */
err tasks_train(struct simulation *s, struct event *e);
/* Writes the tasks on their way when a round is published, so that an interrupted simulation goes
 * on with them. */
err tasks_save(const struct simulation *s);
/* Reads them, and cuts updates.csv off where it was then. */
err tasks_load(struct simulation *s);
/* Takes up what tasks_load() has read, once the members have joined. */
void tasks_adopt(struct simulation *s);
/* Forgets e->done and its update: whether it was trained ahead does not matter. */
err tasks_forget(struct simulation *s, struct event *e);
/* Forgets e->done, or waits for it if its training has begun. */
void tasks_close(struct simulation *s, struct event *e);

#endif
