/* FedIT (arXiv 2305.05644), the baseline: A and B are averaged separately. The published product
 * differs from the mean of the products by s sum_k p_k (B_k - mean B)(A_k - mean A), whose norm is
 * reported. */
#include "agg/methods/methods.h"

static err fedit_next(struct method_result *out, const struct method_round *round)
{
    TRY(methods_check_scale(round, /*same_rank*/ true));
    return methods_mean_pair(out, round);
}

const struct method method_fedit = {
    .name = "fedit",
    .summary = "averages A and B separately (the baseline); not exact; one rank for all",
    .equal_scale = true,
    .averages = true,
    .lr = 2e-3,
    .alpha = 32,
    .aggregate = {.way = METHOD_AGGREGATE_FACTORS,
                  .text = "the mean of A and the mean of B; not exact, its error is printed"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_lora,
    .next = fedit_next,
};
