#include "agg/round/method_server.h"

#include "agg/round/method_change.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static const char first_prefix[] = "first.", second_prefix[] = "second.";

static err find(const struct adapter_file_module **out, const struct method_cohort *c,
                const char *prefix, const char *name, struct arena *arena)
{
    char full[LIMIT_TENSOR_NAME_BYTES];
    struct adapter_file_module *copy;
    int n = snprintf(full, sizeof full, "%s%s", prefix, name);
    REQUIRE(n > 0 && n < (int)sizeof full);
    const struct adapter_file_module *m =
        c->has_memory ? adapter_file_find(&c->memory, full) : NULL;
    if (!m) return ERR_NONE;
    TRY(arena_take(&copy, arena, 1, sizeof *copy));
    *copy = *m;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        if (copy->factor[r].tensor)
            TRY(adapter_file_f32(&copy->factor[r].f32, &copy->factor[r], arena));
    *out = copy;
    return ERR_NONE;
}

static void keep(struct method_result *out, const struct adapter_file_module *from)
{
    if (from) out->module = *from;
}

err method_memory_open(struct method_memory *out, struct method_round *round,
                       const struct method_cohort *c, const struct method *method)
{
    struct method_memory m = {0};
    const char *name = round->module->name;
    err e = ERR_NONE;
    if (c->options.server == METHOD_SERVER_NONE) return ERR_NONE;
    TRY_OUT(e, find(&m.first, c, first_prefix, name, &m.arena));
    TRY_OUT(e, find(&m.second, c, second_prefix, name, &m.arena));
    /* A module that no member sends keeps its memory as it is. */
    keep(&m.next_first, m.first);
    keep(&m.next_second, m.second);
    *out = m;
    if (method->averages) {
        round->memory = out;
        return ERR_NONE;
    }
    round->server_lr = c->options.server_lr;
    if (!m.first) return ERR_NONE;
    out->term = (struct lowrank_term){.c = c->options.server_lr * c->options.server_beta1,
                                      .B = m.first->factor[ADAPTER_FILE_B].f32,
                                      .A = m.first->factor[ADAPTER_FILE_A].f32,
                                      .r = m.first->rank};
    round->momentum = &out->term;
    return ERR_NONE;
out:
    method_memory_close(&m);
    return e;
}

void method_memory_close(struct method_memory *m)
{
    arena_close(&m->next_first.arena);
    arena_close(&m->next_second.arena);
    arena_close(&m->arena);
    *m = (struct method_memory){0};
}

err method_memory_put(struct method_state *file, size_t i, const char *module,
                      const struct method_memory *m)
{
    char name[LIMIT_TENSOR_NAME_BYTES];
    snprintf(name, sizeof name, "%s%s", first_prefix, module);
    TRY(method_state_put(file, 2 * i, name, &m->next_first));
    snprintf(name, sizeof name, "%s%s", second_prefix, module);
    return method_state_put(file, 2 * i + 1, name, &m->next_second);
}

/* ---- methods that add products ---- */

err method_memory_add(struct method_memory *m, const struct method_round *round,
                      const struct method *method, double error)
{
    const struct method_options *o = round->options;
    const struct lowrank_cut cut = {.error = error};
    struct method_change change = {0};
    struct lowrank_svd svd = {0};
    struct lowrank_term before = m->term;
    float *A, *B;
    uint32_t q;
    double tail;
    err e = ERR_NONE;
    before.c =
        o->server_beta1; /* m->term has server_lr as well, which is for the state's step only */
    TRY_OUT(e, method_change_open(&change, round, method, 1));
    if (m->first) method_change_add(&change, &before);
    TRY_OUT(e, lowrank_svd_open(&svd, &change.stack, 0));
    lowrank_cut(&q, &tail, &svd, &cut);
    m->next_first.module = (struct adapter_file_module){0};
    if (q == 0) goto out;
    TRY_OUT(e, method_result_take(&A, &m->next_first, ADAPTER_FILE_A, q, svd.n));
    TRY_OUT(e, method_result_take(&B, &m->next_first, ADAPTER_FILE_B, svd.m, q));
    e = lowrank_split(B, A, NULL, &svd, q, LOWRANK_BALANCED);
out:
    method_change_close(&change);
    lowrank_svd_close(&svd);
    return e;
}

/* ---- methods that average values ---- */

struct moments { /* (count) each; NULL: this optimizer has none */
    const float *first, *second;
    float *next_first, *next_second;
};

/* The moments of one factor before (NULL: none yet) and room for the next, in the factor's
 * shape. */
static err take(const float **was, float **next, struct method_result *result,
                const struct adapter_file_module *old, const struct adapter_file_factor *shape,
                enum adapter_file_role role)
{
    const struct adapter_file_factor *x = old ? &old->factor[role] : NULL;
    if (x && x->f32 && (x->rows != shape->rows || x->cols != shape->cols))
        return err_make(ERR_INPUT,
                        "the server optimizer's memory of module %s: shape (%u, %u), expected "
                        "(%u, %u)",
                        old->name, x->rows, x->cols, shape->rows, shape->cols);
    *was = x ? x->f32 : NULL;
    return method_result_take(next, result, role, shape->rows, shape->cols);
}

/* The last line is FedYogi: u moves towards d^2 by (1 - b) d^2, whatever the distance. */
static double second_moment(const struct method_options *o, double u, double d)
{
    double b = o->server_beta2, square = d * d;
    if (o->server == METHOD_SERVER_FEDADAGRAD) return u + square;
    if (o->server == METHOD_SERVER_FEDADAM) return b * u + (1 - b) * square;
    return u > square ? u - (1 - b) * square : u < square ? u + (1 - b) * square : u;
}

/* The step of one value with the pseudo-gradient d = aggregate - current, after its moments. */
static double advance(const struct moments *x, size_t i, double d, const struct method_options *o)
{
    double b = o->server_beta1, m = d, u = o->server_tau * o->server_tau;
    if (x->next_first) {
        m = x->first ? (double)x->first[i] : 0;
        m = o->server == METHOD_SERVER_FEDAVGM ? b * m + d : b * m + (1 - b) * d;
        x->next_first[i] = (float)m;
    }
    if (!x->next_second) return o->server_lr * m;
    u = second_moment(o, x->second ? (double)x->second[i] : u, d);
    x->next_second[i] = (float)u;
    return o->server_lr * m / (sqrt(u) + o->server_tau);
}

err method_step(float *out, const double *aggregate, const struct method_round *round,
                enum adapter_file_role role, size_t count)
{
    const struct method_options *o = round->options;
    const struct adapter_file_factor *now = &round->module->factor[role];
    struct method_memory *memory = round->memory;
    struct moments x = {0};
    if (!memory) {
        for (size_t i = 0; i < count; i++)
            out[i] = (float)aggregate[i];
        return ERR_NONE;
    }
    REQUIRE((size_t)now->rows * now->cols == count);
    if (o->server != METHOD_SERVER_FEDADAGRAD)
        TRY(take(&x.first, &x.next_first, &memory->next_first, memory->first, now, role));
    if (o->server != METHOD_SERVER_FEDAVGM)
        TRY(take(&x.second, &x.next_second, &memory->next_second, memory->second, now, role));
    for (size_t i = 0; i < count; i++) {
        double current = now->f32 ? (double)now->f32[i] : 0;
        out[i] = (float)(current + advance(&x, i, aggregate[i] - current, o));
    }
    return ERR_NONE;
}

/* out (d, r) = x T, or x (T o T). */
static void times(float *out, const float *x, const double *T, const size_t size[2], bool squared)
{
    size_t d = size[0], r = size[1];
    for (size_t i = 0; i < d; i++)
        for (size_t j = 0; j < r; j++) {
            double sum = 0;
            for (size_t h = 0; h < r; h++) {
                double t = T[h * r + j];
                sum += (double)x[i * r + h] * (squared ? t * t : t);
            }
            out[i * r + j] = (float)sum;
        }
}

err method_rebase(const struct method_round *round, const double *T)
{
    const struct adapter_file_module *state = round->module;
    const float *first = NULL, *second = NULL;
    struct method_memory *memory = round->memory;
    float *next;
    const size_t size[2] = {state->d_out, state->rank};
    if (!memory) return ERR_NONE;
    first = memory->next_first.module.factor[ADAPTER_FILE_B].f32;
    second = memory->next_second.module.factor[ADAPTER_FILE_B].f32;
    if (first) {
        TRY(method_result_take(&next, &memory->next_first, ADAPTER_FILE_B, state->d_out,
                               state->rank));
        times(next, first, T, size, false);
    }
    if (second) {
        TRY(method_result_take(&next, &memory->next_second, ADAPTER_FILE_B, state->d_out,
                               state->rank));
        times(next, second, T, size, true);
    }
    return ERR_NONE;
}
