#include "agg/round/method.h"

#include "agg/algebra/basis.h"
#include "agg/round/method_options.h"
#include "agg/round/method_setup.h"
#include "agg/round/method_state.h"
#include "base/digest.h"
#include "base/rng.h"

#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint32_t method_setup_rounds(const struct method_options *options)
{
    return options->basis == METHOD_BASIS_GRADIENT ? METHOD_SETUP_ROUNDS : 0;
}

/* With A and B both sent and no carry, an update is a whole adapter, so its meaning does not depend
 * on the state it started from. `fresh` and `frozen` methods start from factors that never
 * change. */
bool method_takes_late(const struct method *method)
{
    bool whole = method->factors(1) == (METHOD_A | METHOD_B) && !method->carries;
    return method->fresh || method->frozen || whole;
}

void method_task(struct method_task *out, const struct method *method,
                 const struct method_options *options, uint32_t round)
{
    uint32_t setup = method_setup_rounds(options);
    REQUIRE(round >= 1);
    *out = (struct method_task){.gradient = round <= setup};
    /* Round 1 has B = 0, so only dL/dB is not zero; round 2 has A = 0 and only dL/dA is not. */
    if (out->gradient)
        out->trains = round == 1 ? METHOD_B : METHOD_A;
    else
        out->trains = method->factors(round - setup);
}

void method_fresh_a(float *out, uint32_t r, uint32_t d_in, const struct method_fresh *key)
{
    char label[2 * LIMIT_NAME_BYTES + LIMIT_TENSOR_NAME_BYTES + 8];
    struct rng rng;
    snprintf(label, sizeof label, "%.*s/%.*s/%.*s", LIMIT_NAME_BYTES, key->run, LIMIT_NAME_BYTES,
             key->member, LIMIT_TENSOR_NAME_BYTES, key->module);
    rng_init(&rng, "lora_A", key->seed, label, key->round);
    rng_fill_uniform(&rng, out, (size_t)r * d_in, 1 / sqrt(d_in));
}

/* The method trains the small R between two frozen factors. */
static bool square(const struct method *method)
{
    return method->factors(1) & METHOD_R;
}

/* ---- the start of a run ---- */

/* The run's modules sorted by name, and the files that a start may read. */
struct opening {
    struct method_module *module;
    size_t count;
    struct adapter_file initial, frozen;
    bool has_initial, has_frozen;
    struct method_options options;
    struct arena arena;
};

static void opening_close(struct opening *o)
{
    adapter_file_close(&o->initial);
    adapter_file_close(&o->frozen);
    arena_close(&o->arena);
    *o = (struct opening){0};
}

static int module_by_name(const void *a, const void *b)
{
    return strcmp(((const struct method_module *)a)->name, ((const struct method_module *)b)->name);
}

static err check_modules(const struct opening *o)
{
    for (size_t i = 0; i < o->count; i++) {
        const struct method_module *m = &o->module[i];
        size_t n = strlen(m->name);
        /* 40 bytes are left for the prefix and suffix of a tensor's name. */
        if (n == 0 || n + 40 > LIMIT_TENSOR_NAME_BYTES)
            return err_make(ERR_INPUT, "module \"%.100s\": expected a name of 1 to %d bytes",
                            m->name, LIMIT_TENSOR_NAME_BYTES - 40);
        if (m->d_out < 1 || m->d_in < 1 || m->d_out > LIMIT_DIMENSION || m->d_in > LIMIT_DIMENSION)
            return err_make(ERR_INPUT, "module %s: shape (%u, %u), expected 1 to %d each", m->name,
                            m->d_out, m->d_in, LIMIT_DIMENSION);
        if (i && strcmp(o->module[i - 1].name, m->name) == 0)
            return err_make(ERR_INPUT, "module %s is given twice", m->name);
    }
    return ERR_NONE;
}

static err check_values(const struct method *method, const struct method_start *s)
{
    struct digest digest;
    err e = digest_parse(&digest, s->base ? s->base : "");
    if (err_is(e)) return err_in(e, "base digest");
    if (!s->run || !s->run[0]) return err_make(ERR_INPUT, "the run has no name");
    if (s->rank < 1 || s->rank > LIMIT_RANK)
        return err_make(ERR_INPUT, "rank %u, expected 1 to %d", s->rank, LIMIT_RANK);
    if (!(s->alpha > 0) || !isfinite(s->alpha))
        return err_make(ERR_INPUT, "alpha %g, expected a number above zero", s->alpha);
    if (s->module_count < 1 || s->module_count > LIMIT_MODULES)
        return err_make(ERR_INPUT, "%zu modules to adapt, expected 1 to %d", s->module_count,
                        LIMIT_MODULES);
    if (method->frozen && s->initial_path)
        return err_make(ERR_INPUT, "%s starts from zero and accepts no initial adapter",
                        method->name);
    return ERR_NONE;
}

/* `file` has every module of the run (with `partly`: any of them) in the run's shape, and no other
 * module. A shape of 0 is not known from the factors that the file has, so it is not compared. */
static err check_shapes(const struct opening *o, const struct adapter_file *file, bool partly)
{
    for (size_t i = 0; i < o->count; i++) {
        const struct method_module *m = &o->module[i];
        const struct adapter_file_module *x = adapter_file_find(file, m->name);
        if (!x && partly) continue;
        if (!x) return err_make(ERR_INPUT, "%s: module %s is missing", file->path, m->name);
        if ((x->d_out && x->d_out != m->d_out) || (x->d_in && x->d_in != m->d_in))
            return err_make(ERR_INPUT, "%s: module %s: shape (%u, %u), expected (%u, %u)",
                            file->path, m->name, x->d_out, x->d_in, m->d_out, m->d_in);
    }
    for (size_t i = 0; i < file->count; i++) {
        const struct method_module key = {.name = file->module[i].name};
        if (!bsearch(&key, o->module, o->count, sizeof key, module_by_name))
            return err_make(ERR_INPUT, "%s: module %s is not adapted in this run", file->path,
                            key.name);
    }
    return ERR_NONE;
}

static err open_frozen(struct opening *o, const struct method *method, const struct method_start *s)
{
    if (!s->frozen_path || !s->frozen_digest)
        return err_make(ERR_INPUT, "the file of frozen factors is not given");
    TRY(adapter_file_map(&o->frozen, s->frozen_path));
    o->has_frozen = true;
    const struct adapter_file_meta *meta = &o->frozen.meta;
    if (meta->kind != ADAPTER_FILE_FROZEN)
        return err_make(ERR_INPUT, "%s: expected a file of frozen factors", s->frozen_path);
    if (meta->base[0] && strcmp(meta->base, s->base) != 0)
        return err_make(ERR_INPUT, "%s: made from base %.16s..., expected %.16s...", s->frozen_path,
                        meta->base, s->base);
    for (size_t i = 0; i < o->frozen.count; i++) {
        const struct adapter_file_module *m = &o->frozen.module[i];
        if (m->rank > s->rank)
            return err_make(ERR_INPUT, "%s: module %s has rank %u, expected at most the run's %u",
                            s->frozen_path, m->name, m->rank, s->rank);
        if (square(method) && !m->factor[ADAPTER_FILE_B].tensor)
            return err_make(ERR_INPUT, "%s: module %s has no lora_B, which %s needs",
                            s->frozen_path, m->name, method->name);
    }
    return check_shapes(o, &o->frozen, /*partly*/ false);
}

static err open_initial(struct opening *o, const struct method *method,
                        const struct method_start *s)
{
    TRY(adapter_file_open(&o->initial, s->initial_path));
    o->has_initial = true;
    TRY(check_shapes(o, &o->initial, method->carries));
    for (size_t i = 0; i < o->initial.count && !method->carries; i++) {
        const struct adapter_file_module *m = &o->initial.module[i];
        if (m->carry_rank || m->rank != s->rank || m->alpha != s->alpha ||
            o->initial.meta.rslora != s->rslora)
            return err_make(
                ERR_INPUT,
                "%s: module %s: %s can start only from a plain adapter of rank %u, alpha %g",
                s->initial_path, m->name, method->name, s->rank, s->alpha);
    }
    if (adapter_file_needs_frozen(&o->initial))
        return err_make(ERR_INPUT, "%s: this state cannot be used without its frozen factors",
                        s->initial_path);
    return ERR_NONE;
}

static err opening_open(struct opening *out, const struct method *method,
                        const struct method_start *s, bool want_frozen)
{
    struct opening o = {.count = s->module_count};
    err e = ERR_NONE;
    TRY(check_values(method, s));
    TRY(method_options_parse(&o.options, method, s->option, s->option_count));
    TRY_OUT(e, arena_take(&o.module, &o.arena, o.count, sizeof *o.module));
    memcpy(o.module, s->module, o.count * sizeof *o.module);
    qsort(o.module, o.count, sizeof *o.module, module_by_name);
    TRY_OUT(e, check_modules(&o));
    bool found = o.options.basis == METHOD_BASIS_GRADIENT;
    if (found && s->frozen_path) {
        e = err_make(ERR_INPUT,
                     "basis=gradient computes the frozen factors during the run; expected no file "
                     "of frozen factors");
        goto out;
    }
    if (want_frozen && !found) TRY_OUT(e, open_frozen(&o, method, s));
    if (s->initial_path) TRY_OUT(e, open_initial(&o, method, s));
    *out = o;
    return ERR_NONE;
out:
    opening_close(&o);
    return e;
}

static int threads_of(int asked)
{
    return asked > 0 ? asked : omp_get_max_threads();
}

/* Puts one module's start into the state. With basis=gradient that is the start of the first
 * gradient round, because the method's own start needs the factors those rounds find. */
static err start_module(struct method_state *state, const struct method *method,
                        const struct method_start *start, const struct opening *o, size_t i)
{
    struct method_result result = {0};
    struct method_beginning b = {.start = start, .options = &o->options, .module = &o->module[i]};
    if (o->has_initial) b.initial = adapter_file_find(&o->initial, b.module->name);
    if (o->has_frozen) b.frozen = adapter_file_find(&o->frozen, b.module->name);
    err e = method_setup_rounds(&o->options) ? method_setup_start(&result, &b)
                                             : method->start(&result, &b);
    if (!err_is(e)) e = method_state_put(state, i, b.module->name, &result);
    if (err_is(e)) e = err_in(e, "module %s", b.module->name);
    arena_close(&result.arena);
    return e;
}

err method_start(const struct method *method, const char *path, const struct method_start *start)
{
    struct opening o = {0};
    struct method_state state = {0};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_STATE,
                                     .run = start->run,
                                     .method = method->name,
                                     .base = start->base,
                                     .round = 1,
                                     .rank = start->rank,
                                     .alpha = start->alpha,
                                     .rslora = start->rslora};
    err e = ERR_NONE, failed = ERR_NONE;
    TRY(opening_open(&o, method, start, method->frozen));
    TRY_OUT(e, method_state_open(&state, path, o.count));
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads_of(start->threads))
    for (size_t i = 0; i < o.count; i++) {
        err one = start_module(&state, method, start, &o, i);
#pragma omp critical(method_start)
        if (err_is(one)) failed = one;
    }
    lowrank_end(before);
    TRY_OUT(e, failed);
    if (o.has_frozen) meta.frozen = start->frozen_digest;
    if (square(method)) { /* B R A has scale 1; alpha = rank gives it, without rsLoRA */
        meta.alpha = start->rank;
        meta.rslora = false;
    }
    TRY_OUT(e, method_options_text(&meta.options, &o.options, &o.arena));
    TRY_OUT(e, method_state_modules(&meta.modules, o.module, o.count, &o.arena));
    e = method_state_commit(&state, path, &meta);
out:
    method_state_close(&state);
    opening_close(&o);
    return e;
}

/* ---- frozen factors ---- */

static err frozen_module(struct method_state *state, const struct method_start *start,
                         const struct method_module *m, size_t i, bool with_b)
{
    struct method_result out = {0};
    struct basis_shape shape = {.d_out = m->d_out, .d_in = m->d_in, .r = start->rank};
    struct basis_key key = {.seed = start->seed, .label = m->name};
    float *A, *B;
    err e = ERR_NONE;
    /* A module smaller than the run's rank has as many orthonormal vectors as fit. */
    if (shape.r > m->d_out) shape.r = m->d_out;
    if (shape.r > m->d_in) shape.r = m->d_in;
    out.module.rank = shape.r;
    TRY_OUT(e, method_result_take(&A, &out, ADAPTER_FILE_A, shape.r, m->d_in));
    TRY_OUT(e, method_result_take(&B, &out, ADAPTER_FILE_B, m->d_out, shape.r));
    TRY_OUT(e, basis_seeded(A, B, &shape, &key));
    if (!with_b) out.module.factor[ADAPTER_FILE_B] = (struct adapter_file_factor){0};
    e = method_state_put(state, i, m->name, &out);
out:
    if (err_is(e)) e = err_in(e, "module %s", m->name);
    arena_close(&out.arena);
    return e;
}

err method_make_frozen(const struct method *method, const char *path,
                       const struct method_start *start)
{
    struct opening o = {0};
    struct method_state state = {0};
    const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_FROZEN,
                                           .base = start->base,
                                           .rank = start->rank,
                                           .alpha = start->rank};
    err e = ERR_NONE, failed = ERR_NONE;
    TRY(opening_open(&o, method, start, /*want_frozen*/ false));
    if (o.options.basis != METHOD_BASIS_SEEDED) {
        e = err_make(ERR_INPUT, "frozen factors are drawn only with basis=seeded; basis=weights "
                                "needs a file made by `fedlora basis`");
        goto out;
    }
    TRY_OUT(e, method_state_open(&state, path, o.count));
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads_of(start->threads))
    for (size_t i = 0; i < o.count; i++) {
        err one = frozen_module(&state, start, &o.module[i], i, square(method));
#pragma omp critical(method_make_frozen)
        if (err_is(one)) failed = one;
    }
    lowrank_end(before);
    TRY_OUT(e, failed);
    e = method_state_commit(&state, path, &meta);
out:
    method_state_close(&state);
    opening_close(&o);
    return e;
}
