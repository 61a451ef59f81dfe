/* FLoRIST (arXiv 2506.09199): every member trains a new adapter of its own rank on W0 + carry. The
 * exact weighted sum of the round's products is cut to few directions, which are added to the carry
 * C:
 *
 *     X = sum_k p_k s_k B_k A_k = U S V^T,   C <- C + U[:, :q] S[:q] V[:, :q]^T
 *
 * with the smallest q that keeps sum_{i<=q} S_i^2 >= energy * sum S_i^2 of this module, or with
 * bytes= the q that a budget over all modules gives it (agg/algebra/budget.h).
 *
 * Only the round's sum is cut in this way. The carry is kept within carry_error, because a cut of
 * the total would remove a small round beside a large carry. Energy is a share of squares, so 0.99
 * still leaves an error of 10 %. The tail is lost, and its norm is reported. */
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <math.h>

/* The round's sum, cut, as a float32 pair in `out`'s carry. */
static err cut_round(struct method_result *out, const struct method_round *round,
                     const struct lowrank_svd *svd)
{
    struct lowrank_cut cut = {.energy = round->options->energy};
    double tail;
    uint32_t q;
    if (round->options->bytes) cut = (struct lowrank_cut){.rank_max = round->rank_max};
    lowrank_cut(&q, &tail, svd, &cut);
    TRY(method_result_carry(out, svd, q));
    out->row.dropped = tail;
    return ERR_NONE;
}

/* Adds the state's carry to the sum of this round, which is in `out`'s carry. */
static err add_carry(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct adapter_file_module kept = out->module;
    double cut = out->row.dropped;
    struct lowrank_term term[3] = {product_carry(&kept, 1)};
    struct lowrank_stack both = {.m = old->d_out, .n = old->d_in, .term = term, .count = 1};
    struct lowrank_svd svd = {0};
    if (old->carry_rank) term[both.count++] = product_carry(old, 1);
    if (round->momentum) term[both.count++] = *round->momentum;
    TRY(lowrank_svd_open(&svd, &both, 0));
    err e = product_into_carry(out, round, &svd, /*floor*/ 0);
    lowrank_svd_close(&svd);
    out->row.dropped = hypot(cut, out->row.dropped);
    return e;
}

static err florist_spectrum(struct lowrank_svd *out, const struct method_round *round)
{
    struct product p = {0};
    TRY(product_open(&p, round, PRODUCT_FRESH, 0));
    err e = lowrank_svd_open(out, &p.stack, 0);
    product_close(&p);
    return e;
}

static err florist_next(struct method_result *out, const struct method_round *round)
{
    struct product p = {0};
    struct lowrank_svd svd = {0};
    err e = ERR_NONE;
    product_keep_carry(out, round);
    out->row.rank = out->module.carry_rank;
    TRY(product_open(&p, round, PRODUCT_FRESH, 0));
    for (size_t i = 0; i < p.stack.count; i++)
        p.term[i].c *= round->server_lr;
    TRY_OUT(e, lowrank_svd_open(&svd, &p.stack, 0));
    if (svd.norm > 0 || round->momentum) {
        TRY_OUT(e, cut_round(out, round, &svd));
        out->row.rank = out->module.carry_rank;
        if (round->module->carry_rank || round->momentum) TRY_OUT(e, add_carry(out, round));
    }
out:
    product_close(&p);
    lowrank_svd_close(&svd);
    return e;
}

const struct method method_florist = {
    .name = "florist",
    .summary = "trains new adapters each round; their mean is cut by energy or bytes",
    .mixed_ranks = true,
    .carries = true,
    .fresh = true,
    .options = {"energy", "bytes"},
    .aggregate = {.way = METHOD_AGGREGATE_SUM,
                  .cut = METHOD_AGGREGATE_CUT_ENERGY,
                  .text = "the exact weighted sum, cut by energy or to a number of bytes"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_carry,
    .next = florist_next,
    .spectrum = florist_spectrum,
};
