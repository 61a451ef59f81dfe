#include "agg/round/method_diagnose.h"

#include "agg/adapter/flatten.h"
#include "agg/algebra/matrix.h"
#include "agg/round/method_gram.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MIN(a, b) ((a) < (b) ? (a) : (b))

size_t method_diagnose_members(size_t count)
{
    return MIN(count, METHOD_DIAGNOSE_MEMBERS);
}

void method_diagnose_cosines(struct method_report_row *row, const double *gram, size_t n)
{
    double sum = 0, least = 1;
    uint32_t pairs = 0;
    for (size_t j = 0; j < n; j++)
        for (size_t k = j + 1; k < n; k++) {
            double size = sqrt(gram[j * n + j]) * sqrt(gram[k * n + k]);
            if (!(size > 0)) continue;
            double cosine = fmax(-1, fmin(1, gram[j * n + k] / size));
            sum += cosine;
            least = fmin(least, cosine);
            pairs++;
        }
    row->pairs = pairs;
    row->cosine_mean = pairs ? sum / pairs : 0;
    row->cosine_least = pairs ? least : 0;
}

static err compare_members(struct method_report_row *row, double *gram,
                           const struct method_round *round, const struct method *method)
{
    const struct adapter_file_module *update[METHOD_DIAGNOSE_MEMBERS];
    size_t n = method_diagnose_members(round->count);
    struct method_round some = *round;
    for (size_t j = 0; j < n; j++)
        update[j] = round->update[j * round->count / n];
    some.update = update;
    some.count = n;
    some.done = NULL; /* they are few: their pages may stay until the module is done */
    TRY(method_gram(gram, &some, method));
    method_diagnose_cosines(row, gram, n);
    return ERR_NONE;
}

/* ---- directions ---- */

struct directions { /* unit columns of x (d, cols), row-major */
    float *x;
    size_t d, cols;
    uint32_t count; /* columns in use, the first ones */
};

/* The leading left singular vectors of `stack`: at most `most`, and only until they hold `energy`
 * of the squared norm. */
static err directions_of(struct directions *out, const struct lowrank_stack *stack, uint32_t most,
                         double energy, struct arena *arena)
{
    struct lowrank_svd svd = {0};
    float *A;
    uint32_t q = 0;
    double held = 0;
    err e = ERR_NONE;
    TRY(lowrank_svd_open(&svd, stack, 0));
    for (; q < most && q < svd.k && svd.sigma[q] > 1e-6 * svd.sigma[0]; q++) {
        if (held >= energy * svd.norm * svd.norm) break;
        held += svd.sigma[q] * svd.sigma[q];
    }
    *out = (struct directions){.d = stack->m, .cols = q, .count = q};
    if (q == 0) goto out;
    TRY_OUT(e, arena_take(&out->x, arena, (size_t)svd.m * q, sizeof *out->x));
    TRY_OUT(e, arena_take(&A, arena, (size_t)svd.n * q, sizeof *A));
    e = lowrank_split(out->x, A, NULL, &svd, q, LOWRANK_ORTHONORMAL);
out:
    lowrank_svd_close(&svd);
    return e;
}

/* A carry is stored as it was cut, balanced: column j of its B is the left singular vector u_j
 * times sqrt(s_j), in decreasing order. So no decomposition is needed: the squared length of a
 * column is s_j, and s_j^2 is its part of the squared norm. */
static err directions_of_carry(struct directions *out, const struct adapter_file_module *m,
                               struct arena *arena)
{
    size_t d = m->d_out, q = MIN(m->carry_rank, METHOD_DIAGNOSE_BEFORE), n = m->carry_rank;
    const float *B = m->factor[ADAPTER_FILE_CARRY_B].f32;
    double *square, all = 0, held = 0;
    TRY(arena_take(&square, arena, n, sizeof *square));
    TRY(arena_take(&out->x, arena, d * q, sizeof *out->x));
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < n; j++)
            square[j] += (double)B[i * n + j] * (double)B[i * n + j];
    for (size_t j = 0; j < n; j++)
        all += square[j] * square[j];
    out->d = d;
    out->cols = q;
    for (; out->count < q && held < 0.99 * all; out->count++)
        held += square[out->count] * square[out->count];
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < q; j++)
            out->x[i * q + j] = square[j] > 0 ? (float)((double)B[i * n + j] / sqrt(square[j])) : 0;
    return ERR_NONE;
}

/* The directions of carry + s B A, the sum that the state adds to W0. */
static err directions_before(struct directions *out, const struct method_round *round,
                             struct arena *arena)
{
    struct adapter_file_module m = *round->module;
    struct lowrank_term term[2];
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B && round->frozen; r++)
        if (!m.factor[r].f32) m.factor[r] = round->frozen->factor[r];
    struct lowrank_stack stack = {
        .m = m.d_out, .n = m.d_in, .term = term, .count = flatten_terms(term, &m)};
    *out = (struct directions){0};
    if (stack.count == 0) return ERR_NONE;
    if (!m.factor[ADAPTER_FILE_A].f32) return directions_of_carry(out, &m, arena);
    return directions_of(out, &stack, METHOD_DIAGNOSE_BEFORE, 0.99, arena);
}

/* Columns of `now` whose |cosine| with every column of `before` is below 1/2. */
static uint32_t count_new(const struct directions *now, const struct directions *before)
{
    uint32_t count = 0;
    for (size_t i = 0; i < now->count; i++) {
        double most = 0;
        for (size_t j = 0; j < before->count; j++) {
            double cosine = 0;
            for (size_t h = 0; h < now->d; h++)
                cosine +=
                    (double)now->x[h * now->cols + i] * (double)before->x[h * before->cols + j];
            most = fmax(most, fabs(cosine));
        }
        count += most < 0.5;
    }
    return count;
}

static err find_intruders(struct method_report_row *row, const struct method_round *round,
                          const struct method *method)
{
    struct method_change change = {0};
    struct directions now = {0}, before = {0};
    struct arena arena = {0};
    err e = ERR_NONE;
    TRY_OUT(e, method_change_open(&change, round, method, 0));
    if (lowrank_total(&change.stack) > METHOD_DIAGNOSE_RANK) goto out;
    TRY_OUT(e, directions_of(&now, &change.stack, METHOD_DIAGNOSE_LEADING, /*all*/ 2, &arena));
    if (now.count) TRY_OUT(e, directions_before(&before, round, &arena));
    row->directions = now.count;
    row->intruders = count_new(&now, &before);
out:
    method_change_close(&change);
    arena_close(&arena);
    return e;
}

err method_diagnose(struct method_report_row *row, double *gram, const struct method_round *round,
                    const struct method *method)
{
    if (method->frozen && !round->frozen) return ERR_NONE;
    TRY(compare_members(row, gram, round, method));
    return find_intruders(row, round, method);
}
