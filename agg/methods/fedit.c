/* FedIT (arXiv 2305.05644), the baseline: A and B are averaged apart, so the published product is
 * off the mean of the products by s sum_k p_k (B_k - mean B)(A_k - mean A), which is reported. */
#include "agg/methods/methods.h"
#include "base/rng.h"

#include <math.h>

static unsigned fedit_factors(uint32_t round)
{
    (void)round;
    return METHOD_A | METHOD_B;
}

err method_start_lora(struct method_result *out, const struct method_beginning *b)
{
    const struct method_start *s = b->start;
    float *A, *B;
    if (b->initial) {
        out->module.rank = b->initial->rank;
        method_result_keep(out, b->initial, ADAPTER_FILE_A);
        method_result_keep(out, b->initial, ADAPTER_FILE_B);
        return ERR_NONE;
    }
    struct rng rng;
    out->module.rank = s->rank;
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, s->rank, b->module->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, b->module->d_out, s->rank));
    rng_init(&rng, "lora_A", s->seed, b->module->name, 0);
    rng_fill_uniform(&rng, A, (size_t)s->rank * b->module->d_in, 1 / sqrt(b->module->d_in));
    return ERR_NONE;
}

static struct lowrank_term term_of(const struct adapter_file_module *m, double c)
{
    return (struct lowrank_term){.c = c * m->scale,
                                 .B = m->factor[ADAPTER_FILE_B].f32,
                                 .A = m->factor[ADAPTER_FILE_A].f32,
                                 .r = m->rank};
}

/* The exact mean of the products, against where the round began and against what is published. */
static err report(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    struct adapter_file_module now = *old;
    struct arena arena = {0};
    struct lowrank_term *term;
    struct method_stack owners = {.round = round};
    double norms[2];
    TRY(arena_take(&term, &arena, round->count, sizeof *term));
    err e = arena_take(&owners.member, &arena, round->count, sizeof *owners.member);
    if (err_is(e)) goto out;
    struct lowrank_stack exact = {old->d_out,   old->d_in,         term,
                                  round->count, method_stack_done, &owners};
    now.factor[ADAPTER_FILE_A] = out->module.factor[ADAPTER_FILE_A];
    now.factor[ADAPTER_FILE_B] = out->module.factor[ADAPTER_FILE_B];
    for (size_t k = 0; k < round->count; k++) {
        term[k] = term_of(round->update[k] ? round->update[k] : old, round->p[k]);
        owners.member[k] = round->update[k] ? k : SIZE_MAX;
    }
    const struct lowrank_term with[] = {term_of(old, -1), term_of(&now, -1)};
    e = lowrank_norms(norms, &exact, with, 2);
    if (!err_is(e)) {
        const struct lowrank_term published = term_of(&now, 1);
        struct lowrank_stack alone = {
            .m = old->d_out, .n = old->d_in, .term = &published, .count = 1};
        out->row.update_norm = norms[0];
        out->row.error = norms[1];
        e = lowrank_norm(&out->row.state_norm, &alone);
    }
out:
    arena_close(&arena);
    return e;
}

static err check_members(const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    if (!old->factor[ADAPTER_FILE_A].f32 || !old->factor[ADAPTER_FILE_B].f32)
        return err_make(ERR_INPUT, "the state has no adapter for module %s", old->name);
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (u && (u->rank != old->rank || u->scale != old->scale))
            return err_make(ERR_INPUT,
                            "module %s: rank %u at scale %g; a mean of factors needs rank %u at "
                            "scale %g from all",
                            u->name, u->rank, u->scale, old->rank, old->scale);
    }
    return ERR_NONE;
}

static err fedit_next(struct method_result *out, const struct method_round *round)
{
    const struct adapter_file_module *old = round->module;
    float *A, *B;
    TRY(check_members(round));
    out->module.rank = out->row.rank = old->rank;
    bool moved = false;
    for (size_t k = 0; k < round->count; k++)
        moved = moved || round->update[k];
    if (!moved) { /* not even rounded */
        method_result_keep(out, old, ADAPTER_FILE_A);
        method_result_keep(out, old, ADAPTER_FILE_B);
        return ERR_NONE;
    }
    TRY(method_result_take(&A, out, ADAPTER_FILE_A, old->rank, old->d_in));
    TRY(method_result_take(&B, out, ADAPTER_FILE_B, old->d_out, old->rank));
    TRY(method_mean(A, round, ADAPTER_FILE_A, (size_t)old->rank * old->d_in));
    TRY(method_mean(B, round, ADAPTER_FILE_B, (size_t)old->d_out * old->rank));
    return round->no_report ? ERR_NONE : report(out, round);
}

const struct method method_fedit = {
    .name = "fedit",
    .summary = "the mean of the factors, one rank for all: the baseline, its error reported",
    .equal_scale = true,
    .averages = true,
    .factors = fedit_factors,
    .start = method_start_lora,
    .next = fedit_next,
};
