/* Frobenius norms of several linear combinations of the same low-rank terms, all (m, n):
 *
 *     S_j = sum_t w[j][t] T_t,    T_t = c_t B_t A_t        for j in 0..count-1
 *
 * Each factor is read once. There are two ways, with N the sum of the terms' ranks; the one that
 * needs fewer operations is used:
 *
 *     Gram   H[t][u] = <T_t, T_u> = sum of (B_t^T B_u) o (A_t A_u^T), from two Gram matrices (N, N)
 *            of the columns of all B and the rows of all A; ||S_j||^2 = w[j] H w[j]^T.
 *            N^2 (m + n) operations.
 *     dense  S_j itself, (m, n), if N is large compared with m and n. S_j becomes S_j+1 by adding
 *            the terms whose weight changes, so the caller places combinations that share terms
 *            next to each other.
 *            2 m n N operations.
 *
 * float64 throughout. If the terms of S_j cancel, the Gram way leaves up to 1e-8 of the largest
 * term's norm (the root of float64's precision), the dense way 1e-16. Memory does not grow with the
 * number of terms: N is bounded if the Gram way is used. Pure; BLAS on the calling thread. */
#ifndef AGG_NORMS_H
#define AGG_NORMS_H

#include "agg/algebra/lowrank.h"

/* `terms`: none has an R; done() is called when a term has been read. */
err norms_of(double *out /* (count) */, const struct lowrank_stack *terms,
             const double *weight /* (count, terms->count) */, size_t count);

/* x^T x of x (d, r) row-major, or x x^T of x (r, d) with `rows`: all of it, not one triangle. */
err norms_gram(double *gram /* (r, r) */, const float *x, size_t r, size_t d, bool rows);

#endif
