/* Adaptive clipping: the clip norm follows a quantile of the members' norms, privately (Andrew et
 * al. 2021, arXiv 1905.03871):
 *
 *     b = clamp01(1/2 + (sum over members of (b_k - 1/2) + N(0, sigma_b^2)) / m)
 *     C' = C exp(-rate (b - quantile)),       b_k = 1 if ||D_k|| <= C, that is, NOT clipped
 *
 * The count is shifted by one half, so one member changes it by at most 1/2. Both releases of a
 * round together then cost the one multiplier z:  z^-2 = z_delta^-2 + (2 sigma_b)^-2. Pure. */
#ifndef PRIVACY_ADAPTIVE_H
#define PRIVACY_ADAPTIVE_H

#include "base/err.h"

#include <stdint.h>

enum { ADAPTIVE_HALF_LOG2 = 30 }; /* +-1/2 is +-2^30 lattice steps */

struct adaptive {
    bool on;
    double quantile, rate, sigma_b; /* defaults: 0.5, 0.2, expected members / 20 */
};

/* The multiplier for the sum of changes. ERR_INPUT if z >= 2 sigma_b, because the count alone would
 * then spend more than the round may. */
err adaptive_split(double *z_delta, double z, double sigma_b);
/* The multiplier of both releases together: z again, up to the relative error ADAPTIVE_ROUNDING. */
#define ADAPTIVE_ROUNDING 0x1p-48
double adaptive_joint(double z_delta, double sigma_b);

/* On the lattice: the count's deviation in steps, at least sigma_b; and b from the noisy sum. */
uint64_t adaptive_sigma(double sigma_b);
double adaptive_fraction(int64_t noisy_sum, double m);
double adaptive_next(double norm, double fraction, const struct adaptive *how);

#endif
