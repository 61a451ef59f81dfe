/* The norms of one module of a round; contract in method_measure.h. This file has the way by
 * combinations of low-rank terms, which serves every method in which A and B train. With D the sum
 * of the terms of agg/round/method_change.h, S the state's sum before and P the published one, the
 * weights of the terms are
 *
 *                  D's terms    S    P
 *     change           1        0    0
 *     error            1        1   -1       ||P - S - D||
 *     state            0        0    1  */
#include "agg/algebra/matrix.h"
#include "agg/algebra/norms.h"
#include "agg/round/method_change.h"
#include "agg/round/method_measure_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct sums {
    struct method_change change; /* the terms: D's, then S's, then P's */
    double *weight;              /* (MEASURE_NORMS, terms) */
    size_t room;                 /* terms in a row of `weight` until pack_weights() */
};

static struct lowrank_term pair_of(const struct adapter_file_module *m, double c)
{
    return (struct lowrank_term){.c = c,
                                 .B = m->factor[ADAPTER_FILE_B].f32,
                                 .A = m->factor[ADAPTER_FILE_A].f32,
                                 .r = m->rank};
}

static struct lowrank_term carry_of(const struct adapter_file_module *m)
{
    return (struct lowrank_term){.c = 1,
                                 .B = m->factor[ADAPTER_FILE_CARRY_B].f32,
                                 .A = m->factor[ADAPTER_FILE_CARRY_A].f32,
                                 .r = m->carry_rank};
}

/* Adds a term with its weights in the error and in the state. An empty one is left out. */
static void add_term(struct sums *s, const struct lowrank_term *term, double error, double state)
{
    size_t t = s->change.stack.count;
    if (!term->r || !term->A || !term->B) return;
    method_change_add(&s->change, term);
    s->weight[MEASURE_ERROR * s->room + t] = error;
    s->weight[MEASURE_STATE * s->room + t] = state;
}

/* The carry was published as it was. Then it cancels in the error and need not be read twice. */
static bool same_carry(const struct method_measure *x)
{
    const struct adapter_file_module *old = x->round->module, *made = x->made;
    bool same = old->carry_rank == made->carry_rank;
    for (int r = ADAPTER_FILE_CARRY_A; r <= ADAPTER_FILE_CARRY_B && same && made->carry_rank; r++) {
        const struct adapter_file_factor *a = &old->factor[r], *b = &made->factor[r];
        same = !memcmp(a->f32, b->f32, (size_t)b->rows * b->cols * sizeof(float));
    }
    return same;
}

/* Sets the weights of D's terms and adds the terms of S. If members started from the whole pair of
 * the state, D has a term -sum p_k s B A already: S is then added to that term's weight, so that
 * the pair is read once, and cancels exactly if all members sent the module (the weight is then 0).
 * `same` is same_carry(). With `truncates`, small members trained without the rest of the pair, and
 * the exact change counts against the whole pair. */
static void add_before(struct sums *s, const struct method_measure *x, bool same)
{
    const struct adapter_file_module *old = x->round->module;
    struct lowrank_term pair = pair_of(old, old->scale), carry = carry_of(old);
    size_t terms = s->change.stack.count, whole = SIZE_MAX;
    for (size_t t = 0; t < terms; t++) {
        struct lowrank_term *term = &s->change.term[t];
        bool start = s->change.owners.member[t] == SIZE_MAX;
        double sum = 1;
        if (start && x->method->truncates) *term = pair_of(old, term->c);
        if (start && term->r == old->rank && old->scale > 0) {
            sum = term->c / old->scale; /* -sum p_k of these members */
            term->c = old->scale;       /* S has weight 1 in units of this term */
            whole = t;
        }
        s->weight[MEASURE_CHANGE * s->room + t] = s->weight[MEASURE_ERROR * s->room + t] = sum;
    }
    if (whole == SIZE_MAX)
        add_term(s, &pair, 1, 0);
    else if (fabs(s->weight[MEASURE_ERROR * s->room + whole] += 1) < 1e-9)
        s->weight[MEASURE_ERROR * s->room + whole] = 0; /* else only rounding of the weights */
    if (!same) add_term(s, &carry, 1, 0);
}

/* Closes the gaps between the rows of `weight`: norms_of() expects (MEASURE_NORMS, terms). */
static void pack_weights(struct sums *s)
{
    for (size_t j = 1; j < MEASURE_NORMS; j++)
        memmove(s->weight + j * s->change.stack.count, s->weight + j * s->room,
                s->change.stack.count * sizeof *s->weight);
}

static err measure_pairs(double *norm, const struct method_measure *x)
{
    enum { MORE = 4 };
    struct sums s = {.room = 2 * x->round->count + MORE};
    err e = ERR_NONE;
    TRY(method_change_open(&s.change, x->round, x->method, MORE));
    TRY_OUT(e, matrix_take(&s.weight, MEASURE_NORMS, s.room));
    size_t terms = s.change.stack.count;
    bool same = same_carry(x);
    add_before(&s, x, same);
    const struct lowrank_term pair = pair_of(x->made, x->round->module->scale),
                              carry = carry_of(x->made);
    add_term(&s, &pair, -1, 1);
    add_term(&s, &carry, same ? 0 : -1, 1);
    pack_weights(&s);
    TRY_OUT(e, norms_of(norm, &s.change.stack, s.weight, MEASURE_NORMS));
    if (terms == 0) norm[MEASURE_ERROR] = 0; /* no member sent it, and it was published unchanged */
out:
    method_change_close(&s.change);
    free(s.weight);
    return e;
}

err method_measure(struct method_report_row *row, const struct method_measure *x)
{
    unsigned trained = x->method->factors(x->round->number);
    double norm[MEASURE_NORMS] = {0};
    if (trained & METHOD_R)
        TRY(measure_core(norm, x));
    else if (trained == METHOD_A || trained == METHOD_B)
        TRY(measure_factor(norm, x, trained == METHOD_A ? ADAPTER_FILE_A : ADAPTER_FILE_B));
    else if (measure_is_mean(x))
        TRY(measure_mean(norm, x));
    else
        TRY(measure_pairs(norm, x));
    row->update_norm = norm[MEASURE_CHANGE];
    row->error = norm[MEASURE_ERROR];
    row->state_norm = norm[MEASURE_STATE];
    return ERR_NONE;
}
