/* Rules that bear members who send what they should not, before the method's own mean. D_k is
 * member k's change over all modules (agg/round/method_change.h; their inner products agg/round/method_gram.h),
 * so what a rule sees is the same for (B Q, Q^-1 A). K members delivered, w_k are their shares.
 *
 *     norm       w_k min(1, c / ||D_k||_F), c the bound, or the median of the K norms
 *     krum       multi-Krum (Blanchard et al., NeurIPS 2017): a member's score is the sum of its
 *                K - f - 2 smallest squared distances to others; the K - f of least score stay,
 * with their shares made to sum to 1. K >= 2 f + 3. Unless f is given it is (K - 3) / 2. geometric
 * the weighted geometric median (Pillutla et al., arXiv 1912.13445) by Weiszfeld's steps: share ~
 * w_k / ||D_k - z||, z = sum share_k D_k, in terms of G alone; to 1e-12 median     of each trained
 * value, and trimmed    its mean without floor(trim K) values at each end (at least one where K >=
 * 3): the mean's place is taken in method_mean_exact(). All members count the same, since anyone
 * may claim examples. Where a single factor trains.
 *
 * A member that did not send a module did not change it there. */
#ifndef AGG_METHOD_ROBUST_H
#define AGG_METHOD_ROBUST_H

#include "agg/round/method_cohort.h"

/* p (count), the cohort's shares, become what the rule makes of them; norm (count) is ||D_k||, set
 * where the rule looks at it. Nothing for none, median, trimmed. ERR_LIMIT beyond
 * LIMIT_ROBUST_MEMBERS where all pairs are looked at. */
err method_robust_weigh(double *p, double *norm, const struct method_cohort *c,
                        const struct method *method, int threads);

/* The rules themselves, from G (count, count). */
void method_robust_norm(double *p, const double *norm, size_t count, double bound);
err method_robust_krum(double *p, const double *gram, size_t count, uint32_t faulty);
err method_robust_geometric(double *p, const double *gram, size_t count);

/* out (count) = median or trimmed mean of each value over all members. */
err method_robust_values(double *out, const struct method_round *round, enum adapter_file_role role,
                         size_t count);

#endif
