/* Methods in which one factor trains while the other is frozen and the same for all: the mean of
 * the trained factor is then the mean of the products,
 *
 *     sum_k p_k s B_k A = s (sum_k p_k B_k) A      (and the same for A beside one B)
 *
 * with the state's scale s. A member of smaller rank r_k trains the leading r_k columns of B (rows
 * of A); what it leaves is the state's, with its full weight. */
#ifndef AGG_METHODS_LINEAR_H
#define AGG_METHODS_LINEAR_H

#include "agg/round/method_round.h"

/* The next state's `role` (A or B) becomes the mean. */
err linear_next(float **mean, struct method_result *out, const struct method_round *round,
                enum adapter_file_role role);

#endif
