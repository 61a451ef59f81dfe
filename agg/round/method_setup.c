#include "agg/round/method_setup.h"

#include "agg/algebra/matrix.h"
#include "agg/algebra/sketch.h"

#include <math.h>
#include <stdlib.h>

static struct basis_shape shape_of(uint32_t d_out, uint32_t d_in, uint32_t rank)
{
    return (struct basis_shape){.d_out = d_out, .d_in = d_in, .r = rank};
}

err method_setup_start(struct method_result *out, const struct method_beginning *b)
{
    const struct method_module *m = b->module;
    const struct basis_shape shape = shape_of(m->d_out, m->d_in, b->start->rank);
    uint32_t q = sketch_width(&shape);
    float *A, *B;
    out->module.rank = q;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, q, m->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, m->d_out, q));
    sketch_probe(A, &shape, &(struct basis_key){.seed = b->start->seed, .label = m->name});
    return ERR_NONE;
}

/* out (count) = sum_k p_k g_k / s_k. Members took gradients of W0 + s_k B A, so dL/dB and dL/dA
 * have the factor s_k. Members that sent none count as zero. */
static err mean_gradient(float *out, const struct method_round *round, enum adapter_file_role role,
                         size_t count)
{
    double *sum = NULL;
    err e = ERR_NONE;
    TRY(matrix_take(&sum, count, 1));
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u) continue;
        const struct adapter_file_factor *x = &u->factor[role];
        if (!x->f32 || (size_t)x->rows * x->cols != count || !(u->scale > 0)) {
            e = err_make(ERR_INPUT, "module %s: expected the gradient of lora_%c at rank %u",
                         u->name, role == ADAPTER_FILE_A ? 'A' : 'B', round->module->rank);
            goto out;
        }
        for (size_t i = 0; i < count; i++)
            sum[i] += round->p[k] / u->scale * (double)x->f32[i];
        if (round->done) round->done(round, k);
    }
    for (size_t i = 0; i < count; i++)
        out[i] = (float)sum[i];
out:
    free(sum);
    return e;
}

static double norm_of(const float *x, size_t count)
{
    double sum = 0;
    for (size_t i = 0; i < count; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

static err next_range(struct method_result *out, const struct method_round *round,
                      const struct basis_shape *shape, const struct basis_key *key)
{
    const struct adapter_file_module *m = round->module;
    size_t count = (size_t)m->d_out * m->rank;
    float *A, *Y, *Q;
    out->module.rank = m->rank;
    TRY(arena_take(&Y, &out->arena, count, sizeof *Y));
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, m->rank, m->d_in));
    TRY(method_result_take(&Q, out, ADAPTER_FILE_B, m->d_out, m->rank));
    TRY(mean_gradient(Y, round, ADAPTER_FILE_B, count));
    out->row.update_norm = norm_of(Y, count);
    return sketch_range(Q, Y, shape, key);
}

static err next_basis(struct method_result *frozen, struct sketch_found *found,
                      const struct method_round *round, const struct basis_shape *shape,
                      const struct basis_key *key)
{
    const struct adapter_file_module *m = round->module;
    size_t count = (size_t)m->rank * m->d_in;
    uint32_t r = sketch_rank(shape);
    float *A, *B, *Z;
    frozen->module = (struct adapter_file_module){
        .name = m->name, .d_out = m->d_out, .d_in = m->d_in, .rank = r, .alpha = r, .scale = 1};
    TRY(arena_take(&Z, &frozen->arena, count, sizeof *Z));
    TRY(method_result_take(&A, frozen, ADAPTER_FILE_A, r, m->d_in));
    TRY(method_result_take(&B, frozen, ADAPTER_FILE_B, m->d_out, r));
    TRY(mean_gradient(Z, round, ADAPTER_FILE_A, count));
    const struct sketch_pass pass = {.Q = m->factor[ADAPTER_FILE_B].f32, .Z = Z};
    return sketch_basis(A, B, found, &pass, shape, key);
}

err method_setup_next(struct method_result *out, struct method_result *frozen,
                      const struct method_round *round, const struct method_setup *setup)
{
    const struct adapter_file_module *m = round->module;
    const struct basis_shape shape = shape_of(m->d_out, m->d_in, setup->rank);
    const struct basis_key key = {.label = m->name}; /* for directions that no gradient gives */
    struct sketch_found found = {0};
    if (m->rank != sketch_width(&shape) || !m->factor[ADAPTER_FILE_B].f32)
        return err_make(ERR_INPUT, "module %s: rank %u, expected a sketch of width %u", m->name,
                        m->rank, sketch_width(&shape));
    out->row.rank = setup->round == 1 ? m->rank : sketch_rank(&shape);
    if (setup->round == 1) return next_range(out, round, &shape, &key);
    TRY(next_basis(frozen, &found, round, &shape, &key));
    const struct method_module module = {.name = m->name, .d_out = m->d_out, .d_in = m->d_in};
    const struct method_start start = {.rank = setup->rank, .module = &module, .module_count = 1};
    const struct method_beginning beginning = {
        .start = &start, .options = round->options, .module = &module, .frozen = &frozen->module};
    TRY(setup->method->start(out, &beginning));
    if (!(setup->method->factors(1) & METHOD_R)) /* B trains beside it: only A is frozen */
        frozen->module.factor[ADAPTER_FILE_B] = (struct adapter_file_factor){0};
    out->row.update_norm = found.norm;
    out->row.error = out->row.dropped = found.tail;
    return ERR_NONE;
}
