/* FFA-LoRA (arXiv 2403.12313): A is frozen and the same for all, and only B trains, so the mean of
 * the B is the mean of the products:
 *
 *     B <- sum_k p_k B_k,    W = W0 + s B A,    s = alpha/r of the run (alpha/sqrt(r) with rsLoRA)
 *
 * A is in the file of frozen factors, which members fetch once by digest, because its bytes must be
 * the same everywhere; QR and SVD give other last bits on other machines. Its rows are orthonormal,
 * from the seed, the weights or the gradients. B starts at zero.
 *
 * Members send B itself, not its change. A member of smaller rank r_k trains the leading r_k
 * columns at the run's scale s (not alpha/r_k), and the other columns count with the state's
 * values, at its full weight. Weighting columns by their number of trainers, or padding with zeros,
 * would not be the mean of the models that members run. */
#include "agg/methods/linear.h"
#include "agg/methods/methods.h"

static unsigned ffa_factors(uint32_t round)
{
    (void)round;
    return METHOD_B;
}

static err ffa_start(struct method_result *out, const struct method_beginning *b)
{
    float *B;
    out->module.rank = b->frozen->rank;
    return method_result_take(&B, out, ADAPTER_FILE_B, b->module->d_out, b->frozen->rank);
}

static err ffa_next(struct method_result *out, const struct method_round *round)
{
    float *B;
    return linear_next(&B, out, round, ADAPTER_FILE_B);
}

const struct method method_ffa = {
    .name = "ffa",
    .summary = "trains only B; A is frozen and the same for all; exact; ranks may differ",
    .mixed_ranks = true,
    .exact = true,
    .frozen = true,
    .averages = true,
    .options = {"basis"},
    .aggregate = {.way = METHOD_AGGREGATE_RUN_ONLY,
                  .text = "needs the frozen A of a run; fedit is exact for adapters that share A"},
    .client_private = true,
    .factors = ffa_factors,
    .start = ffa_start,
    .next = ffa_next,
};
