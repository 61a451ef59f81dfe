/* The clip norm follows a quantile of the members' norms, privately (Andrew et al. 2021,
 * "Differentially private learning with adaptive clipping"; specification 1.7):
 *
 *     b = clamp01(1/2 + (sum over members of (b_k - 1/2) + N(0, sigma_b^2)) / m)
 *     C' = C exp(-rate (b - quantile)),       b_k = 1 where ||D_k|| <= C: NOT clipped
 *
 * The count is shifted by one half, so one member changes it by 1/2 at most, and both releases of a
 * round together cost the one multiplier z:  z^-2 = z_delta^-2 + (2 sigma_b)^-2. Pure. */
#ifndef PRIVACY_ADAPTIVE_H
#define PRIVACY_ADAPTIVE_H

#include "base/err.h"

#include <stdint.h>

enum { ADAPTIVE_HALF_LOG2 = 30 }; /* +-1/2 is +-2^30 lattice steps */

struct adaptive {
    bool on;
    double quantile, rate, sigma_b; /* 0.5, 0.2, members expected / 20 unless given */
};

/* The multiplier for the sum of changes. ERR_INPUT when z >= 2 sigma_b: the count alone would spend
 * more than the round may. */
err adaptive_split(double *z_delta, double z, double sigma_b);
/* What the two deviations cost together: z again, to a part in 1 / ADAPTIVE_ROUNDING. */
#define ADAPTIVE_ROUNDING 0x1p-48
double adaptive_joint(double z_delta, double sigma_b);

/* On the lattice: the count's deviation in steps, at least sigma_b; and b from the noisy sum. */
uint64_t adaptive_sigma(double sigma_b);
double adaptive_fraction(int64_t noisy_sum, double m);
double adaptive_next(double norm, double fraction, const struct adaptive *how);

#endif
