/* FedEx-LoRA (arXiv 2410.09432): the factors are averaged as in FedIT, and the residual against the
 * mean of the products is added to the frozen part of the model, here the carry:
 *
 *     A <- Abar,  B <- Bbar,  C <- C + sum_k p_k s (B_k - Bbar)(A_k - Abar)
 *
 * so the published change is the exact mean. The residual is computed as sum_k p_k s B_k A_k - s
 * Bbar Abar with the factors as they are stored, so it also corrects their rounding to float32. It
 * is one stack that is recompressed together with the carry; singular values below that rounding
 * are not kept. The residual has the scale s folded in once, and goes to the carry, never into the
 * base's own weights. All members have the run's rank and scale. */
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <math.h>

static err fedex_next(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct adapter_file_module now = *old;
    struct product p = {0};
    struct lowrank_svd svd = {0};
    double size;
    err e = ERR_NONE;
    TRY(methods_check_scale(round, /*same_rank*/ true));
    product_keep_carry(out, round);
    TRY(methods_mean_pair(out, round));
    TRY(product_open(&p, round, PRODUCT_STAYS, 2));
    now.factor[ADAPTER_FILE_A] = out->module.factor[ADAPTER_FILE_A];
    now.factor[ADAPTER_FILE_B] = out->module.factor[ADAPTER_FILE_B];
    now.carry_rank = 0;
    const struct lowrank_term pair = product_pair(&now, -1), carry = product_carry(old, 1);
    TRY_OUT(e, product_norm(&size, &now));
    product_server_step(&p, round);
    product_add(&p, &pair);
    if (carry.r) product_add(&p, &carry);
    TRY_OUT(e, lowrank_svd_open(&svd, &p.stack, 0));
    TRY_OUT(e, product_into_carry(out, round, &svd, size * 0x1p-24));
    out->row.rank = now.rank + out->module.carry_rank;
out:
    product_close(&p);
    lowrank_svd_close(&svd);
    return e;
}

const struct method method_fedex = {
    .name = "fedex",
    .summary = "averages A and B and publishes the residual too; exact; one rank for all",
    .equal_scale = true,
    .exact = true,
    .carries = true,
    .aggregate = {.way = METHOD_AGGREGATE_SUM,
                  .text = "the exact weighted sum; all adapters must have one rank and scale"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_carried,
    .next = fedex_next,
};
