/* The sizes of the files that a run expects of its members, which follow from the shapes of its
 * modules and from ranks. So an upload can be refused before its first byte is stored, and a header
 * before it is parsed. */
#ifndef COORDINATOR_RUN_SHAPES_H
#define COORDINATOR_RUN_SHAPES_H

#include "coordinator/run/run.h"

struct run_sizes { /* upper bounds, in bytes */
    uint64_t header, file;
};
/* Of this member's update for a round. Before the shapes are known both are 0. */
void run_update_sizes(struct run_sizes *out, const struct run *run, size_t member, uint32_t round);

#endif
