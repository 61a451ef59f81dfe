/* Comparisons in a round's report, in product space, with no dense matrix. D_k as in
 * agg/round/method_change.h.
 *
 *   disagreement   the mean and the least cosine <D_j, D_k> / (||D_j|| ||D_k||) over pairs of
 *                  members whose change is not zero; of at most METHOD_DIAGNOSE_MEMBERS members,
 *                  evenly spaced in order of their ids
 *   directions     the number of leading left singular vectors u_i of the round's change
 *                  D = sum_k p_k D_k that are compared: METHOD_DIAGNOSE_LEADING, or fewer where D
 *                  has fewer singular values above 1e-6 of its largest
 *   intruders      the number of them with |<u_i, v_j>| < 1/2 for every leading left singular
 *                  vector v_j of S, the sum that the state added to W0 before (carry + s B A). v_j
 *                  is leading while those before it hold less than 0.99 of ||S||^2, and
 *                  j <= METHOD_DIAGNOSE_BEFORE. All are intruders if S is zero. After "intruder
 *                  dimensions" (Shuttleworth et al., arXiv 2410.21228), there against W0 itself.
 *
 * Pairs and directions are 0 where frozen factors are needed but not given, directions also where
 * D's total rank is above METHOD_DIAGNOSE_RANK.
 *
 * It costs far more than the norms of the report (a QR and a small SVD of D, another of the pair
 * before), so a run asks for it only every few rounds. The directions of a carry are read off its
 * columns. */
#ifndef AGG_METHOD_DIAGNOSE_H
#define AGG_METHOD_DIAGNOSE_H

#include "agg/round/method_change.h"

enum {
    METHOD_DIAGNOSE_MEMBERS = 16,
    METHOD_DIAGNOSE_LEADING = 10,
    METHOD_DIAGNOSE_BEFORE = 64,
    METHOD_DIAGNOSE_RANK = 2048
};

/* The number of members that are compared. */
size_t method_diagnose_members(size_t count);
/* Sets row's cosines, directions and intruders, and gram (n, n), n = method_diagnose_members(),
 * which a caller may sum over modules. */
err method_diagnose(struct method_report_row *row, double *gram, const struct method_round *round,
                    const struct method *method);
/* Sets pairs, cosine_mean and cosine_least. */
void method_diagnose_cosines(struct method_report_row *row, const double *gram, size_t n);

#endif
