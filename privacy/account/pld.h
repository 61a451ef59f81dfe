/* Epsilon at delta of many releases by privacy loss distributions: the losses of all releases add
 * up, so their distributions are convolved.
 *
 * Upper bound: each release is discretised from above (pld_step.h), and all other errors are
 * counted against delta. The distribution is tilted first: with K(lambda) the sum of all log
 * moments, p(t) e^(lambda t - K) is convolved instead of p(t), for the lambda at which Chernoff's
 * bound gives delta. Tilting commutes with convolution, moves the losses near the answer to the
 * middle of the distribution, and makes rounding errors relative to delta instead of 1, so that
 * delta = 1e-12 costs no more than 1e-2. delta(eps) is at most the value read from the window plus
 *
 *     e^(K - lambda eps) (2 m + min(e1 sum g_k, e2 sqrt(sum g_k^2)))
 *
 *     m     the mass outside the window, by Chernoff's bound
 *     g_k   the weight of the k-th loss above eps
 *     e1    bounds the largest error in the window: eta sum_i count_i mean |f_i|^(count_i - 1) plus
 *           the same for the inverse transform; eta = fft_error(), f_i the transformed values of
 *           release i
 *     e2    bounds the root of the sum of squared errors: as e1, with the mean of the squares
 *
 * A single release whose losses are too small for the usual grid has its exact curve instead:
 *   delta(eps) = P(L > eps) - e^eps Q(L > eps). */
#ifndef PRIVACY_PLD_H
#define PRIVACY_PLD_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pld_event {
    double z, q; /* deviation over clip norm; Poisson rate in (0, 1], 1: all units */
    uint64_t count;
};

struct pld_options {
    double cells;    /* largest number of grid points, fewer are faster; 0: LIMIT_PLD_CELLS */
    double interval; /* 0: 1e-4, halved until it adds at most 5 % to the variance of the loss */
    bool replace_one;
};

struct pld_result {
    double epsilon; /* INFINITY if infinite losses alone have more than delta */
    /* Spacing of the grid: as requested, doubled while the window does not fit. 0: the exact curve
     * was used. */
    double interval;
};

/* The larger of both directions. Counts above 0; delta in (0, 1). */
err pld_epsilon(struct pld_result *out, const struct pld_event *event, size_t count, double delta,
                const struct pld_options *options);

#endif
