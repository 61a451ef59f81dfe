/* Epsilon at delta of many releases by privacy loss distributions: the losses of all releases add
 * up, so their distributions are convolved.
 *
 * Upper bound: each release is discretised from above (pld_step.h), and what else is not exact is
 * counted against delta. The distribution is tilted first: with K(lambda) the sum of all log
 * moments, p(t) e^(lambda t - K) is convolved instead of p(t), for the lambda at which Chernoff's
 * bound gives delta. Tilting commutes with convolution, brings the losses near the answer into the
 * middle of the distribution, and turns rounding errors relative to 1 into errors relative to
 * delta, so that delta = 1e-12 costs no more than 1e-2. With eta = fft_error() and the mass m
 * outside the window by Chernoff's bound, delta(eps) is at most what is read from the window plus
 *   e^(K - lambda eps) (2 m + min(e1 sum g_k, e2 sqrt(sum g_k^2))),
 * where g_k is what the k-th loss above eps counts for, and e1 and e2 bound the largest error in
 * the window and the root of its sum of squares: e1 = eta sum_i count_i mean |f_i|^(count_i - 1),
 * e2 likewise with the mean of the squares, f_i the transformed values of the i-th release, plus
 * the same of the way back.
 *
 * One release alone, of losses too small for the usual grid, has its exact curve:
 *   delta(eps) = P(L > eps) - e^eps Q(L > eps). */
#ifndef PRIVACY_PLD_H
#define PRIVACY_PLD_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct pld_event {
    double z, q; /* deviation over clip norm; Poisson rate in (0, 1], 1: everyone */
    uint64_t count;
};

struct pld_options {
    double cells; /* points of a grid at most; 0: LIMIT_PLD_CELLS. Fewer: a looser bound, sooner */
    double interval; /* 0: 1e-4, halved until it adds at most 5 % to the variance of the loss */
    bool replace_one;
};

struct pld_result {
    double epsilon;  /* INFINITY when infinite losses alone have more than delta */
    double interval; /* of the grid; doubled from what was asked for where a window would not fit;
                        0: the exact curve of one release */
};

/* The larger of both directions. Counts above 0; delta in (0, 1). */
err pld_epsilon(struct pld_result *out, const struct pld_event *event, size_t count, double delta,
                const struct pld_options *options);

#endif
