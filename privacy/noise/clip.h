/* Clips a member's change in L2, over all its tensors together, and puts it on an integer lattice
 * of step 2^-a:
 *
 *     x_i = trunc(w min(1, C / ||D||) D_i 2^a),   D = now - start in float64
 *
 * Truncation is towards zero, |x_i| <= 2^a |w D_i|, so the lattice does not increase the
 * sensitivity: ||x|| <= norm_int = floor(2^a C), which is checked exactly in 128-bit integers.
 * Noise on integers avoids the attack on the low bits of floating-point noise (Mironov 2012). a is
 * chosen so that norm_int has 31 bits: a value fits int32, and truncation changes a coordinate by
 * less than C 2^-30. Pure; any thread. */
#ifndef PRIVACY_CLIP_H
#define PRIVACY_CLIP_H

#include "base/err.h"

#include <stddef.h>
#include <stdint.h>

#define CLIP_NORM_LEAST 0x1p-60
#define CLIP_NORM_MOST 0x1p60

struct clip_bound {
    double norm;       /* C */
    int scale_log2;    /* a */
    uint32_t norm_int; /* in [2^30, 2^31): the L2 sensitivity on the lattice */
};

struct clip_tensor {
    const float *now;   /* (count) */
    const float *start; /* (count); NULL: all zero */
    size_t count;
};

struct clip_result {
    double norm;    /* ||D|| before clipping; private: never log or publish it */
    bool unclipped; /* ||D|| <= C */
};

/* ERR_INPUT unless CLIP_NORM_LEAST <= norm <= CLIP_NORM_MOST. */
err clip_bound_set(struct clip_bound *out, double norm);
/* The least whole deviation with sigma / norm_int >= multiplier; multiplier in (0, 2^16]. */
uint64_t clip_sigma(const struct clip_bound *bound, double multiplier);

/* ||D|| in float64, summed in blocks. ERR_INPUT if a value is NaN or infinite. */
err clip_norm(double *out, const struct clip_tensor *tensor, size_t tensors);
/* x of all tensors, one after the other; the weight is public, 0 < weight <= 1. `out` has room for
 * the sum of the counts. ERR_INPUT if a value is not finite; `out` may then be partly written. */
err clip_quantise(int32_t *out, struct clip_result *result, const struct clip_bound *bound,
                  double weight, const struct clip_tensor *tensor, size_t tensors);

#endif
