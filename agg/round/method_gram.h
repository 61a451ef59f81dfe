/* Inner products of members' changes: G[j][k] = <D_j, D_k>_F of one module, D_k as in
 * agg/round/method_change.h. With D_k = L_k X_k, L_k (d_out, w), X_k (w, d_in), w at most 2 r_k:
 *
 *     <D_j, D_k> = sum_ab (L_j^T L_k)_ab (X_j X_k^T)_ab
 *
 * so no (d_out, d_in) matrix is formed, and the result is the same for (B Q, Q^-1 A). float64.
 * Where both factors were trained from a start at the same scale, D_k = s (B_k - B_0) A_k + s B_0
 * (A_k - A_0), which does not cancel. Members are read in blocks of a bounded width, so memory does
 * not grow with their number, except for G itself. Pure; BLAS on the calling thread. */
#ifndef AGG_METHOD_GRAM_H
#define AGG_METHOD_GRAM_H

#include "agg/round/method_change.h"

/* Sets gram (count, count), symmetric. A member that did not send the module has zeros. */
err method_gram(double *gram, const struct method_round *round, const struct method *method);
/* Its diagonal only: (count). */
err method_gram_norms(double *square, const struct method_round *round,
                      const struct method *method);

#endif
