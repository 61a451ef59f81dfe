/* FlexLoRA (arXiv 2402.11505): the mean of the products of members of any rank is decomposed in
 * each round, and a member trains the leading part of the result:
 *
 *     X = sum_k p_k W_k = U S V^T,   A <- V^T[:r],   B <- U[:, :r] S[:r] / s
 *
 * with s the state's scale, so s B A is the best rank-r approximation of X. It is found by QR and a
 * small SVD, not from the dense matrix. One decomposition serves every rank: a member of rank r_k
 * starts from the leading r_k rows and columns at the scale s (its alpha is s r_k, or s sqrt(r_k)
 * with rsLoRA, not the run's alpha), and the rest of the pair stays frozen beside it: W_k = s_k B_k
 * A_k + s B[:, r_k:] A[r_k:]. If the mean left that rest out, the model would lose the part that
 * small members cannot hold.
 *
 * The size of the cut, sqrt(sum_{i>r} S_i^2), is reported. With tail=carry the cut part goes into
 * the carry, with the rounding of the stored pair, and the round is exact. If X has a lower rank
 * than r, the unused rows of A keep their old values beside zero columns of B, because with zeros
 * in both their gradients would be zero and they would never train again. */
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <math.h>
#include <string.h>

/* A (r, n) and B (m, r): the leading q <= r of the decomposition / scale, then the old A's rows. */
static err put_pair(struct method_result *out, const struct lowrank_svd *svd,
                    const struct adapter_file_module *old, uint32_t q)
{
    struct lowrank_svd scaled = *svd;
    struct arena scratch = {0};
    float *A, *B, *left;
    err e = ERR_NONE;
    uint32_t r = old->rank;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, r, svd->n));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, svd->m, r));
    TRY_OUT(e, arena_take(&scaled.sigma, &scratch, svd->k, sizeof *scaled.sigma));
    TRY_OUT(e, arena_take(&left, &scratch, (size_t)svd->m * q, sizeof *left));
    for (uint32_t i = 0; i < svd->k; i++)
        scaled.sigma[i] = svd->sigma[i] / old->scale;
    TRY_OUT(e, lowrank_split(left, A, /*rounding*/ NULL, &scaled, q, LOWRANK_LEFT));
    for (size_t i = 0; i < svd->m && q; i++)
        memcpy(B + i * r, left + i * q, q * sizeof *B);
    memcpy(A + (size_t)q * svd->n, old->factor[ADAPTER_FILE_A].f32 + (size_t)q * svd->n,
           (size_t)(r - q) * svd->n * sizeof *A);
out:
    arena_close(&scratch);
    return e;
}

/* The carry takes X - s B A, the part that the published pair does not have. */
static err carry_tail(struct method_result *out, const struct method_round *round,
                      struct product *p, double floor)
{
    struct adapter_file_module now = *round->module;
    struct lowrank_svd svd = {0};
    now.factor[ADAPTER_FILE_A] = out->module.factor[ADAPTER_FILE_A];
    now.factor[ADAPTER_FILE_B] = out->module.factor[ADAPTER_FILE_B];
    const struct lowrank_term pair = product_pair(&now, -1), carry = product_carry(&now, 1);
    product_add(p, &pair);
    if (carry.r) product_add(p, &carry);
    TRY(lowrank_svd_open(&svd, &p->stack, 0));
    err e = product_into_carry(out, round, &svd, floor);
    lowrank_svd_close(&svd);
    return e;
}

static err flexlora_next(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct product p = {0};
    struct lowrank_svd svd = {0};
    double tail;
    uint32_t q;
    err e = ERR_NONE;
    TRY(methods_check_scale(round, /*same_rank*/ false));
    product_keep_carry(out, round);
    out->module.rank = out->row.rank = old->rank;
    TRY(product_open(&p, round, PRODUCT_STAYS, 2));
    product_server_step(&p, round);
    TRY_OUT(e, lowrank_svd_open(&svd, &p.stack, 0));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){.rank_max = old->rank});
    TRY_OUT(e, put_pair(out, &svd, old, q));
    out->row.dropped = tail;
    if (round->options->tail == METHOD_TAIL_CARRY)
        TRY_OUT(e, carry_tail(out, round, &p, svd.norm * 0x1p-24));
    out->row.rank = old->rank + out->module.carry_rank;
out:
    product_close(&p);
    lowrank_svd_close(&svd);
    return e;
}

const struct method method_flexlora = {
    .name = "flexlora",
    .summary = "averages the products B A, cut by an SVD each round; ranks may differ",
    .mixed_ranks = true,
    .carries = true,
    .options = {"tail"},
    .aggregate = {.way = METHOD_AGGREGATE_SUM,
                  .cut = METHOD_AGGREGATE_CUT_LARGEST,
                  .text = "the exact weighted sum, cut to the largest rank given"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_carried,
    .next = flexlora_next,
};
