/* How long files and rows are kept. The files of a run go when it is archived or deleted; events
 * go at their age. Digests and sizes of states, and what they were made from (store_lineage.c), are
 * never removed, and neither are reports and ledgers.
 *
 *     archived    updates go, and all states but the last; the run can still be exported and
 *                 continued
 *     deleted     everything but the rows above goes. The row of the run stays as a tombstone, and
 *                 its name is free again
 *
 * Marking a run is one small transaction. The rows and files follow in bounded steps, in a thread
 * that nobody waits for; after a crash the steps continue. */
#ifndef COORDINATOR_STORE_RETAIN_H
#define COORDINATOR_STORE_RETAIN_H

#include "coordinator/store/store.h"

/* by: the operator, or "" for the rules. *now_ms: the wall time that is stored. */
err store_archive(uint64_t *now_ms, struct store *store, int64_t run, const char *by);
err store_delete(struct store *store, int64_t run, const char *by);

enum { STORE_RETAIN_ROWS = 256 }; /* that one step changes */
struct store_retain {
    uint64_t events_before_ms; /* wall clock; 0: events are kept */
    int64_t run, sequence;     /* where the next step looks; 0 at first */
    size_t kind;
};
/* One step. *done: there was nothing left to do. */
err store_retain_step(bool *done, struct store *store, struct store_retain *at);
/* The runs that are archived, not deleted, and have not been swept yet: the next one after *run.
 * *name is NULL if there is none; it lives in the arena. */
err store_retain_next(int64_t *run, const char **name, struct store *store, struct arena *arena);

struct store_grave { /* of a deleted run */
    const char *name, *by;
    uint64_t created_ms, deleted_ms;
    uint32_t published;
    struct digest state; /* of the last published round; all zero: there was none */
};
/* The newest first. */
err store_graves(struct store_grave **out, size_t *count, struct store *store, size_t most,
                 struct arena *arena);

/* Events that the status of a run reads stay: those of the run as a whole, and of its privacy. */
#define STORE_RETAIN_EVENTS                                                                        \
    "event NOT LIKE 'run.%' AND event NOT LIKE 'privacy.%' AND event<>'report.skipped'"

#endif
