/* The processes of one simulation. Under MPI there are several ranks: rank 0 runs the simulation,
 * and the others train members for it (sim/farm.h). fedlora has one rank; fedlora-mpi fills this
 * table before its command starts. */
#ifndef SIM_RANKS_H
#define SIM_RANKS_H

#include "base/bytes.h"

struct ranks {
    int own, count;
    err (*send)(int to, const void *data, size_t bytes);
    /* Waits for the next message of `from` and replaces the contents of *out. ERR_LIMIT: it is
     * larger than out->max. */
    err (*receive)(struct bytes *out, int from);
};
extern struct ranks ranks;

#endif
