/* Weights of the members' updates in the mean of a round. */
#ifndef COORDINATOR_WEIGHTS_H
#define COORDINATOR_WEIGHTS_H

#include <stddef.h>

/* Reduces large weights so that none is more than `cap` of their sum: w'_i = min(w_i, t) with the
 * largest t that fulfils t <= cap * sum_j w'_j. If there are too few positive weights for that
 * (their number is at most 1 / cap), they become equal. weight: (count), not negative. cap: 0 (no
 * limit) to 1. */
void weights_cap(double *weight, size_t count, double cap);

#endif
