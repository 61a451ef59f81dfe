/* Gaussian noise on an integer lattice, sampled exactly: round(sigma * Z), Z a standard normal
 * deviate. There is no approximation: no floating point, no table, no cut tail.
 *
 *     P(v) = Phi((v + 1/2) / sigma) - Phi((v - 1/2) / sigma),   v integer
 *
 * For an integer x, x + round(g) = round(x + g), so adding this noise is a post-processing of the
 * continuous Gaussian mechanism, and its privacy accounting holds without change.
 *
 * Source: Karney, "Sampling exactly from the normal distribution" (ACM TOMS 42, 2016, arXiv
 * 1303.6257), algorithms N, H and B: Z = +-(k + x), with the digits of x drawn one by one, here
 * until they decide the integer to which sigma * (k + x) rounds. The running time depends on the
 * values, so the noise is drawn before it is needed. */
#ifndef PRIVACY_GAUSS_H
#define PRIVACY_GAUSS_H

#include "privacy/noise/keystream.h"

#include <stddef.h>

#define GAUSS_SIGMA_MAX (UINT64_C(1) << 48)

/* 1 <= sigma <= GAUSS_SIGMA_MAX, in steps of the lattice. */
void gauss_fill(int64_t *out, size_t n, uint64_t sigma, struct keystream *k);

#endif
