/* The leading singular vectors of a mean gradient that is never formed. They are a basis for B R A
 * (or A alone, for ffa), found by two passes over the members' data without a dense (d_out, d_in)
 * matrix on either side. LoRA-SB (arXiv 2411.19557) takes the SVD of one dense gradient. Here
 * members send only the gradients of LoRA factors, which training by y = W0 x + s B A x computes
 * anyway. With G_k the mean raw gradient dL/dW of member k (no sign is taken), G = sum p_k G_k, and
 * s = 1:
 *
 *     pass 1   A = Omega^T, B = 0    members send dL/dB = G_k Omega    Y = sum p_k G_k Omega
 *              Q = orthonormal columns with the span of Y's columns
 *     pass 2   B = Q, A = 0          members send dL/dA = Q^T G_k      Z = sum p_k Q^T G_k
 *              Z = U S V^T;  B = Q U, A = V^T, the leading r; R starts at zero
 *
 * Omega (d_in, q) is Gaussian, q = r + SKETCH_OVERSAMPLE (never more than min(d_out, d_in)). If the
 * rank of G is at most q, the result is G's own leading singular vectors. Otherwise the mean of
 * ||G - Q Q^T G||_F is at most sqrt(1 + r / (SKETCH_OVERSAMPLE - 1)) times the best rank-r tail
 * (Halko, Martinsson, Tropp, SIAM Review 53 (2011), theorem 10.5). Only sums over members are used,
 * so the passes also work with secure aggregation.
 *
 * If G has fewer than r directions (no member sent the module, or gradients vanish), the rest of
 * the basis is drawn from the keyed generator, so that factors are always orthonormal: B^T B and
 * A A^T are I to 1e-6 as stored. Computed in float64, float32 in and out. The same input gives the
 * same bits on one machine (lowrank_begin()). Pure. */
#ifndef AGG_SKETCH_H
#define AGG_SKETCH_H

#include "agg/algebra/basis.h"

enum { SKETCH_OVERSAMPLE = 10 };

/* shape->r is the rank wanted. All functions limit it to the rank that the shape allows. */
uint32_t sketch_rank(const struct basis_shape *shape);  /* min(r, d_out, d_in) */
uint32_t sketch_width(const struct basis_shape *shape); /* q */

/* A of pass 1. */
void sketch_probe(float *A /* (q, d_in) */, const struct basis_shape *shape,
                  const struct basis_key *key);
/* B of pass 2. ERR_INPUT if a value of Y is not finite. */
err sketch_range(float *Q /* (d_out, q) */, const float *Y /* (d_out, q) */,
                 const struct basis_shape *shape, const struct basis_key *key);

struct sketch_found {
    double norm;   /* ||Z||_F: norm of the gradient's part in the span of Q */
    double tail;   /* the part of that norm beyond the leading r directions */
    uint32_t rank; /* directions found in the gradient; the rest up to r was drawn */
};
/* The input of sketch_basis(): the two factors of pass 2. */
struct sketch_pass {
    const float *Q; /* (d_out, q) the state's B in pass 2 */
    const float *Z; /* (q, d_in) */
};
/* The frozen factors, r = sketch_rank(). */
err sketch_basis(float *A /* (r, d_in) */, float *B /* (d_out, r) */, struct sketch_found *found,
                 const struct sketch_pass *pass, const struct basis_shape *shape,
                 const struct basis_key *key);

#endif
