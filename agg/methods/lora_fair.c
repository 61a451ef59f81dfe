/* LoRA-FAIR (arXiv 2411.14961): the factors are averaged as in FedIT, and B is then corrected so
 * that the pair is closer to the mean of the products X = sum_k p_k B_k A_k. With E = X - Bbar
 * Abar:
 *
 *     closed (the default)   min_dB ||E - dB Abar||_F^2 + lambda g ||dB||_F^2,
 *                            g = tr(Abar Abar^T)/r
 *                            dB = E Abar^T (Abar Abar^T + lambda g I)^-1
 *     cosine (the paper's)   min_dB 1 - cos(X, (Bbar + dB) Abar) + lambda ||dB||_F
 *
 *     A <- Abar,  B <- Bbar + dB
 *
 * Neither forms E: E Abar^T = sum_k p_k B_k (A_k Abar^T) - Bbar (Abar Abar^T). Only the part of E
 * in the row space of Abar can be corrected; the rest is the error that is reported. The factor g
 * makes lambda independent of the size of Abar. All members have the run's rank and scale s, which
 * is common to both sides and drops out. */
#include "agg/algebra/matrix.h"
#include "agg/methods/fair.h"
#include "agg/methods/methods.h"
#include "agg/methods/product.h"

#include <cblas.h>
#include <stdlib.h>

struct means { /* float64 */
    size_t m, n, r;
    double *A;         /* (r, n) row-major */
    double *B;         /* (m, r) row-major, then with the correction */
    double *b, *h, *d; /* (m, r) column-major: Bbar, H, the correction; without s */
    double *g;         /* (r, r) */
};

static void means_close(struct means *x)
{
    free(x->A);
    free(x->B);
    free(x->b);
    free(x->h);
    free(x->d);
    free(x->g);
}

static err means_open(struct means *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct means x = {.m = old->d_out, .n = old->d_in, .r = old->rank};
    err e = ERR_NONE;
    TRY_OUT(e, matrix_take(&x.A, x.r, x.n));
    TRY_OUT(e, matrix_take(&x.B, x.m, x.r));
    TRY_OUT(e, matrix_take(&x.b, x.m, x.r));
    TRY_OUT(e, matrix_take(&x.h, x.m, x.r));
    TRY_OUT(e, matrix_take(&x.d, x.m, x.r));
    TRY_OUT(e, matrix_take(&x.g, x.r, x.r));
    TRY_OUT(e, method_mean_exact(x.A, round, ADAPTER_FILE_A, x.r * x.n));
    TRY_OUT(e, method_mean_exact(x.B, round, ADAPTER_FILE_B, x.m * x.r));
    *out = x;
    return ERR_NONE;
out:
    means_close(&x);
    return e;
}

/* B += the correction. Row-major A (r, n) is column-major Abar^T (n, r). */
static err correct(struct means *x, const struct method_round *round, const struct product *mean)
{
    const struct method_options *o = round->options;
    struct fair f = {
        .m = x->m, .r = x->r, .B = x->b, .H = x->h, .G = x->g, .lambda = o->fair_lambda};
    int n = (int)x->n, r = (int)x->r;
    double scale = round->module->scale;
    for (size_t i = 0; i < x->m; i++)
        for (size_t j = 0; j < x->r; j++)
            x->b[j * x->m + i] = x->B[i * x->r + j];
    TRY(lowrank_times(x->h, &mean->stack, x->A, x->r));
    cblas_dscal((int)(x->m * x->r), 1 / scale, x->h, 1);
    cblas_dgemm(CblasColMajor, CblasTrans, CblasNoTrans, r, r, n, 1, x->A, n, x->A, n, 0, x->g, r);
    if (o->fair_solve == METHOD_SOLVE_COSINE) {
        TRY(lowrank_norm(&f.norm, &mean->stack));
        f.norm /= scale;
        TRY(fair_cosine(x->d, &f));
    } else {
        TRY(fair_closed(x->d, &f));
    }
    for (size_t i = 0; i < x->m; i++)
        for (size_t j = 0; j < x->r; j++)
            x->B[i * x->r + j] += x->d[j * x->m + i];
    return ERR_NONE;
}

static err publish(struct method_result *out, const struct method_round *round,
                   const struct means *x)
{
    const struct adapter_file_module *old = round->module;
    float *A, *B;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, old->rank, old->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, old->d_out, old->rank));
    TRY(method_step(A, x->A, round, ADAPTER_FILE_A, x->r * x->n));
    return method_step(B, x->B, round, ADAPTER_FILE_B, x->m * x->r);
}

static err lora_fair_next(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct product mean = {0};
    struct means x = {0};
    err e = ERR_NONE;
    TRY(methods_check_scale(round, /*same_rank*/ true));
    out->module.rank = out->row.rank = old->rank;
    TRY_OUT(e, product_open(&mean, round, PRODUCT_STAYS, 0));
    TRY_OUT(e, means_open(&x, round));
    TRY_OUT(e, correct(&x, round, &mean));
    e = publish(out, round, &x);
out:
    product_close(&mean);
    means_close(&x);
    return e;
}

const struct method method_lora_fair = {
    .name = "lora-fair",
    .summary = "averages A and B, then corrects B to reduce the error; one rank for all",
    .equal_scale = true,
    .averages = true,
    .options = {"fair_lambda", "fair_solve"},
    .aggregate = {.way = METHOD_AGGREGATE_FACTORS,
                  .text = "the means of A and B, B corrected; not exact, its error is printed"},
    .client_refusal = METHODS_TWO_FACTORS,
    .factors = methods_both,
    .start = methods_start_lora,
    .next = lora_fair_next,
};
