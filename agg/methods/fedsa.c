/* FedSA-LoRA (arXiv 2410.01463): members train A and B, A is averaged, and each member keeps its
 * own B, which never leaves it:
 *
 *     A <- sum_k p_k A_k,    W_k = W0 + s B_k A
 *
 * There is no common model: the published B is zero, and a state is measured by each member with
 * its own B. The norms of a round's change are not known here, so its report has none. */
#include "agg/methods/linear.h"
#include "agg/methods/methods.h"

static unsigned fedsa_factors(uint32_t round)
{
    (void)round;
    return METHOD_A;
}

static err fedsa_next(struct method_result *out, const struct method_round *round)
{
    float *mean;
    TRY(methods_check_scale(round, /*same_rank*/ true));
    method_result_keep(out, round->module, ADAPTER_FILE_B);
    return linear_next(&mean, out, round, ADAPTER_FILE_A);
}

const struct method method_fedsa = {
    .name = "fedsa",
    .summary = "averages A; members keep their own B, so each has its own model",
    .equal_scale = true,
    .averages = true,
    .keeps = METHOD_B,
    .aggregate = {.way = METHOD_AGGREGATE_RUN_ONLY,
                  .text = "has no common model: in a run, each member keeps its own B"},
    .client_private = true,
    .factors = fedsa_factors,
    .start = methods_start_lora,
    .next = fedsa_next,
};
