/* RoLoRA (arXiv 2502.01755): rounds train B and A alternately; the other factor is frozen and the
 * same for all:
 *
 *     odd rounds  B <- sum_k p_k B_k,    even rounds  A <- sum_k p_k A_k,    W = W0 + s B A
 *
 * Each is the exact mean of the products. B comes first, because with B = 0 the gradient of A is
 * zero and a round of A would learn nothing. All members have the run's rank and scale. */
#include "agg/methods/linear.h"
#include "agg/methods/methods.h"

static unsigned rolora_factors(uint32_t round)
{
    return round % 2 ? METHOD_B : METHOD_A;
}

static err rolora_next(struct method_result *out, const struct method_round *round)
{
    enum adapter_file_role trained = ADAPTER_FILE_B, frozen = ADAPTER_FILE_A;
    float *mean;
    if (rolora_factors(round->number) == METHOD_A) {
        trained = ADAPTER_FILE_A;
        frozen = ADAPTER_FILE_B;
    }
    TRY(methods_check_scale(round, /*same_rank*/ true));
    method_result_keep(out, round->module, frozen);
    return linear_next(&mean, out, round, trained);
}

const struct method method_rolora = {
    .name = "rolora",
    .summary = "trains B in one round and A in the next; exact; one rank for all",
    .equal_scale = true,
    .exact = true,
    .averages = true,
    .aggregate = {.way = METHOD_AGGREGATE_RUN_ONLY,
                  .text = "needs the alternating rounds of a run; fedit is exact for adapters that "
                          "share a factor"},
    .client_private = true,
    .factors = rolora_factors,
    .start = methods_start_lora,
    .next = rolora_next,
};
