/* The rounds of a run with their bytes and times; a part of sim/cost.h. Tasks are timed by device.h
 * and rounds close by the rules of coordinator/run/round.h, but nothing is trained. */
#ifndef SIM_COST_ROUNDS_H
#define SIM_COST_ROUNDS_H

#include "sim/cost.h"

/* Tasks that are timed at most; rounds after that continue in proportion. */
enum { COST_ROUNDS_TASKS = 1 << 22, COST_ROUNDS_ALIKE = 32 };

struct cost_rounds {
    const struct fleet *fleet;
    const Fedlora__V1__RunConfig *config; /* complete */
    const struct training_options *training;
    const struct method_options *options;
    struct cost_files *files;
    struct member_round *round; /* (members) */
    const uint32_t *vanishes;   /* (members) as in attack_plan */
};
/* Tokens of a client in a round; without rows each has as many as --seq allows. */
uint64_t cost_rounds_tokens(const Fedlora__V1__RunConfig *config,
                            const struct training_options *training,
                            const struct fleet_member *member);
/* Reads cost->rounds and cost->frozen, sets the sizes, totals, times and the size of the spool. */
err cost_rounds(struct cost *cost, const struct cost_rounds *rounds);

#endif
