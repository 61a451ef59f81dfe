/* How many bytes a store takes, by kind. */
#ifndef COORDINATOR_STORE_SIZES_H
#define COORDINATOR_STORE_SIZES_H

#include "coordinator/store/store.h"

struct store_sizes {
    uint64_t states, updates; /* of states, with their frozen factors and optimizers' memory */
    uint64_t database;        /* file of the database and its log; 0 on a server */
};

/* Reads with a connection of its own, so any thread may call it. Updates of runs with a secret draw
 * are left out, because their number would show how many members were drawn. */
err store_sizes(struct store_sizes *out, const struct store_place *place);

#endif
