/* Gaussian noise on an integer lattice, sampled exactly: round(sigma * Z), Z a standard normal
 * deviate. Nothing is approximated: no floating point, no table, no cut tail.
 *
 *     P(v) = Phi((v + 1/2) / sigma) - Phi((v - 1/2) / sigma),   v integer
 *
 * For an integer x, x + round(g) = round(x + g), so adding this noise is a post-processing of the
 * continuous Gaussian mechanism: its privacy accounting holds as it stands.
 *
 * Source: Karney, "Sampling exactly from the normal distribution" (ACM TOMS 42, 2016), algorithms
 * N, H and B: Z = +-(k + x), the digits of x made only as they are needed, here until the integer
 * that sigma * (k + x) rounds to is decided. The time taken depends on the values: draw ahead of
 * need. */
#ifndef PRIVACY_GAUSS_H
#define PRIVACY_GAUSS_H

#include "privacy/noise/keystream.h"

#include <stddef.h>

#define GAUSS_SIGMA_MAX (UINT64_C(1) << 48)

/* 1 <= sigma <= GAUSS_SIGMA_MAX, in steps of the lattice. */
void gauss_fill(int64_t *out, size_t n, uint64_t sigma, struct keystream *k);

#endif
