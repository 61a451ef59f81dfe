/* The corrections of lora-fair as small problems: with the means Abar (r, n), Bbar (m, r) and the
 * mean of the products X (m, n), none of which is formed,
 *
 *     G = Abar Abar^T (r, r),    H = X Abar^T (m, r),    N = ||X||_F
 *
 * are all that either objective needs:
 *
 *     closed   min_D ||X - (Bbar + D) Abar||_F^2 + lambda g ||D||_F^2,   g = tr(G)/r
 *     cosine   min_D 1 - <H, B> / (N sqrt(<B G, B>)) + lambda ||D||_F,   B = Bbar + D
 *
 * Column-major float64. Pure. */
#ifndef AGG_METHODS_FAIR_H
#define AGG_METHODS_FAIR_H

#include "base/err.h"

#include <stddef.h>

struct fair {
    size_t m, r;
    const double *B; /* (m, r) Bbar */
    const double *H; /* (m, r) */
    const double *G; /* (r, r) */
    double norm;     /* N; the cosine's only */
    double lambda;
};

/* D = (H - Bbar G)(G + lambda g I)^-1 by Cholesky; a lambda below 1e-12 is taken as that, so that
 * dependent rows of Abar are no trouble. Zero where Abar is. */
err fair_closed(double *D /* (m, r) */, const struct fair *f);

/* Proximal gradient steps from D = 0, with a step that halves until the objective falls by as much
 * as its gradient promises; the norm is taken in the prox, so that D = 0 is found where it is best.
 * Every iterate lies in the columns of [Bbar | H], so steps are taken on a (2r, r) problem. Zero
 * where X or Bbar Abar is zero: there is no cosine. */
err fair_cosine(double *D /* (m, r) */, const struct fair *f);

#endif
