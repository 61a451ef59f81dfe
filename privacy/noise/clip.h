/* A member's change, clipped in L2 over all its tensors together and put on an integer lattice of
 * step 2^-a:
 *
 *     x_i = trunc(w min(1, C / ||D||) D_i 2^a),   D = now - start in float64
 *
 * Truncation is towards zero, |x_i| <= 2^a |w D_i|, so the lattice costs no sensitivity:
 * ||x|| <= norm_int = floor(2^a C), which is checked exactly in 128-bit integers
 * (specification 3.3). a is chosen so that norm_int has 31 bits: a value fits int32, and truncation
 * changes a coordinate by less than C 2^-30. Pure; any thread. */
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
    const float *start; /* (count), or NULL: zero */
    size_t count;
};

struct clip_result {
    double norm;    /* of D before clipping; private to the member: never logged or published */
    bool unclipped; /* ||D|| <= C */
};

/* ERR_INPUT unless CLIP_NORM_LEAST <= norm <= CLIP_NORM_MOST. */
err clip_bound_set(struct clip_bound *out, double norm);
/* The least whole deviation with sigma / norm_int >= multiplier; multiplier in (0, 2^16]. */
uint64_t clip_sigma(const struct clip_bound *bound, double multiplier);

/* float64, summed in blocks; ERR_INPUT when a value is NaN or infinite. */
err clip_norm(double *out, const struct clip_tensor *tensor, size_t tensors);
/* x of all tensors, one after the other; 0 < weight <= 1 is public. `out` has room for the sum of
 * the counts, and may be half written on failure (ERR_INPUT: a value is not finite). */
err clip_quantise(int32_t *out, struct clip_result *result, const struct clip_bound *bound,
                  double weight, const struct clip_tensor *tensor, size_t tensors);

#endif
