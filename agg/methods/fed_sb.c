/* Fed-SB (arXiv 2502.15436): B and A are frozen and the same for all, and only R (r, r) trains, so
 * the mean of the R is the mean of the products:
 *
 *     R <- R + sum_k p_k pad(R_k - R[0:r_k, 0:r_k]),    W = W0 + B R A
 *
 * Members send R itself, not its change. A member of rank r_k trains the block R[0:r_k, 0:r_k], and
 * the rest of its R is the state's, so every member counts with its full weight in every value. The
 * scale is 1. */
#include "agg/methods/methods.h"

static unsigned fed_sb_factors(uint32_t round)
{
    (void)round;
    return METHOD_R;
}

static err fed_sb_start(struct method_result *out, const struct method_beginning *b)
{
    float *R;
    out->module.rank = b->frozen->rank;
    return method_result_take(&R, out, ADAPTER_FILE_R, b->frozen->rank, b->frozen->rank);
}

static err fed_sb_next(struct method_result *out, const struct method_round *round)
{
    uint32_t r = round->module->rank;
    size_t n = (size_t)r * r;
    float *next;
    if (!round->module->factor[ADAPTER_FILE_R].f32)
        return err_make(ERR_INPUT, "the state has no lora_R for module %s", round->module->name);
    for (size_t k = 0; k < round->count; k++)
        if (round->update[k] && round->update[k]->rank > r)
            return err_make(ERR_INPUT, "module %s: a block of R of rank %u, expected at most %u",
                            round->module->name, round->update[k]->rank, r);
    TRY(method_result_take(&next, out, ADAPTER_FILE_R, r, r));
    out->module.rank = out->row.rank = r;
    return method_mean(next, round, ADAPTER_FILE_R, n);
}

const struct method method_fed_sb = {
    .name = "fed-sb",
    .summary = "trains only a small matrix R between frozen A and B; exact mean",
    .mixed_ranks = true,
    .exact = true,
    .frozen = true,
    .averages = true,
    .options = {"basis"},
    .lr = 6e-3,
    .aggregate = {.way = METHOD_AGGREGATE_RUN_ONLY,
                  .text = "combines small matrices between frozen factors that only a run has"},
    .client_private = true,
    .factors = fed_sb_factors,
    .start = fed_sb_start,
    .next = fed_sb_next,
};
