#include "agg/round/method_change.h"

#include <string.h>

/* The leading size[0] rows and size[1] columns of a factor. Rows that are longer than that are
 * copied into the arena, because a term's factors must be contiguous. */
static err leading(const float **out, const struct adapter_file_factor *x, const uint32_t size[2],
                   struct arena *arena)
{
    float *copy;
    if (!x->f32 || x->cols == size[1]) {
        *out = x->f32;
        return ERR_NONE;
    }
    TRY(arena_take(&copy, arena, (size_t)size[0] * size[1], sizeof *copy));
    for (size_t i = 0; i < size[0]; i++)
        memcpy(copy + i * size[1], x->f32 + i * x->cols, size[1] * sizeof *copy);
    *out = copy;
    return ERR_NONE;
}

/* c times the product that a member of rank r started from: s_0 B_0[:, :r] A_0[:r], with R_0
 * between them if there is one. */
static err start_of(struct lowrank_term *out, const struct method_round *round, uint32_t r,
                    double c, struct arena *arena)
{
    const struct adapter_file_module *m = round->module;
    struct adapter_file_factor x[ADAPTER_FILE_ROLES];
    const uint32_t a[2] = {r, m->d_in}, b[2] = {m->d_out, r}, square[2] = {r, r};
    memcpy(x, m->factor, sizeof x);
    for (int i = ADAPTER_FILE_A; i <= ADAPTER_FILE_B && round->frozen; i++)
        if (!x[i].f32) x[i] = round->frozen->factor[i];
    *out = (struct lowrank_term){.c = c * m->scale, .r = r};
    TRY(leading(&out->A, &x[ADAPTER_FILE_A], a, arena));
    TRY(leading(&out->B, &x[ADAPTER_FILE_B], b, arena));
    TRY(leading(&out->R, &x[ADAPTER_FILE_R], square, arena));
    if (out->A && out->B) return ERR_NONE;
    return err_make(ERR_INPUT, "module %s: its frozen factors are not given", m->name);
}

/* Adds +p_k W_k for each member, then the starts with a minus sign. Members of one rank started
 * from the same product, so they share one term with the sum of their weights: that is fewer terms,
 * and equal parts cancel once. */
static err add_members(struct method_change *c, const struct method_round *round, bool fresh)
{
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        struct lowrank_term term = {0};
        if (!u) continue;
        const struct adapter_file_factor *x = u->factor;
        bool whole = x[ADAPTER_FILE_A].f32 && x[ADAPTER_FILE_B].f32;
        /* Factors that were not sent are those of the start. An R is always at the state's
         * scale. */
        if (!whole) TRY(start_of(&term, round, u->rank, round->p[k], &c->arena));
        if (!x[ADAPTER_FILE_R].f32) term.c = round->p[k] * u->scale;
        term.r = u->rank;
        if (x[ADAPTER_FILE_A].f32) term.A = x[ADAPTER_FILE_A].f32;
        if (x[ADAPTER_FILE_B].f32) term.B = x[ADAPTER_FILE_B].f32;
        if (x[ADAPTER_FILE_R].f32) term.R = x[ADAPTER_FILE_R].f32;
        method_change_add(c, &term);
        c->owners.member[c->stack.count - 1] = k;
    }
    for (size_t k = 0; k < round->count && !fresh; k++) {
        struct lowrank_term term;
        double sum = 0;
        bool before = !round->update[k];
        for (size_t j = 0; j < k && !before; j++)
            before = round->update[j] && round->update[j]->rank == round->update[k]->rank;
        if (before) continue;
        for (size_t j = k; j < round->count; j++)
            if (round->update[j] && round->update[j]->rank == round->update[k]->rank)
                sum += round->p[j];
        TRY(start_of(&term, round, round->update[k]->rank, -sum, &c->arena));
        method_change_add(c, &term);
    }
    return ERR_NONE;
}

err method_change_open(struct method_change *out, const struct method_round *round,
                       const struct method *method, size_t more)
{
    const struct adapter_file_module *m = round->module;
    struct method_change c = {.stack = {.m = m->d_out, .n = m->d_in}};
    size_t room = 2 * round->count + more;
    bool fresh = method->fresh || !m->rank; /* or the state has no factors to start from */
    err e = ERR_NONE;
    /* A state without factors does not know the shape; any update does. */
    for (size_t k = 0; k < round->count && !c.stack.m; k++) {
        c.stack.m = round->update[k] ? round->update[k]->d_out : 0;
        c.stack.n = round->update[k] ? round->update[k]->d_in : 0;
    }
    TRY_OUT(e, arena_take(&c.term, &c.arena, room, sizeof *c.term));
    TRY_OUT(e, arena_take(&c.owners.member, &c.arena, room, sizeof *c.owners.member));
    TRY_OUT(e, add_members(&c, round, fresh));
    *out = c;
    out->owners.round = round;
    out->stack.term = out->term;
    out->stack.done = method_stack_done;
    out->stack.context = &out->owners;
    return ERR_NONE;
out:
    method_change_close(&c);
    return e;
}

void method_change_add(struct method_change *c, const struct lowrank_term *term)
{
    c->owners.member[c->stack.count] = SIZE_MAX;
    c->term[c->stack.count++] = *term;
}

void method_change_close(struct method_change *change)
{
    arena_close(&change->arena);
    *change = (struct method_change){0};
}
