#include "agg/methods/product.h"

#include <math.h>
#include <string.h>

void product_add(struct product *p, const struct lowrank_term *term)
{
    p->owners.member[p->stack.count] = SIZE_MAX;
    p->term[p->stack.count++] = *term;
}

struct lowrank_term product_pair(const struct adapter_file_module *module, double c)
{
    const struct adapter_file_factor *x = module->factor;
    return (struct lowrank_term){.c = c * module->scale,
                                 .B = x[ADAPTER_FILE_B].f32,
                                 .A = x[ADAPTER_FILE_A].f32,
                                 .r = module->rank};
}

struct lowrank_term product_carry(const struct adapter_file_module *module, double c)
{
    const struct adapter_file_factor *x = module->factor;
    return (struct lowrank_term){.c = c,
                                 .B = x[ADAPTER_FILE_CARRY_B].f32,
                                 .A = x[ADAPTER_FILE_CARRY_A].f32,
                                 .r = module->carry_rank};
}

err product_norm(double *out, const struct adapter_file_module *module)
{
    struct lowrank_term term[2];
    struct lowrank_stack stack = {.m = module->d_out, .n = module->d_in, .term = term};
    if (module->factor[ADAPTER_FILE_A].f32 && module->factor[ADAPTER_FILE_B].f32)
        term[stack.count++] = product_pair(module, 1);
    if (module->carry_rank) term[stack.count++] = product_carry(module, 1);
    return lowrank_norm(out, &stack);
}

/* ---- the state's pair in place of factors that were not sent ---- */

/* The weight with which row i of the state's pair counts in the mean: that of members that did not
 * send it, and the weight that a robust rule removed. */
static double stayed(const struct method_round *round, enum product_rest rest, uint32_t i)
{
    double sum = 0, all = 0;
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u || (rest == PRODUCT_STAYS && u->rank <= i)) sum += round->p[k];
        all += round->p[k];
    }
    return 1 - all > 1e-9 ? sum + (1 - all) : sum; /* below that it is rounding of the shares */
}

/* Adds c times columns [range[0], range[1]) of B times the same rows of A. Rows of A are contiguous
 * in the file; columns of B are copied. */
static err add_rest(struct product *p, const struct adapter_file_module *old, double c,
                    const uint32_t range[2])
{
    uint32_t r = range[1] - range[0];
    const float *B = old->factor[ADAPTER_FILE_B].f32;
    float *slice;
    struct lowrank_term term = product_pair(old, c);
    if (r < old->rank) {
        TRY(arena_take(&slice, &p->arena, (size_t)old->d_out * r, sizeof *slice));
        for (size_t i = 0; i < old->d_out; i++)
            memcpy(slice + i * r, B + i * old->rank + range[0], r * sizeof *slice);
        term.B = slice;
        term.A += (size_t)range[0] * old->d_in;
        term.r = r;
    }
    product_add(p, &term);
    return ERR_NONE;
}

/* One term for each range of rows with the same weight. The weight changes only at members' ranks,
 * so there are at most as many terms as different ranks, plus one. */
static err add_rests(struct product *p, const struct method_round *round, enum product_rest rest)
{
    const struct adapter_file_module *old = round->module;
    for (uint32_t i = 0, end; i < old->rank; i = end) {
        double c = stayed(round, rest, i);
        for (end = i + 1; end < old->rank && stayed(round, rest, end) == c;)
            end++;
        if (c > 0) TRY(add_rest(p, old, c, (const uint32_t[2]){i, end}));
    }
    return ERR_NONE;
}

static size_t ranks_of(const struct method_round *round)
{
    return round->count + 1 < round->module->rank ? round->count + 1 : round->module->rank;
}

err product_open(struct product *out, const struct method_round *round, enum product_rest rest,
                 size_t more)
{
    struct product p = {0};
    const struct adapter_file_module *old = round->module;
    size_t room = round->count + ranks_of(round) + 2 + more;
    err e = ERR_NONE;
    TRY_OUT(e, arena_take(&p.term, &p.arena, room, sizeof *p.term));
    TRY_OUT(e, arena_take(&p.owners.member, &p.arena, room, sizeof *p.owners.member));
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (!u) continue;
        struct lowrank_term term = product_pair(u, round->p[k]);
        if (!term.A) term.A = old->factor[ADAPTER_FILE_A].f32;
        if (!term.B) term.B = old->factor[ADAPTER_FILE_B].f32;
        product_add(&p, &term);
        p.owners.member[p.stack.count - 1] = k;
        p.sent++;
    }
    if (rest != PRODUCT_FRESH && old->factor[ADAPTER_FILE_B].f32)
        TRY_OUT(e, add_rests(&p, round, rest));
    *out = p;
    out->owners.round = round;
    out->stack = (struct lowrank_stack){.m = old->d_out,
                                        .n = old->d_in,
                                        .term = p.term,
                                        .count = p.stack.count,
                                        .done = method_stack_done,
                                        .context = &out->owners};
    return ERR_NONE;
out:
    product_close(&p);
    return e;
}

void product_server_step(struct product *p, const struct method_round *round)
{
    const struct lowrank_term old = product_pair(round->module, 1 - round->server_lr);
    for (size_t i = 0; i < p->stack.count; i++)
        p->term[i].c *= round->server_lr;
    if (round->server_lr != 1 && old.B && old.A) product_add(p, &old);
    if (round->momentum) product_add(p, round->momentum);
}

void product_close(struct product *p)
{
    arena_close(&p->arena);
    *p = (struct product){0};
}

/* ---- the carry that is published ---- */

void product_keep_carry(struct method_result *out, const struct method_round *round)
{
    method_result_keep(out, round->module, ADAPTER_FILE_CARRY_A);
    method_result_keep(out, round->module, ADAPTER_FILE_CARRY_B);
    out->module.carry_rank = round->module->carry_rank;
    out->dropped = round->dropped;
}

err product_into_carry(struct method_result *out, const struct method_round *round,
                       const struct lowrank_svd *svd, double floor)
{
    struct lowrank_cut cut = {.error = round->error_share, .spent = round->dropped};
    uint32_t q;
    double tail;
    /* A relative error of (floor + dropped) / norm, less the `dropped` already spent, leaves
     * floor. */
    if (svd->norm > 0) cut.error = fmax(cut.error, (floor + round->dropped) / svd->norm);
    lowrank_cut(&q, &tail, svd, &cut);
    TRY(method_result_carry(out, svd, q));
    out->row.dropped = tail;
    out->dropped = round->dropped + tail;
    return ERR_NONE;
}
