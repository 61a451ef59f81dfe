/* HetLoRA (arXiv 2401.06432): a member of rank r_k starts from the leading r_k rows of A and
 * columns of B, without the rest. The factors that members send are padded with zeros and averaged
 * with weights in proportion to the norms of their products:
 *
 *     A <- sum_k w_k pad(A_k),  B <- sum_k w_k pad(B_k),
 *     w_k = p_k n_k / sum_j p_j n_j,   n_k = ||s B_k A_k||_F   of this module
 *
 * which is the paper's w_k = n_k / sum n_j if weights are uniform (the published driver averages by
 * examples alone). A member that sent nothing counts with the state's own pair. If every n_k is
 * zero, there are no weights, and the state stays. All ranks have one scale s: a member's alpha is
 * s r_k.
 *
 * The published change is not the mean of the members' changes, for three reasons: padding shrinks
 * the directions that only some members train, members train without the rest of the pair, and the
 * factors are averaged separately. The difference is reported.
 *
 * A member may send a smaller rank than it was assigned, because the client prunes trailing rows by
 * a penalty on the product of their norms (prune_lambda, prune_gamma). */
#include "agg/algebra/matrix.h"
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <stdlib.h>

/* w (count + 1): the members' weights, then the state's. *any is false if all norms are zero. */
static err weigh(double *w, bool *any, const struct method_round *round)
{
    double rest = 1, sum = 0, norm = 0;
    size_t n = round->count;
    for (size_t k = 0; k < n; k++) {
        const struct adapter_file_module *u = round->update[k];
        w[k] = 0;
        if (!u) continue;
        const struct lowrank_term term = product_pair(u, 1);
        struct lowrank_stack one = {.m = u->d_out, .n = u->d_in, .term = &term, .count = 1};
        TRY(lowrank_norm(&norm, &one));
        w[k] = round->p[k] * norm;
        rest -= round->p[k];
        sum += w[k];
        if (round->done) round->done(round, k);
    }
    const struct lowrank_term own = product_pair(round->module, 1);
    struct lowrank_stack old = {
        .m = round->module->d_out, .n = round->module->d_in, .term = &own, .count = 1};
    TRY(lowrank_norm(&norm, &old));
    w[n] = rest > 1e-9 ? rest * norm : 0; /* below that it is rounding of the shares */
    sum += w[n];
    *any = sum > 0;
    for (size_t k = 0; k <= n && *any; k++)
        w[k] /= sum;
    return ERR_NONE;
}

/* sum (its leading rows and columns) += w x */
static void add_padded(double *sum, size_t cols, const struct adapter_file_factor *x, double w)
{
    for (size_t i = 0; i < x->rows && w > 0; i++)
        for (size_t j = 0; j < x->cols; j++)
            sum[i * cols + j] += w * (double)x->f32[i * x->cols + j];
}

static err mean_of(struct method_result *out, const struct method_round *round,
                   enum adapter_file_role role, const double *w)
{
    const struct adapter_file_factor *old = &round->module->factor[role];
    size_t count = (size_t)old->rows * old->cols;
    double *sum = NULL;
    float *mean;
    TRY(method_result_take(&mean, out, role, old->rows, old->cols));
    TRY(matrix_take(&sum, count, 1));
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u) continue;
        add_padded(sum, old->cols, &u->factor[role], w[k]);
        if (round->done) round->done(round, k);
    }
    add_padded(sum, old->cols, old, w[round->count]);
    err e = method_step(mean, sum, round, role, count);
    free(sum);
    return e;
}

static err hetlora_next(struct method_result *out, const struct method_round *round)
{
    double *w;
    bool any;
    TRY(methods_check_scale(round, /*same_rank*/ false));
    TRY(arena_take(&w, &out->arena, round->count + 1, sizeof *w));
    TRY(weigh(w, &any, round));
    out->module.rank = out->row.rank = round->module->rank;
    if (!any) {
        method_result_keep(out, round->module, ADAPTER_FILE_A);
        method_result_keep(out, round->module, ADAPTER_FILE_B);
        return ERR_NONE;
    }
    TRY(mean_of(out, round, ADAPTER_FILE_A, w));
    return mean_of(out, round, ADAPTER_FILE_B, w);
}

const struct method method_hetlora = {
    .name = "hetlora",
    .summary = "averages A and B of different ranks, padded with zeros; not exact",
    .mixed_ranks = true,
    .truncates = true,
    .prunes = true,
    .equal_scale = true,
    .averages = true,
    .options = {"prune_gamma", "prune_lambda"},
    .aggregate = {.way = METHOD_AGGREGATE_FACTORS,
                  .text =
                      "the means of A and B, padded with zeros; not exact, its error is printed"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_lora,
    .next = hetlora_next,
};
