/* The mean of one factor over a round's members; contract in method_round.h. */
#include "agg/algebra/matrix.h"
#include "agg/round/method_robust.h"

#include <stdlib.h>
#include <string.h>

/* Compiled also for wider registers. Products and sums are rounded one by one (the build forbids
 * fused ones), so every version gives the same bits. */
MATRIX_CLONES static void add_scaled(double *sum, const float *x, double p, size_t n)
{
    for (size_t i = 0; i < n; i++)
        sum[i] += p * (double)x[i];
}

/* The member has only the leading rows of A, columns of B or block of R. */
static bool is_slice(const struct method_round *round, size_t k, enum adapter_file_role role)
{
    const struct adapter_file_factor *whole = &round->module->factor[role];
    if (!round->update[k] || !round->update[k]->factor[role].f32 || !whole->rows) return false;
    const struct adapter_file_factor *own = &round->update[k]->factor[role];
    return own->rows < whole->rows || own->cols < whole->cols;
}

/* Adds p_k times the member's part and p_k times the state's values outside it: the factor that the
 * member ran with. */
static void add_slice(double *sum, const struct method_round *round, size_t k,
                      enum adapter_file_role role)
{
    const struct adapter_file_factor *whole = &round->module->factor[role];
    const struct adapter_file_factor *own = &round->update[k]->factor[role];
    for (size_t i = 0; i < whole->rows; i++) {
        size_t held = i < own->rows ? own->cols : 0, cols = whole->cols;
        double *row = sum + i * cols;
        if (held) add_scaled(row, own->f32 + i * held, round->p[k], held);
        if (whole->f32)
            add_scaled(row + held, whole->f32 + i * cols + held, round->p[k], cols - held);
    }
}

static void add_members(double *sum, const struct method_round *round, enum adapter_file_role role,
                        const size_t range[2], size_t count)
{
    enum { BLOCK = 2048 }; /* the sums stay in the first-level cache for all members of the range */
    for (size_t at = 0; at < count; at += BLOCK) {
        size_t n = count - at < BLOCK ? count - at : BLOCK;
        for (size_t k = range[0]; k < range[1]; k++) {
            if (is_slice(round, k, role)) continue;
            const struct adapter_file_module *from =
                round->update[k] ? round->update[k] : round->module;
            const float *x = from->factor[role].f32;
            /* A factor that neither the member nor the state has is zero. */
            if (x) add_scaled(sum + at, x + at, round->p[k], n);
        }
    }
    for (size_t k = range[0]; k < range[1]; k++)
        if (is_slice(round, k, role)) add_slice(sum, round, k, role);
}

/* Weight that a robust rule removed goes to the state's factors. */
static double state_share(const struct method_round *round)
{
    double rest = 1;
    for (size_t k = 0; k < round->count; k++)
        rest -= round->p[k];
    return rest > 1e-9 ? rest : 0; /* else only rounding of the shares */
}

err method_mean_exact(double *sum, const struct method_round *round, enum adapter_file_role role,
                      size_t count)
{
    enum { TOGETHER = 4 }; /* members whose pages are held at a time */
    const float *old = round->module->factor[role].f32;
    double share = state_share(round);
    enum method_robust rule = round->options->robust;
    if (rule == METHOD_ROBUST_MEDIAN || rule == METHOD_ROBUST_TRIMMED)
        return method_robust_values(sum, round, role, count);
    memset(sum, 0, count * sizeof *sum);
    for (size_t k = 0; k < round->count; k += TOGETHER) {
        const size_t range[2] = {k, k + TOGETHER < round->count ? k + TOGETHER : round->count};
        add_members(sum, round, role, range, count);
        for (size_t i = range[0]; i < range[1]; i++)
            if (round->done) round->done(round, i);
    }
    if (share > 0 && old) add_scaled(sum, old, share, count);
    return ERR_NONE;
}

err method_mean(float *out, const struct method_round *round, enum adapter_file_role role,
                size_t count)
{
    double *sum = NULL;
    TRY(matrix_take(&sum, count, 1));
    err e = method_mean_exact(sum, round, role, count);
    if (!err_is(e)) e = method_step(out, sum, round, role, count);
    free(sum);
    return e;
}
