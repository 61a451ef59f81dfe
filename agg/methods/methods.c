#include "agg/methods/methods.h"

#include "agg/adapter/flatten.h"
#include "base/rng.h"

#include <math.h>

unsigned methods_both(uint32_t round)
{
    (void)round;
    return METHOD_A | METHOD_B;
}

/* ---- starts ---- */

static err start_fresh(struct method_result *out, const struct method_beginning *b)
{
    const struct method_start *s = b->start;
    struct rng rng;
    float *A, *B;
    out->module.rank = s->rank;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, s->rank, b->module->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, b->module->d_out, s->rank));
    rng_init(&rng, "lora_A", s->seed, b->module->name, 0);
    rng_fill_uniform(&rng, A, (size_t)s->rank * b->module->d_in, 1 / sqrt(b->module->d_in));
    return ERR_NONE;
}

err methods_start_lora(struct method_result *out, const struct method_beginning *b)
{
    if (!b->initial) return start_fresh(out, b);
    out->module.rank = b->initial->rank;
    method_result_keep(out, b->initial, ADAPTER_FILE_A);
    method_result_keep(out, b->initial, ADAPTER_FILE_B);
    return ERR_NONE;
}

err methods_start_carry(struct method_result *out, const struct method_beginning *b)
{
    const struct adapter_file_module *m = b->initial;
    if (!m) return ERR_NONE;
    struct lowrank_term term[2];
    struct lowrank_stack stack = {
        .m = m->d_out, .n = m->d_in, .term = term, .count = flatten_terms(term, m)};
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail;
    TRY(lowrank_svd_open(&svd, &stack, 0));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){0});
    err e = method_result_carry(out, &svd, q);
    out->dropped = tail;
    lowrank_svd_close(&svd);
    return e;
}

err methods_start_carried(struct method_result *out, const struct method_beginning *b)
{
    TRY(methods_start_carry(out, b));
    return start_fresh(out, b);
}

/* ---- rounds ---- */

/* A member of smaller rank computes alpha/r from other numbers than the run, so rounding
 * differs. */
static bool same_scale(double a, double b)
{
    return fabs(a - b) <= 1e-9 * fabs(b);
}

err methods_check_scale(const struct method_round *round, bool same_rank)
{
    const struct adapter_file_module *old = round->module;
    if (!old->factor[ADAPTER_FILE_A].f32 || !old->factor[ADAPTER_FILE_B].f32)
        return err_make(ERR_INPUT, "the state has no adapter for module %s", old->name);
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u) continue;
        bool fits = same_rank ? u->rank == old->rank : u->rank <= old->rank;
        if (fits && same_scale(u->scale, old->scale)) continue;
        return err_make(ERR_INPUT,
                        "module %s: rank %u at scale %g, but a mean of factors needs rank %s%u at "
                        "scale %g from every member",
                        u->name, u->rank, u->scale, same_rank ? "" : "up to ", old->rank,
                        old->scale);
    }
    return ERR_NONE;
}

err methods_mean_pair(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    float *A, *B;
    out->module.rank = out->row.rank = old->rank;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, old->rank, old->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, old->d_out, old->rank));
    TRY(method_mean(A, round, ADAPTER_FILE_A, (size_t)old->rank * old->d_in));
    return method_mean(B, round, ADAPTER_FILE_B, (size_t)old->d_out * old->rank);
}
