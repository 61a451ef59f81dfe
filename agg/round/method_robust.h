/* Robust rules: they limit what a member that sends wrong values can do, before the method takes
 * its mean. D_k is member k's change over all modules (agg/round/method_change.h), and rules see
 * only the inner products of changes (agg/round/method_gram.h), so the result is the same for
 * (B Q, Q^-1 A). K members delivered, w_k are their weights.
 *
 *     norm       w_k min(1, c / ||D_k||_F); c is the bound, or the median of the K norms
 *     krum       multi-Krum (Blanchard et al., NeurIPS 2017). A member's score is the sum of its
 *                K - f - 2 smallest squared distances to others. The K - f members with the
 *                smallest scores stay, with weights that sum to 1. K >= 2 f + 3. If f is not given,
 *                it is (K - 3) / 2.
 *     geometric  the weighted geometric median (Pillutla et al., arXiv 1912.13445) by Weiszfeld's
 *                steps: weight ~ w_k / ||D_k - z||, z = sum weight_k D_k, computed from G alone,
 *                to 1e-12
 *     median     the median of each trained value over all members
 *     trimmed    the mean of each trained value without floor(trim K) values at each end, at least
 *                one where K >= 3
 *
 * median and trimmed take the place of the mean in method_mean_exact(). They count all members
 * equally, because a member may claim any number of examples, and need a method in which a single
 * factor trains. A member that did not send a module did not change it. */
#ifndef AGG_METHOD_ROBUST_H
#define AGG_METHOD_ROBUST_H

#include "agg/round/method_cohort.h"

/* The rule changes the weights p (count) of the cohort and sets norm (count) to ||D_k||. Does
 * nothing for none, median and trimmed. krum and geometric compare all pairs: ERR_LIMIT beyond
 * LIMIT_ROBUST_MEMBERS. */
err method_robust_weigh(double *p, double *norm, const struct method_cohort *c,
                        const struct method *method, int threads);

/* The rules themselves, from the inner products G (count, count). */
void method_robust_norm(double *p, const double *norm, size_t count, double bound);
err method_robust_krum(double *p, const double *gram, size_t count, uint32_t faulty);
err method_robust_geometric(double *p, const double *gram, size_t count);

/* out (count) = median or trimmed mean of each value over all members. */
err method_robust_values(double *out, const struct method_round *round, enum adapter_file_role role,
                         size_t count);

#endif
