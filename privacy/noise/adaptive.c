#include "privacy/noise/adaptive.h"

#include "privacy/noise/clip.h"

#include <math.h>

err adaptive_split(double *z_delta, double z, double sigma_b)
{
    REQUIRE(z > 0 && sigma_b > 0);
    if (z >= 2 * sigma_b)
        return err_make(ERR_INPUT,
                        "adaptive clipping: the count's deviation %g spends the whole noise "
                        "multiplier %g: expected more than %g",
                        sigma_b, z, z / 2);
    /* Rounded up by more than the rounding errors, because both releases together must not have
     * less noise than z. */
    *z_delta = (1 + 0x1p-48) / sqrt(1 / (z * z) - 1 / (4 * sigma_b * sigma_b));
    return ERR_NONE;
}

double adaptive_joint(double z_delta, double sigma_b)
{
    return 1 / sqrt(1 / (z_delta * z_delta) + 1 / (4 * sigma_b * sigma_b));
}

uint64_t adaptive_sigma(double sigma_b)
{
    REQUIRE(sigma_b > 0 && sigma_b <= 0x1p16);
    double steps = ceil(ldexp(sigma_b, ADAPTIVE_HALF_LOG2 + 1)); /* times a power of two: exact */
    return steps < 1 ? 1 : (uint64_t)steps;
}

double adaptive_fraction(int64_t noisy_sum, double m)
{
    REQUIRE(m > 0);
    double b = 0.5 + ldexp((double)noisy_sum, -ADAPTIVE_HALF_LOG2 - 1) / m;
    return b < 0 ? 0 : b > 1 ? 1 : b;
}

double adaptive_next(double norm, double fraction, const struct adaptive *how)
{
    double next = norm * exp(-how->rate * (fraction - how->quantile));
    return fmin(fmax(next, CLIP_NORM_LEAST), CLIP_NORM_MOST);
}
