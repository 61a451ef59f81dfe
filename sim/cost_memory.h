/* The memory that clients need to train, beside what their devices have; a part of sim/cost.h. */
#ifndef SIM_COST_MEMORY_H
#define SIM_COST_MEMORY_H

#include "sim/cost.h"

struct cost_memory {
    const struct cost_options *o;
    const struct training_options *training;
    const struct method_options *options;
    struct cost_files *files;
    struct member_round *round; /* (members) */
};
/* Reads cost->rounds, cost->last and cost->private_example; sets weights, memory and classes. */
err cost_memory(struct cost *cost, const struct cost_memory *memory);
/* ERR_INPUT if a class has clients that need more memory than they have: they could not take part.
 * Makes no plan unless a class states its memory. */
err cost_memory_check(const struct cost_options *o);

#endif
