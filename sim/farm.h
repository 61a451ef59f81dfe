/* Trains members on all ranks of a simulation. Rank 0 deals tasks with their rows, so the other
 * ranks read nothing but the base model, and gets back the updates. The results do not depend on
 * the number of ranks. */
#ifndef SIM_FARM_H
#define SIM_FARM_H

#include "sim/pool.h"
#include "sim/ranks.h"

struct farm;

/* Rank 0: every other rank opens the base and its own pool. NULL if there is one rank. ERR_INPUT
 * names a rank whose base or program is another one. */
err farm_open(struct farm **out, const struct fleet *fleet, const struct pool_options *o);
void farm_close(struct farm *f); /* accepts NULL */
/* pool_train() on all ranks. An update of another rank is written to its task's path. */
void farm_train(struct farm *f, struct pool *pool, struct pool_task *const *task, size_t count);

/* The other ranks: work until rank 0 calls farm_end(). */
err farm_serve(void);
/* Rank 0, before the process ends. */
void farm_end(void);

#endif
