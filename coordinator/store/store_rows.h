/* Statements that several store_*.c files put into their transactions. Not for other folders. */
#ifndef COORDINATOR_STORE_ROWS_H
#define COORDINATOR_STORE_ROWS_H

#include "coordinator/store/store.h"

err store_rows_event(struct db *db, int64_t run, const struct store_event *event);
/* The run's state and the row of the round that published it; round 0 for a start state. */
err store_rows_state(struct db *db, int64_t run, uint32_t round, const struct store_blob *state);
/* Gives up the noisy means of rounds up to this one. */
err store_rows_noisy(struct db *db, int64_t run, int64_t round);
/* NULL, which is stored as NULL, if there is no blob. */
const struct digest *store_rows_digest(const struct store_blob *blob);

#endif
