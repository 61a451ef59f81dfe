/* The newest rounds of a run and the newest events of all runs, for a page that shows what happened
 * last. A bounded number of rows, by an index, so the loop thread may ask. */
#ifndef COORDINATOR_STORE_RECENT_H
#define COORDINATOR_STORE_RECENT_H

#include "coordinator/store/store.h"

struct store_recent_round {
    uint32_t round, updates;
    double train_loss;
    double eval_loss; /* mean of the members' evaluations, weighted by rows; NaN: none */
    double error;     /* NaN: not reported */
};
/* Up to `most` rounds, oldest first. */
err store_recent_rounds(struct store_recent_round *out, size_t *count, struct store *store,
                        int64_t run, size_t most);

struct store_recent_event {
    uint64_t wall_ms;
    uint32_t round; /* 0: it is about no round */
    const char *run, *event, *text, *member;
};
/* Up to `most` events, newest first. Texts live in the arena. */
err store_recent_events(struct store_recent_event **out, size_t *count, struct store *store,
                        size_t most, struct arena *arena);

#endif
