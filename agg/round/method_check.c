/* The checks of an update when it arrives; contract in method.h. */
#include "agg/round/method_options.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* Values of an update whose pages may stay in memory while it is checked. Dropping them is a system
 * call, which costs more than the check of a small module. */
enum { HELD_VALUES = 1 << 20 };

/* The sender does not know the path under which the coordinator stored its update, so the path in
 * an error is replaced by "update". */
static err as_update(err e, const char *path)
{
    size_t n = strlen(path);
    if (strncmp(e.text, path, n) == 0 && strncmp(e.text + n, ": ", 2) == 0)
        memmove(e.text, e.text + n + 2, strlen(e.text + n + 2) + 1);
    return err_in(e, "update");
}

static err check_same(const char *what, const char *is, const char *expected)
{
    if (strcmp(is, expected) == 0) return ERR_NONE;
    return err_make(ERR_INPUT, "%s is %.64s, expected %.64s", what, is[0] ? is : "not given",
                    expected[0] ? expected : "none");
}

static err check_meta(const struct method *method, const struct adapter_file *u,
                      const struct method_expect *x)
{
    const struct adapter_file_meta *is = &u->meta, *state = &x->state->meta;
    if (is->kind != ADAPTER_FILE_UPDATE)
        return err_make(ERR_INPUT, "fedlora.kind is not \"update\"");
    TRY(check_same("fedlora.run", is->run, state->run));
    TRY(check_same("fedlora.method", is->method, method->name));
    TRY(check_same("fedlora.base", is->base, state->base));
    TRY(check_same("fedlora.frozen", is->frozen, state->frozen));
    if (is->member[0] && x->member) TRY(check_same("fedlora.member", is->member, x->member));
    uint32_t behind = method_takes_late(method) ? x->behind : 0;
    if (is->round > x->round || is->round + behind < x->round)
        return err_make(ERR_STATE, "round %u, expected round %u", is->round, x->round);
    return ERR_NONE;
}

static err check_factor(const struct adapter_file_module *m, enum adapter_file_role role,
                        bool wanted, const uint32_t shape[2])
{
    const struct adapter_file_factor *f = &m->factor[role];
    char name[LIMIT_TENSOR_NAME_BYTES];
    adapter_file_tensor_name(name, m->name, role);
    if (wanted && !f->tensor) return err_make(ERR_INPUT, "tensor %s is missing", name);
    if (!wanted && f->tensor)
        return err_make(ERR_INPUT, "tensor %s must not be sent in this round", name);
    if (!wanted) return ERR_NONE;
    if (f->tensor->dtype != DTYPE_F32)
        return err_make(ERR_INPUT, "tensor %s: dtype %s, expected F32", name,
                        dtype_name(f->tensor->dtype));
    if (!f->f32) return err_make(ERR_INPUT, "tensor %s: its data is not aligned to 4 bytes", name);
    if (f->rows != shape[0] || f->cols != shape[1])
        return err_make(ERR_INPUT, "tensor %s: shape (%u, %u), expected (%u, %u)", name, f->rows,
                        f->cols, shape[0], shape[1]);
    return ERR_NONE;
}

/* The values that every module of an update must have. */
struct asked {
    const struct method *method;
    const struct method_expect *expect;
    struct method_task task;
};

/* The rank this member's factors of a module must have: at most the rank of the state's factors,
 * and where members may prune, the smaller rank that the update has. */
static uint32_t expected_rank(const struct asked *asked, const struct adapter_file_module *m,
                              const struct adapter_file_module *state)
{
    const struct method_expect *x = asked->expect;
    uint32_t own = x->rank ? x->rank : x->state->meta.rank;
    bool square = asked->task.trains & METHOD_R;
    if (asked->task.gradient || (!square && !asked->method->mixed_ranks && state->rank))
        return state->rank;
    if (state->rank && own > state->rank) own = state->rank;
    return asked->method->prunes && m->rank < own ? m->rank : own;
}

/* A member that trains a part of the state's pair uses the state's scale at every rank; a new pair
 * (the state has none) uses the member's own alpha. */
static err check_scale(const struct asked *asked, const struct adapter_file_module *m,
                       const struct adapter_file_module *state)
{
    double alpha = asked->expect->alpha;
    if (!state->rank && m->alpha != alpha)
        return err_make(ERR_INPUT, "module %s: alpha %g, expected %g", m->name, m->alpha, alpha);
    if (state->rank && fabs(m->scale - state->scale) > 1e-9 * state->scale)
        return err_make(ERR_INPUT, "module %s: rank %u at scale %g, expected the state's scale %g",
                        m->name, m->rank, m->scale, state->scale);
    return ERR_NONE;
}

static err check_module(const struct asked *asked, const struct adapter_file_module *m,
                        const struct adapter_file_module *state)
{
    unsigned factors = asked->task.trains;
    bool square = factors & METHOD_R;
    uint32_t r = expected_rank(asked, m, state);
    const uint32_t a[2] = {r, state->d_in}, b[2] = {state->d_out, r}, s[2] = {r, r};
    TRY(check_factor(m, ADAPTER_FILE_A, factors & METHOD_A, a));
    TRY(check_factor(m, ADAPTER_FILE_B, factors & METHOD_B, b));
    TRY(check_factor(m, ADAPTER_FILE_R, square, s));
    return square || asked->task.gradient ? ERR_NONE : check_scale(asked, m, state);
}

/* The member adapts this module. */
static bool adapts(const struct method_expect *x, const char *module)
{
    bool found = x->module == NULL;
    for (size_t i = 0; i < x->module_count && !found; i++)
        found = strcmp(x->module[i], module) == 0;
    return found;
}

static err check_values(const struct asked *asked, const struct adapter_file *u)
{
    const struct method_expect *x = asked->expect;
    for (size_t i = 0; i < u->count; i++) {
        const char *name = u->module[i].name;
        if (!adapter_file_find(x->state, name))
            return err_make(ERR_INPUT, "module %s is not adapted in this run", name);
        if (!adapts(x, name))
            return err_make(ERR_INPUT, "module %s is not adapted by this member", name);
    }
    for (size_t i = 0; i < x->state->count; i++) {
        const struct adapter_file_module *state = &x->state->module[i];
        const struct adapter_file_module *m = adapter_file_find(u, state->name);
        if (!m && !adapts(x, state->name)) continue;
        if (!m) return err_make(ERR_INPUT, "module %s is missing", state->name);
        TRY(check_module(asked, m, state));
    }
    /* Blocks of R have scale 1, and the server divides gradients by their scale. */
    bool scaled = !(asked->task.trains & METHOD_R) && !asked->task.gradient;
    if (scaled && u->meta.rslora != x->rslora)
        return err_make(ERR_INPUT, "rslora is %s, expected %s", u->meta.rslora ? "true" : "false",
                        x->rslora ? "true" : "false");
    size_t values = 0;
    for (size_t i = 0; i < u->count; i++) {
        TRY(adapter_file_check_finite(u, &u->module[i]));
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
            values += (size_t)u->module[i].factor[r].rows * u->module[i].factor[r].cols;
        if (values < HELD_VALUES) continue;
        values = 0;
        adapter_file_drop(u);
    }
    return ERR_NONE;
}

err method_check_update(const struct method *method, const char *path,
                        const struct method_expect *expect)
{
    struct adapter_file u = {0};
    struct asked asked = {.method = method, .expect = expect};
    struct method_options options;
    err e = method_options_read(&options, method, expect->state->meta.options);
    if (err_is(e)) return err_in(e, "%s", expect->state->path);
    method_task(&asked.task, method, &options, expect->round);
    e = adapter_file_map(&u, path);
    if (err_is(e)) return as_update(e, path);
    e = check_meta(method, &u, expect);
    if (!err_is(e)) e = check_values(&asked, &u);
    adapter_file_close(&u);
    return err_is(e) ? as_update(e, path) : e;
}
