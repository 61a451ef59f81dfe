/* FLoRA (arXiv 2409.05976): every member trains a new adapter of its own rank on W0 + carry, and
 * the exact weighted sum of the products is added to the carry C, which is recompressed:
 *
 *     C <- C + sum_k p_k s_k B_k A_k
 *
 * Members receive only the carry, not the factors of other members. */
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <math.h>

static err flora_next(struct method_result *out, const struct method_round *round)
{
    struct product p = {0};
    struct lowrank_svd svd = {0};
    err e = ERR_NONE;
    TRY(product_open(&p, round, PRODUCT_FRESH, 1));
    size_t head = p.stack.count;
    product_server_step(&p, round);
    const struct lowrank_term carry = product_carry(round->module, 1);
    if (carry.r) product_add(&p, &carry);
    product_keep_carry(out, round);
    out->row.rank = out->module.carry_rank;
    TRY_OUT(e, lowrank_svd_open(&svd, &p.stack, head));
    if (svd.head_norm == 0 && !round->momentum)
        goto out; /* no member changed it: the carry keeps its bytes */
    TRY_OUT(e, product_into_carry(out, round, &svd, /*floor*/ 0));
    out->row.rank = out->module.carry_rank;
out:
    product_close(&p);
    lowrank_svd_close(&svd);
    return e;
}

const struct method method_flora = {
    .name = "flora",
    .summary = "trains a new adapter of any rank each round; exact weighted mean",
    .mixed_ranks = true,
    .exact = true,
    .carries = true,
    .fresh = true,
    .lr = 2e-3,
    .alpha = 64,
    .aggregate = {.way = METHOD_AGGREGATE_SUM,
                  .stack = true,
                  .text = "the exact weighted sum of the products B A; ranks may differ"},
    .client_refusal =
        "sends every member's factors to all members, so noise on a sum would protect no member",
    .factors = methods_both,
    .start = methods_start_carry,
    .next = flora_next,
};
