/* FedIT (arXiv 2305.05644), the baseline: A and B are averaged apart, so the published product is
 * off the mean of the products by s sum_k p_k (B_k - mean B)(A_k - mean A), which is reported. */
#include "agg/methods/methods.h"

static err fedit_next(struct method_result *out, const struct method_round *round)
{
    TRY(methods_check_scale(round, /*same_rank*/ true));
    return methods_mean_pair(out, round);
}

const struct method method_fedit = {
    .name = "fedit",
    .summary = "the mean of the factors, one rank for all: the baseline, its error reported",
    .equal_scale = true,
    .averages = true,
    .aggregate = {.way = METHOD_AGGREGATE_FACTORS,
                  .text = "the mean of the factors, with the error it makes"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_lora,
    .next = fedit_next,
};
