/* Draws the members that take part in a round, where not all of them do:
 *
 *     unit client    each member by chance, from the secret seed of the run's ledger
 *                    (privacy/noise/cohort.h)
 *     cohort         a fixed number of members, from the run's public seed
 *
 * Both depend only on a seed, the round and the members' ids, so a draw is the same after a crash
 * and for every order of arrival. */
#ifndef COORDINATOR_RUN_DRAW_H
#define COORDINATOR_RUN_DRAW_H

#include "coordinator/run/run.h"

/* Draws for the round that is open, unless that is done already. */
err run_draw(struct run *run);

struct run_draw_cohort {
    size_t members; /* in ascending order of their ids */
    size_t count;   /* that are drawn, at most `members` */
    uint64_t seed;
    uint32_t round;
};
/* Every set of `count` members has the same probability. Pure. */
void run_draw_cohort(bool *drawn /* (members) */, const struct run_draw_cohort *of);
/* Was this member drawn for that round? True if the run has no cohorts. */
bool run_draw_has(const struct run *run, size_t member, uint32_t round);

#endif
