/* What a round's report says of one module beyond norms, in product space, with no dense matrix:
 *
 *   disagreement   the mean and the least cosine <D_j, D_k> / (||D_j|| ||D_k||) over pairs of
 *                  members whose change is not zero; of at most METHOD_DIAGNOSE_MEMBERS members,
 *                  evenly spaced in order of their ids
 *   directions     how many leading left singular vectors u_i of the round's change D = sum_k p_k
 *                  D_k are looked at: METHOD_DIAGNOSE_LEADING, or fewer where D has not so many
 *                  singular values above 1e-6 of its largest
 *   intruders      how many of them have |<u_i, v_j>| < 1/2 with every leading left singular vector
 *                  v_j of S, what the state added to W0 before (carry + s B A); v_j leads while
 *                  those before it hold less than 0.99 of ||S||^2, and j <= METHOD_DIAGNOSE_BEFORE.
 *                  Where S is zero all are new. After "intruder dimensions" (Shuttleworth et al.,
 *                  arXiv 2410.21228), there against W0 itself.
 *
 * D_k as in agg/round/method_change.h. Left out (pairs and directions 0): what needs frozen factors that
 * were not given, and directions where D's total rank is above METHOD_DIAGNOSE_RANK.
 *
 * It costs far more than the norms of the report (a QR and a small SVD of D, another of the pair
 * before), so a run asks for it only every few rounds. The carry's directions are read off its
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

/* gram (n, n), n = method_diagnose_members(): set, so that a caller may sum it over modules. */
size_t method_diagnose_members(size_t count);
err method_diagnose(struct method_report_row *row, double *gram, const struct method_round *round,
                    const struct method *method);
/* Sets pairs, cosine_mean and cosine_least. */
void method_diagnose_cosines(struct method_report_row *row, const double *gram, size_t n);

#endif
