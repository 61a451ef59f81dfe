/* Fed-SB (arXiv 2502.15436): B and A are frozen, the same for all, and only R (r, r) trains, so the
 * mean of the R is the mean of the products. R is absolute; a member of rank r_k trains R[0:r_k,
 * 0:r_k] and leaves the rest, so R += sum_k p_k pad(R_k - R[0:r_k, 0:r_k]) with full weights: the
 * mean of whole R, of which a member leaves what it does not train as it is. Scale is 1. */
#include "agg/methods/methods.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

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

/* ||B X A||_F^2 = trace(X^T (B^T B) X (A A^T)); B and A orthonormal (or not given): ||X||_F. */
static double norm_through(const double *X, const double *left, const double *right, uint32_t r)
{
    double sum = 0;
    size_t n = (size_t)r * r;
    double *y = left ? calloc(n, sizeof *y) : NULL;
    for (size_t i = 0; i < n && !y; i++)
        sum += X[i] * X[i];
    for (size_t i = 0; i < r && y; i++) /* y = left X */
        for (size_t k = 0; k < r; k++)
            for (size_t j = 0; j < r; j++)
                y[i * r + j] += left[i * r + k] * X[k * r + j];
    for (size_t i = 0; i < r && y; i++) /* sum = <y, X right> */
        for (size_t j = 0; j < r; j++) {
            double x = 0;
            for (size_t k = 0; k < r; k++)
                x += X[i * r + k] * right[k * r + j];
            sum += y[i * r + j] * x;
        }
    free(y);
    return sqrt(fmax(0, sum));
}

/* left = B^T B and right = A A^T (r, r); NULL where there is no file of frozen factors. */
static err grams(double **left, double **right, const struct adapter_file_module *frozen)
{
    if (!frozen) return ERR_NONE;
    size_t r = frozen->rank;
    const float *B = frozen->factor[ADAPTER_FILE_B].f32, *A = frozen->factor[ADAPTER_FILE_A].f32;
    double *x = calloc(2 * r * r, sizeof *x);
    if (!x) return err_make(ERR_MACHINE, "no memory for %zu x %zu", r, r);
    double *y = x + r * r;
    for (size_t i = 0; i < frozen->d_out; i++)
        for (size_t a = 0; a < r; a++)
            for (size_t b = 0; b < r; b++)
                x[a * r + b] += (double)B[i * r + a] * (double)B[i * r + b];
    for (size_t a = 0; a < r; a++)
        for (size_t b = 0; b < r; b++)
            for (size_t i = 0; i < frozen->d_in; i++)
                y[a * r + b] += (double)A[a * frozen->d_in + i] * (double)A[b * frozen->d_in + i];
    *left = x;
    *right = y;
    return ERR_NONE;
}

static err fed_sb_next(struct method_result *out, const struct method_round *round)
{
    uint32_t r = round->module->rank;
    size_t n = (size_t)r * r;
    const float *R = round->module->factor[ADAPTER_FILE_R].f32;
    double *exact = NULL, *left = NULL, *right = NULL, *change, *lost, *now;
    float *next;
    err e = ERR_NONE;
    if (!R)
        return err_make(ERR_INPUT, "the state has no lora_R for module %s", round->module->name);
    for (size_t k = 0; k < round->count; k++)
        if (round->update[k] && round->update[k]->rank > r)
            return err_make(ERR_INPUT, "module %s: a block of %u, expected at most %u",
                            round->module->name, round->update[k]->rank, r);
    TRY_OUT(e, arena_take(&exact, &out->arena, 4 * n, sizeof *exact));
    TRY_OUT(e, method_result_take(&next, out, ADAPTER_FILE_R, r, r));
    TRY_OUT(e, method_mean_exact(exact, round, ADAPTER_FILE_R, n));
    TRY_OUT(e, method_step(next, exact, round, ADAPTER_FILE_R, n));
    change = exact + n;
    lost = change + n;
    now = lost + n;
    for (size_t i = 0; i < n; i++) {
        change[i] = exact[i] - (double)R[i];
        lost[i] = (double)next[i] - exact[i];
        now[i] = next[i];
    }
    out->module.rank = out->row.rank = r;
    if (!round->no_report) TRY_OUT(e, grams(&left, &right, round->frozen));
    out->row.update_norm = norm_through(change, left, right, r);
    out->row.error = norm_through(lost, left, right, r);
    out->row.state_norm = norm_through(now, left, right, r);
out:
    free(left); /* and right, which is its second half */
    return e;
}

const struct method method_fed_sb = {
    .name = "fed-sb",
    .summary = "only the small R between frozen factors trains; members may train a block of it",
    .mixed_ranks = true,
    .exact = true,
    .frozen = true,
    .averages = true,
    .factors = fed_sb_factors,
    .start = fed_sb_start,
    .next = fed_sb_next,
};
