#include "engine/member/member_adapter.h"

#include "agg/round/method.h"
#include "engine/member/member_kept.h"

#include <math.h>
#include <string.h>

static bool has(const struct adapter_file_module *m, enum adapter_file_role role)
{
    return m->factor[role].rows != 0;
}

bool member_round_adapts(const struct member_round *r, const char *module)
{
    for (size_t i = 0; i < r->adapts_count; i++)
        if (strcmp(r->adapts[i], module) == 0) return true;
    return r->adapts_count == 0;
}

/* The part of a module this member trains, and the rank by which the rest enlarges the frozen
 * carry. */
struct part {
    uint32_t rank, rest;
    bool small;
    double scale;
};

static struct part part_of(const struct adapter_file_module *m, const struct member_round *r,
                           const struct method *method)
{
    struct part p = {.scale = m->scale, .small = has(m, ADAPTER_FILE_R) && !r->gradient};
    if (method->fresh) {
        p.rank = member_round_adapts(r, m->name) ? r->rank : 0;
        p.scale = r->rslora ? r->alpha / sqrt(r->rank) : r->alpha / r->rank;
        return p;
    }
    p.rank = r->rank != 0 && r->rank < m->rank && !r->gradient ? r->rank : m->rank;
    if (!member_round_adapts(r, m->name)) p.rank = 0;
    if (p.small)
        p.rest = p.rank < m->rank ? m->rank : 0;
    else if (p.rank == 0 || !method->truncates)
        p.rest = m->rank - p.rank;
    return p;
}

static err module_spec(struct adapter_spec *out, const struct adapter_file_module *m,
                       const struct arch *arch, const struct member_round *r,
                       const struct method *method)
{
    uint32_t layer = 0, d_out = 0, d_in = 0;
    enum module_kind kind = MODULE_Q;
    TRY(model_module_parse(&layer, &kind, m->name));
    TRY(model_check_module(arch, kind));
    model_module_shape(&d_out, &d_in, arch, kind);
    if (layer >= arch->layers || m->d_out != d_out || m->d_in != d_in)
        return err_make(ERR_INPUT, "the state's module %s is (%u, %u), this base's is (%u, %u)",
                        m->name, m->d_out, m->d_in, d_out, d_in);
    struct part p = part_of(m, r, method);
    if (member_round_adapts(r, m->name)) {
        if (p.rank == 0 || p.rank > LIMIT_RANK)
            return err_make(ERR_INPUT, "the state has no factors to train for module %s", m->name);
        if (!isfinite(p.scale) || p.scale == 0)
            return err_make(ERR_INPUT, "module %s: alpha %g and rank %u make no scale", m->name,
                            r->alpha, p.rank);
    }
    *out = (struct adapter_spec){.layer = layer,
                                 .kind = kind,
                                 .rank = p.rank,
                                 .small_matrix = p.small,
                                 .scale = p.rank ? p.scale : 0,
                                 .carry_rank = m->carry_rank + p.rest};
    if (p.rest == 0 && m->carry_rank > 0) { /* no addition: the carry is used in place */
        out->carry_a = m->factor[ADAPTER_FILE_CARRY_A].f32;
        out->carry_b = m->factor[ADAPTER_FILE_CARRY_B].f32;
    }
    return ERR_NONE;
}

/* out (rows, out_cols) = the leading corner of in (.., in_cols); an absent factor is zero. */
static void copy_corner(float *out, uint32_t rows, uint32_t out_cols,
                        const struct adapter_file_factor *in)
{
    if (in->f32 == NULL) return;
    for (uint32_t i = 0; i < rows; i++)
        memcpy(out + (size_t)i * out_cols, in->f32 + (size_t)i * in->cols, out_cols * sizeof *out);
}

/* carry_B [:, at..] = s B (R with its leading (rank, rank) block zeroed), carry_A [at.., :] = A. */
static void rest_of_square(struct adapter_module *to, const struct adapter_file_module *m)
{
    const float *b = m->factor[ADAPTER_FILE_B].f32, *rr = m->factor[ADAPTER_FILE_R].f32;
    uint32_t whole = m->rank, at = m->carry_rank;
    memcpy(to->carry_a + (size_t)at * m->d_in, m->factor[ADAPTER_FILE_A].f32,
           (size_t)whole * m->d_in * sizeof *to->carry_a);
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < whole; j++) {
            double sum = 0;
            for (uint32_t k = 0; k < whole; k++)
                if (k >= to->rank || j >= to->rank)
                    sum += (double)b[(size_t)i * whole + k] * rr[(size_t)k * whole + j];
            to->carry_b[(size_t)i * to->carry_rank + at + j] = (float)(m->scale * sum);
        }
}

/* carry_B [:, at..] = s B[:, rank..], carry_A [at.., :] = A[rank..]. */
static void rest_of_pair(struct adapter_module *to, const struct adapter_file_module *m)
{
    const float *b = m->factor[ADAPTER_FILE_B].f32, *a = m->factor[ADAPTER_FILE_A].f32;
    uint32_t rest = m->rank - to->rank, at = m->carry_rank;
    if (a == NULL || b == NULL) return; /* an absent factor is zero */
    memcpy(to->carry_a + (size_t)at * m->d_in, a + (size_t)to->rank * m->d_in,
           (size_t)rest * m->d_in * sizeof *to->carry_a);
    for (uint32_t i = 0; i < m->d_out; i++)
        for (uint32_t j = 0; j < rest; j++)
            to->carry_b[(size_t)i * to->carry_rank + at + j] =
                (float)(m->scale * b[(size_t)i * m->rank + to->rank + j]);
}

static void fill_carry(struct adapter_module *to, const struct adapter_file_module *m)
{
    const struct adapter_file_factor *b = &m->factor[ADAPTER_FILE_CARRY_B];
    if (m->carry_rank == 0 || to->carry_borrowed) return;
    memcpy(to->carry_a, m->factor[ADAPTER_FILE_CARRY_A].f32,
           (size_t)m->carry_rank * m->d_in * sizeof *to->carry_a);
    for (uint32_t i = 0; i < m->d_out; i++)
        memcpy(to->carry_b + (size_t)i * to->carry_rank, b->f32 + (size_t)i * m->carry_rank,
               m->carry_rank * sizeof *to->carry_b);
}

static void fill_module(struct adapter_module *to, const struct adapter_file_module *m,
                        const struct member_round *r, const struct method *method)
{
    fill_carry(to, m);
    if (method->fresh && to->rank) {
        const struct method_fresh key = {.seed = r->seed,
                                         .run = r->run,
                                         .member = r->member,
                                         .module = m->name,
                                         .round = r->round};
        method_fresh_a(to->a, to->rank, to->d_in, &key);
    }
    if (method->fresh) return;
    copy_corner(to->a, to->rank, to->d_in, &m->factor[ADAPTER_FILE_A]);
    copy_corner(to->b, to->d_out, to->rank, &m->factor[ADAPTER_FILE_B]);
    if (to->r != NULL) copy_corner(to->r, to->rank, to->rank, &m->factor[ADAPTER_FILE_R]);
    struct part p = part_of(m, r, method);
    if (p.rest > 0) (p.small ? rest_of_square : rest_of_pair)(to, m);
}

static const struct adapter_file *file_of(const struct member_adapter *a)
{
    return a->shared ? &a->shared->file : &a->own.file;
}

static err build(struct member_adapter *a, const struct arch *arch, const struct member_round *r,
                 struct arena *arena)
{
    const struct adapter_file *state = file_of(a);
    const struct method *method = method_find(r->method);
    if (method == NULL)
        return err_make(ERR_INPUT, "this program does not know the method \"%.60s\"", r->method);
    if (r->evaluates) return adapter_open_file(&a->adapter, arch, state, 0);
    struct adapter_spec *spec = NULL;
    TRY(arena_take(&spec, arena, state->count, sizeof *spec));
    for (size_t i = 0; i < state->count; i++)
        TRY(module_spec(&spec[i], &state->module[i], arch, r, method));
    TRY(adapter_open(&a->adapter, arch, spec, state->count, r->trains | method->keeps));
    for (size_t i = 0; i < state->count; i++) {
        struct adapter_module *to = adapter_find(&a->adapter, spec[i].layer, spec[i].kind);
        REQUIRE(to != NULL);
        fill_module(to, &state->module[i], r, method);
    }
    return ERR_NONE;
}

err member_adapter_open(struct member_adapter *out, const struct arch *arch,
                        const struct member_round *r)
{
    struct member_adapter a = {.shared = r->state};
    struct arena arena = {0};
    err e;
    if (r->state == NULL) TRY_OUT(e, member_state_open(&a.own, r));
    TRY_OUT(e, build(&a, arch, r, &arena));
    TRY_OUT(e, member_kept_take(&a.adapter, r));
    *out = a;
    a = (struct member_adapter){0};
out:
    arena_close(&arena);
    member_adapter_close(&a);
    return e;
}

void member_adapter_close(struct member_adapter *a)
{
    adapter_close(&a->adapter);
    member_state_close(&a->own);
    *a = (struct member_adapter){0};
}

/* ---------------------------------------------------------------- the update */

static void set_factor(struct adapter_file_module *m, enum adapter_file_role role,
                       const float *value, uint32_t rows, uint32_t cols)
{
    m->factor[role] = (struct adapter_file_factor){.f32 = value, .rows = rows, .cols = cols};
}

/* The leading cols[0] of the cols[1] columns of `in`; `in` itself if all are wanted. */
static err leading(const float **out, struct arena *arena, const float *in, uint32_t rows,
                   const uint32_t cols[2] /* wanted, all */)
{
    float *copy = NULL;
    if (cols[0] == cols[1]) {
        *out = in;
        return ERR_NONE;
    }
    TRY(arena_take(&copy, arena, (size_t)rows * cols[0], sizeof *copy));
    const struct adapter_file_factor from = {.f32 = in, .rows = rows, .cols = cols[1]};
    copy_corner(copy, rows, cols[0], &from);
    *out = copy;
    return ERR_NONE;
}

/* The alpha of a module in the update file. With the rank in the file it must give exactly the
 * scale at which the module was trained. */
static double alpha_of(const struct adapter_file_module *state, const struct member_round *r,
                       const struct member_adapter *a, uint32_t rank)
{
    const struct method *method = method_find(r->method);
    if (method->fresh) return r->alpha;
    if (has(state, ADAPTER_FILE_R) || file_of(a)->meta.frozen[0] || rank == state->rank)
        return state->alpha;
    if (rank == r->rank) return r->alpha; /* exactly as the task gives it */
    return state->scale * (file_of(a)->meta.rslora ? sqrt(rank) : rank);
}

static err fill_update(struct adapter_file_module *out, const struct adapter_file_module *state,
                       const struct member_adapter *a, const struct member_round *r,
                       struct arena *arena)
{
    uint32_t layer = 0;
    enum module_kind kind = MODULE_Q;
    err e = model_module_parse(&layer, &kind, state->name);
    REQUIRE(!err_is(e)); /* member_adapter_open() has parsed the same name */
    const struct adapter_module *m = adapter_find(&a->adapter, layer, kind);
    uint32_t rank = out->rank && out->rank < m->rank ? out->rank : m->rank;
    const uint32_t cols[2] = {rank, m->rank};
    const float *b = NULL, *rr = NULL;
    TRY(leading(&b, arena, m->b, m->d_out, cols));
    if (m->r != NULL) TRY(leading(&rr, arena, m->r, rank, cols));
    *out = (struct adapter_file_module){.name = state->name,
                                        .d_out = m->d_out,
                                        .d_in = m->d_in,
                                        .rank = rank,
                                        .alpha = alpha_of(state, r, a, rank),
                                        .scale = m->scale};
    if (r->trains & ADAPTER_A) set_factor(out, ADAPTER_FILE_A, m->a, rank, m->d_in);
    if (r->trains & ADAPTER_B) set_factor(out, ADAPTER_FILE_B, b, m->d_out, rank);
    if (r->trains & ADAPTER_R) set_factor(out, ADAPTER_FILE_R, rr, rank, rank);
    return ERR_NONE;
}

err member_adapter_write(const char *path, const struct member_adapter *a,
                         const struct member_round *r, uint32_t rank)
{
    struct arena arena = {0};
    struct adapter_file_module *module = NULL;
    const struct adapter_file_meta *state = &file_of(a)->meta;
    uint32_t most = 0;
    size_t count = 0;
    err e;
    TRY_OUT(e, arena_take(&module, &arena, file_of(a)->count, sizeof *module));
    for (size_t i = 0; i < file_of(a)->count; i++) {
        if (!member_round_adapts(r, file_of(a)->module[i].name)) continue;
        module[count].rank = rank;
        TRY_OUT(e, fill_update(&module[count], &file_of(a)->module[i], a, r, &arena));
        if (module[count].rank > most) most = module[count].rank;
        count++;
    }
    if (count == 0) {
        e = err_make(ERR_INPUT, "the state has none of the modules that this member adapts");
        goto out;
    }
    bool fresh = method_find(r->method)->fresh, square = (r->trains & ADAPTER_R) != 0;
    const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                           .run = r->run,
                                           .round = r->round,
                                           .method = r->method,
                                           .base = r->base,
                                           .member = r->member,
                                           .frozen = r->frozen_digest,
                                           .rank = state->frozen[0] && !square ? state->rank : most,
                                           .rslora = fresh ? r->rslora : state->rslora,
                                           .alpha = square ? state->alpha : module[0].alpha};
    e = adapter_file_write(path, &meta, module, count, /*replace*/ true);
out:
    arena_close(&arena);
    return e;
}
