/* FLoRA (arXiv 2409.05976) without its traps: every member trains a fresh adapter of its own rank
 * on W0 + carry; the exact weighted sum of the products, each with its own scale, is stacked onto
 * the carry, which is recompressed. Nobody's factors are shown to others. */
#include "agg/flatten.h"
#include "agg/methods/methods.h"

#include <math.h>

static unsigned flora_factors(uint32_t round)
{
    (void)round;
    return METHOD_A | METHOD_B;
}

/* What an initial adapter or state adds is carried from the start, exactly. */
static err flora_start(struct method_result *out, const struct method_beginning *b)
{
    const struct adapter_file_module *m = b->initial;
    if (!m) return ERR_NONE;
    struct lowrank_term term[2];
    struct lowrank_stack stack = {
        .m = m->d_out, .n = m->d_in, .term = term, .count = flatten_terms(term, m)};
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail, rounding;
    TRY(lowrank_svd_open(&svd, &stack, 0));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){0});
    err e = method_result_carry(out, &rounding, &svd, q);
    out->dropped = tail;
    lowrank_svd_close(&svd);
    return e;
}

static void keep_carry(struct method_result *out, const struct method_round *round)
{
    method_result_keep(out, round->module, ADAPTER_FILE_CARRY_A);
    method_result_keep(out, round->module, ADAPTER_FILE_CARRY_B);
    out->module.carry_rank = round->module->carry_rank;
    out->row.rank = out->module.carry_rank;
    out->dropped = round->dropped;
}

/* The members' terms, then the carry. Returns how many are the members'. */
static size_t gather(struct lowrank_term *term, struct lowrank_stack *stack,
                     struct method_stack *owners)
{
    const struct method_round *round = owners->round;
    size_t n = 0;
    stack->done = method_stack_done;
    stack->context = owners;
    stack->m = round->module->d_out;
    stack->n = round->module->d_in;
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u) continue;
        stack->m = u->d_out;
        stack->n = u->d_in;
        owners->member[n] = k;
        term[n++] = (struct lowrank_term){.c = round->p[k] * u->scale,
                                          .B = u->factor[ADAPTER_FILE_B].f32,
                                          .A = u->factor[ADAPTER_FILE_A].f32,
                                          .r = u->rank};
    }
    size_t head = n;
    const struct adapter_file_module *old = round->module;
    owners->member[n] = SIZE_MAX;
    if (old->carry_rank)
        term[n++] = (struct lowrank_term){.c = 1,
                                          .B = old->factor[ADAPTER_FILE_CARRY_B].f32,
                                          .A = old->factor[ADAPTER_FILE_CARRY_A].f32,
                                          .r = old->carry_rank};
    stack->term = term;
    stack->count = n;
    return head;
}

static err flora_next(struct method_result *out, const struct method_round *round)
{
    struct arena arena = {0};
    struct lowrank_term *term;
    struct method_stack owners = {.round = round};
    struct lowrank_stack stack = {0};
    struct lowrank_svd svd = {0};
    double rounding;
    TRY(arena_take(&term, &arena, round->count + 1, sizeof *term));
    err e = arena_take(&owners.member, &arena, round->count + 1, sizeof *owners.member);
    if (err_is(e)) goto out;
    size_t head = gather(term, &stack, &owners);
    keep_carry(out, round);
    if (head > 0) TRY_OUT(e, lowrank_svd_open(&svd, &stack, head));
    out->row.update_norm = svd.head_norm;
    if (svd.head_norm == 0) { /* nobody moved this module: not a bit of it changes */
        struct lowrank_stack old = {
            .m = stack.m, .n = stack.n, .term = term + head, .count = stack.count - head};
        if (!round->no_report && old.count) e = lowrank_norm(&out->row.state_norm, &old);
        goto out;
    }
    uint32_t q;
    double tail;
    lowrank_cut(&q, &tail, &svd,
                &(struct lowrank_cut){.error = round->error_share, .spent = round->dropped});
    TRY_OUT(e, method_result_carry(out, &rounding, &svd, q));
    out->row.rank = q;
    out->row.dropped = tail;
    out->row.error = hypot(tail, rounding);
    out->row.state_norm = sqrt(fmax(0, svd.norm * svd.norm - tail * tail));
    out->dropped += tail;
out:
    arena_close(&arena);
    lowrank_svd_close(&svd);
    return e;
}

const struct method method_flora = {
    .name = "flora",
    .summary = "members of any rank train afresh; the exact sum is carried, recompressed",
    .mixed_ranks = true,
    .exact = true,
    .carries = true,
    .fresh = true,
    .factors = flora_factors,
    .start = flora_start,
    .next = flora_next,
};
