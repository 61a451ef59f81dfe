/* Frozen orthonormal bases for B R A: B (d_out, r) has orthonormal columns, A (r, d_in) has
 * orthonormal rows. Computed in float64, stored as float32. The last bits of QR and SVD differ
 * between machines, so a basis is computed once and then referred to by the digest of its file. */
#ifndef AGG_BASIS_H
#define AGG_BASIS_H

#include "base/err.h"

#include <stdbool.h>
#include <stdint.h>

struct basis_shape {
    uint32_t d_out, d_in, r;
};
struct basis_key {
    uint64_t seed;
    const char *label; /* the module's name */
};

/* Gaussian values from the generator keyed by (seed, label), then Householder QR with a positive
 * diagonal. ERR_INPUT if r > min(d_out, d_in). */
err basis_seeded(float *A /* (r, d_in) */, float *B /* (d_out, r) */,
                 const struct basis_shape *shape, const struct basis_key *key);

/* The leading r singular vectors of W0: B = U_r, A = V_r^T. */
err basis_of_weight(float *A /* (r, d_in) */, float *B /* (d_out, r) */,
                    const float *W0 /* (d_out, d_in) */, const struct basis_shape *shape);

#endif
