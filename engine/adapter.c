#include "engine/adapter.h"
#include "agg/adapter/adapter_file.h"
#include "base/rng.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void adapter_close(struct adapter *ad)
{
    arena_close(&ad->arena);
    *ad = (struct adapter){0};
}

/* By layer, then by kind: the order of the trained block and of adapter_find(). */
static int compare_modules(const void *a, const void *b)
{
    const struct adapter_module *x = a, *y = b;
    uint64_t i = (uint64_t)x->layer * MODULE_KINDS + x->kind;
    uint64_t j = (uint64_t)y->layer * MODULE_KINDS + y->kind;
    return i < j ? -1 : i > j;
}

/* Fills the modules with their shapes and sorts them. Nothing is allocated for their values yet:
 * the sizes are needed first. */
static err plan_modules(struct adapter *ad, const struct arch *a, const struct adapter_spec *spec)
{
    char name[LIMIT_TENSOR_NAME_BYTES];
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_spec *s = &spec[i];
        if (s->layer >= a->layers)
            return err_make(ERR_INPUT, "layer %u: the base has %u layers", s->layer, a->layers);
        model_module_name(name, s->layer, s->kind);
        TRY(model_check_module(a, s->kind));
        if (s->rank > LIMIT_RANK || s->carry_rank > LIMIT_DIMENSION)
            return err_make(ERR_INPUT, "%s: rank %u, carry rank %u: at most %u", name, s->rank,
                            s->carry_rank, LIMIT_RANK);
        struct adapter_module *m = &ad->module[i];
        *m = (struct adapter_module){.layer = s->layer, .kind = s->kind, .rank = s->rank};
        m->carry_rank = s->carry_rank;
        m->scale = (float)s->scale;
        m->carry_borrowed = s->carry_a && s->carry_b;
        if (m->carry_borrowed) { /* a carry is never written once it is filled */
            m->carry_a = (float *)(uintptr_t)s->carry_a;
            m->carry_b = (float *)(uintptr_t)s->carry_b;
        }
        m->r = s->small_matrix && s->rank
                   ? (float *)ad
                   : NULL; /* only marks that R exists; place_modules() sets it */
        model_module_shape(&m->d_out, &m->d_in, a, s->kind);
    }
    qsort(ad->module, ad->count, sizeof *ad->module, compare_modules);
    for (size_t i = 1; i < ad->count; i++)
        if (compare_modules(&ad->module[i - 1], &ad->module[i]) == 0) {
            model_module_name(name, ad->module[i].layer, ad->module[i].kind);
            return err_make(ERR_INPUT, "%s is adapted twice", name);
        }
    return ERR_NONE;
}

/* Gives each tensor its place in the trained block (count[0]) or the frozen block (count[1]); with
 * blocks NULL only counts. A factor is trained if its bit is in ad->trains; the carry is always
 * frozen. */
static void place_modules(struct adapter *ad, float *trained, float *frozen, size_t count[2])
{
    count[0] = count[1] = 0;
    for (size_t i = 0; i < ad->count; i++) {
        struct adapter_module *m = &ad->module[i];
        size_t sizes[5] = {(size_t)m->rank * m->d_in, (size_t)m->d_out * m->rank,
                           m->r ? (size_t)m->rank * m->rank : 0, (size_t)m->carry_rank * m->d_in,
                           (size_t)m->d_out * m->carry_rank};
        float **place[5] = {&m->a, &m->b, &m->r, &m->carry_a, &m->carry_b};
        for (int k = 0; k < (m->carry_borrowed ? 3 : 5); k++) {
            int is_frozen = k > 2 || !(ad->trains & (1u << k));
            float *block = is_frozen ? frozen : trained;
            if (block && (k != 2 || m->r)) *place[k] = block + count[is_frozen];
            count[is_frozen] += sizes[k];
        }
    }
}

/* All values are in two blocks of the arena, so closing the adapter is one call and the optimizer
 * can treat the trained values as one vector. */
err adapter_open(struct adapter *out, const struct arch *a, const struct adapter_spec *spec,
                 size_t count, unsigned trains)
{
    struct adapter ad = {.layers = a->layers, .trains = trains, .count = count};
    size_t counts[2];
    float *frozen = NULL;
    err e;
    TRY_OUT(e, arena_take(&ad.module, &ad.arena, count, sizeof *ad.module));
    TRY_OUT(e, plan_modules(&ad, a, spec));
    place_modules(&ad, NULL, NULL, counts);
    TRY_OUT(e, arena_take(&ad.value, &ad.arena, counts[0], sizeof(float)));
    TRY_OUT(e, arena_take(&frozen, &ad.arena, counts[1], sizeof(float)));
    ad.value_count = counts[0];
    place_modules(&ad, ad.value, frozen, counts);
    *out = ad;
out:
    if (err_is(e)) adapter_close(&ad);
    return e;
}

/* The modules of one kind in all layers. */
static err add_kind(struct adapter_spec *spec, size_t *count, const struct arch *a,
                    enum module_kind kind)
{
    TRY(model_check_module(a, kind));
    if (*count + a->layers > LIMIT_MODULES)
        return err_make(ERR_INPUT, "targets: %s: too many modules", model_module_short(kind));
    for (uint32_t layer = 0; layer < a->layers; layer++)
        spec[(*count)++] = (struct adapter_spec){.layer = layer, .kind = kind};
    return ERR_NONE;
}

/* "q" stands for "q_proj". */
static bool is_short_name(const char *word, enum module_kind kind)
{
    const char *name = model_module_short(kind);
    size_t stem = strlen(name) - strlen("_proj");
    return strcmp(word, name) == 0 || (strlen(word) == stem && strncmp(word, name, stem) == 0);
}

/* A target is a short name for all layers, the full name of one module, or PEFT's word for all
 * modules of the base. */
static err add_target(struct adapter_spec *spec, size_t *count, const struct arch *a,
                      const char *word)
{
    bool all = strcmp(word, "all-linear") == 0;
    for (int kind = 0; kind < MODULE_KINDS; kind++) {
        if (all && model_has_module(a, (enum module_kind)kind))
            TRY(add_kind(spec, count, a, (enum module_kind)kind));
        if (!all && is_short_name(word, (enum module_kind)kind))
            return add_kind(spec, count, a, (enum module_kind)kind);
    }
    if (all) return ERR_NONE;
    struct adapter_spec one = {0};
    err e = model_module_parse(&one.layer, &one.kind, word);
    if (err_is(e))
        return err_make(ERR_INPUT, "target %s: expected %s, all-linear or a full name", word,
                        a->fused ? "qkv, o, gate_up, down" : "q, k, v, o, gate, up, down");
    if (*count >= LIMIT_MODULES) return err_make(ERR_INPUT, "targets: too many modules");
    spec[(*count)++] = one;
    return ERR_NONE;
}

/* Each module has its own random generator, keyed by its name, so its initial A does not depend on
 * which other modules are adapted. Members that adapt different modules therefore start from the
 * same A where they overlap. */
err adapter_open_fresh(struct adapter *out, const struct arch *a, const struct adapter_fresh *f)
{
    if (f->rank < 1 || f->rank > LIMIT_RANK)
        return err_make(ERR_INPUT, "rank %u: expected 1 to %u", f->rank, LIMIT_RANK);
    struct arena arena = {0};
    struct adapter_spec *spec = NULL;
    char *words = NULL, *rest = NULL, *word;
    size_t count = 0;
    err e = err_sys(ENOMEM, "targets");
    if (!(words = strdup(f->targets))) goto out;
    TRY_OUT(e, arena_take(&spec, &arena, LIMIT_MODULES, sizeof *spec));
    for (word = strtok_r(words, ", ", &rest); word; word = strtok_r(NULL, ", ", &rest))
        TRY_OUT(e, add_target(spec, &count, a, word));
    if (!count) e = err_make(ERR_INPUT, "targets: no module is named");
    if (err_is(e)) goto out;
    for (size_t i = 0; i < count; i++) {
        spec[i].rank = f->rank;
        spec[i].scale = f->alpha / (f->rslora ? sqrt((double)f->rank) : (double)f->rank);
    }
    TRY_OUT(e, adapter_open(out, a, spec, count, ADAPTER_A | ADAPTER_B));
    for (size_t i = 0; i < out->count; i++) {
        struct adapter_module *m = &out->module[i];
        struct rng rng;
        char name[LIMIT_TENSOR_NAME_BYTES];
        model_module_name(name, m->layer, m->kind);
        rng_init(&rng, "lora_A", f->seed, name, f->index);
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 1.0 / sqrt((double)m->d_in));
    }
out:
    free(words);
    arena_close(&arena);
    return e;
}

/* A tensor that the module does not have is NULL on one of the sides. */
static void copy_factor(float *to, const struct adapter_file_factor *from)
{
    if (to && from->f32) memcpy(to, from->f32, (size_t)from->rows * from->cols * sizeof(float));
}

/* Shapes in the file must be those of the base, because the product B A is added to its weights. A
 * state without its frozen factors may lack a side; the side is then 0 and is not compared. */
static err spec_of_file(struct adapter_spec *spec, const struct arch *a,
                        const struct adapter_file *file)
{
    for (size_t i = 0; i < file->count; i++) {
        const struct adapter_file_module *m = &file->module[i];
        uint32_t d_out, d_in;
        err e = model_module_parse(&spec[i].layer, &spec[i].kind, m->name);
        if (!err_is(e)) e = model_check_module(a, spec[i].kind);
        if (err_is(e)) return err_in(e, "%s", file->path);
        model_module_shape(&d_out, &d_in, a, spec[i].kind);
        if (spec[i].layer >= a->layers || (m->d_out && m->d_out != d_out) ||
            (m->d_in && m->d_in != d_in))
            return err_make(ERR_INPUT, "%s: %s is (%u, %u); the base has %u layers, here (%u, %u)",
                            file->path, m->name, m->d_out, m->d_in, a->layers, d_out, d_in);
        spec[i].rank = m->rank;
        spec[i].carry_rank = m->carry_rank;
        spec[i].small_matrix = m->factor[ADAPTER_FILE_R].f32 != NULL;
        spec[i].scale = m->scale;
    }
    return ERR_NONE;
}

/* The modules are found again by name after adapter_open() has sorted them: the file may have
 * another order. */
err adapter_open_file(struct adapter *out, const struct arch *a, const struct adapter_file *file,
                      unsigned trains)
{
    struct arena arena = {0};
    struct adapter_spec *spec = NULL;
    err e;
    TRY_OUT(e, arena_take(&spec, &arena, file->count, sizeof *spec));
    TRY_OUT(e, spec_of_file(spec, a, file));
    for (size_t i = 0; i < file->count && !trains; i++)
        if (spec[i].small_matrix) trains = ADAPTER_R;
    TRY_OUT(e, adapter_open(out, a, spec, file->count, trains ? trains : ADAPTER_A | ADAPTER_B));
    for (size_t i = 0; i < file->count; i++) {
        const struct adapter_file_factor *f = file->module[i].factor;
        struct adapter_module *m = adapter_find(out, spec[i].layer, spec[i].kind);
        copy_factor(m->rank ? m->a : NULL, &f[ADAPTER_FILE_A]);
        copy_factor(m->rank ? m->b : NULL, &f[ADAPTER_FILE_B]);
        copy_factor(m->r, &f[ADAPTER_FILE_R]);
        copy_factor(m->carry_rank ? m->carry_a : NULL, &f[ADAPTER_FILE_CARRY_A]);
        copy_factor(m->carry_rank ? m->carry_b : NULL, &f[ADAPTER_FILE_CARRY_B]);
    }
out:
    arena_close(&arena);
    return e;
}

/* struct adapter_file is several kilobytes large, so it is not on the stack. */
err adapter_open_path(struct adapter *out, const struct arch *a, const char *path, unsigned trains)
{
    struct adapter_file *file = calloc(1, sizeof *file);
    if (!file) return err_sys(ENOMEM, "%s", path);
    err e = adapter_file_open(file, path);
    if (!err_is(e) && adapter_file_needs_frozen(file))
        e = err_make(ERR_INPUT, "%s: needs its file of frozen factors (%s)", path,
                     file->meta.frozen);
    if (!err_is(e)) e = adapter_open_file(out, a, file, trains);
    adapter_file_close(file);
    free(file);
    return e;
}

/* Modules are sorted, so the search is binary. */
struct adapter_module *adapter_find(const struct adapter *ad, uint32_t layer, enum module_kind kind)
{
    struct adapter_module key = {.layer = layer, .kind = kind};
    if (!ad->count) return NULL;
    return bsearch(&key, ad->module, ad->count, sizeof key, compare_modules);
}
