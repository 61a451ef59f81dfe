#include "agg/adapter/adapter_file.h"

#include "agg/adapter/adapter_config.h"
#include "agg/adapter/adapter_file_parts.h"
#include "agg/adapter/adapter_names.h"
#include "agg/adapter/adapter_saved.h"
#include "base/json.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The longest text has a name of LIMIT_TENSOR_NAME_BYTES for each of LIMIT_MODULES. */
enum { METADATA_BYTES_MAX = 1 << 21 };

int adapter_file_by_name(const void *a, const void *b)
{
    return strcmp(((const struct adapter_file_module *)a)->name,
                  ((const struct adapter_file_module *)b)->name);
}

const struct adapter_file_module *adapter_file_find(const struct adapter_file *file,
                                                    const char *module)
{
    struct adapter_file_module key = {.name = module};
    if (!file->count) return NULL;
    return bsearch(&key, file->module, file->count, sizeof key, adapter_file_by_name);
}

/* ---- shapes ---- */

/* *size is the expected size of this side. The first factor that has the side sets it. */
static err side(uint32_t *size, uint32_t is, const char *what, const struct adapter_file_factor *x)
{
    if (*size == 0) *size = is;
    if (*size == is) return ERR_NONE;
    return err_make(ERR_INPUT, "tensor %s: shape (%u, %u), expected %s %u", x->tensor->name,
                    x->rows, x->cols, what, *size);
}

static err module_shapes(struct adapter_file_module *m)
{
    const struct adapter_file_factor *x = m->factor;
    static const enum adapter_file_role pair[2][2] = {{ADAPTER_FILE_A, ADAPTER_FILE_B},
                                                      {ADAPTER_FILE_CARRY_A, ADAPTER_FILE_CARRY_B}};
    for (int p = 0; p < 2; p++) {
        const struct adapter_file_factor *a = &x[pair[p][0]], *b = &x[pair[p][1]];
        uint32_t *rank = p == 0 ? &m->rank : &m->carry_rank;
        if (a->tensor) {
            TRY(side(rank, a->rows, "rank", a));
            TRY(side(&m->d_in, a->cols, "d_in", a));
        }
        if (b->tensor) {
            TRY(side(rank, b->cols, "rank", b));
            TRY(side(&m->d_out, b->rows, "d_out", b));
        }
    }
    const struct adapter_file_factor *r = &x[ADAPTER_FILE_R];
    if (r->tensor) {
        TRY(side(&m->rank, r->rows, "rank", r));
        TRY(side(&m->rank, r->cols, "rank", r));
    }
    if (m->magnitude.tensor) TRY(side(&m->d_out, m->magnitude.rows, "d_out", &m->magnitude));
    if (m->rank > LIMIT_RANK)
        return err_make(ERR_INPUT, "module %s: rank %u, expected at most %d", m->name, m->rank,
                        LIMIT_RANK);
    return ERR_NONE;
}

/* use_dora and the magnitudes must agree, or the adapter would be another function. */
static err module_dora(const struct adapter_file_module *m, const struct adapter_config *config)
{
    if (m->magnitude.tensor && (!config->dora || m->embedding || !m->rank))
        return err_make(ERR_INPUT, "tensor %s: %s", m->magnitude.tensor->name,
                        m->embedding ? "DoRA of an embedding is not supported"
                        : m->rank    ? "use_dora is not set in adapter_config.json"
                                     : "the module has no lora_A and lora_B");
    if (config->dora && m->rank && !m->magnitude.tensor && !m->embedding)
        return err_make(ERR_INPUT,
                        "tensor " ADAPTER_FILE_PREFIX
                        "%s.lora_magnitude_vector is missing (use_dora)",
                        m->name);
    return ERR_NONE;
}

static err missing(const struct adapter_file_module *m, enum adapter_file_role role)
{
    char name[LIMIT_TENSOR_NAME_BYTES];
    adapter_file_tensor_name(name, m->name, role);
    return err_make(ERR_INPUT, "tensor %s is missing", name);
}

/* The factors that may be present without their partner depend on the kind of file. */
static err module_pairs(const struct adapter_file_module *m, const struct adapter_file_meta *meta)
{
    bool has[ADAPTER_FILE_ROLES];
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        has[r] = m->factor[r].tensor != NULL;
    bool carry = has[ADAPTER_FILE_CARRY_A] || has[ADAPTER_FILE_CARRY_B];
    if (carry && meta->kind != ADAPTER_FILE_STATE)
        return err_make(ERR_INPUT, "module %s has a carry, which is expected only in a state",
                        m->name);
    if (has[ADAPTER_FILE_R] &&
        (meta->kind == ADAPTER_FILE_PEFT || meta->kind == ADAPTER_FILE_FROZEN))
        return err_make(ERR_INPUT,
                        "module %s has lora_R, which is expected only in a state or update",
                        m->name);
    if (has[ADAPTER_FILE_CARRY_A] && !has[ADAPTER_FILE_CARRY_B])
        return missing(m, ADAPTER_FILE_CARRY_B);
    if (has[ADAPTER_FILE_CARRY_B] && !has[ADAPTER_FILE_CARRY_A])
        return missing(m, ADAPTER_FILE_CARRY_A);
    bool alone = meta->kind == ADAPTER_FILE_UPDATE || meta->kind == ADAPTER_FILE_MEMORY ||
                 (meta->kind == ADAPTER_FILE_STATE && meta->frozen[0]);
    if (alone) return ERR_NONE;
    bool any = has[ADAPTER_FILE_A] || has[ADAPTER_FILE_B] || has[ADAPTER_FILE_R];
    if (any && !has[ADAPTER_FILE_A]) return missing(m, ADAPTER_FILE_A);
    bool half = meta->kind == ADAPTER_FILE_FROZEN; /* the frozen factor may be A alone */
    if (any && !has[ADAPTER_FILE_B] && !half) return missing(m, ADAPTER_FILE_B);
    return ERR_NONE;
}

/* ---- scales ---- */

struct scales {
    const struct adapter_config *config;  /* of a PEFT directory, or NULL */
    struct adapter_config_pattern alphas; /* else fedlora.alpha_pattern */
};

static err module_scale(struct adapter_file_module *m, const struct adapter_file_meta *meta,
                        const struct scales *s)
{
    if (m->rank == 0) return s->config ? module_dora(m, s->config) : ERR_NONE;
    char name[LIMIT_TENSOR_NAME_BYTES];
    TRY(adapter_name_rooted(name, m->name, s->config ? meta->root : NULL));
    if (s->config) {
        double r;
        TRY(module_dora(m, s->config));
        TRY(adapter_config_pattern_find(&r, &s->config->rank, name, s->config->r));
        if (r != m->rank)
            return err_make(ERR_INPUT, "tensor %s: rank %u, expected %g by adapter_config.json",
                            m->factor[ADAPTER_FILE_A].tensor->name, m->rank, r);
    }
    const struct adapter_config_pattern *alphas = s->config ? &s->config->alphas : &s->alphas;
    TRY(adapter_config_pattern_find(&m->alpha, alphas, name, meta->alpha));
    double rank = m->rank;
    bool square = m->factor[ADAPTER_FILE_R].tensor != NULL;
    if (meta->kind == ADAPTER_FILE_FROZEN || meta->kind == ADAPTER_FILE_MEMORY ||
        (square && meta->kind == ADAPTER_FILE_UPDATE)) {
        m->alpha = m->rank; /* B R A: the scale of the state, 1 */
    } else if ((square || meta->frozen[0]) && meta->rank) {
        /* the run's rank, also if the module is smaller or the member trains a part of it */
        rank = meta->rank;
    }
    if (!(m->alpha > 0) || !isfinite(m->alpha))
        return err_make(ERR_INPUT, "module %s: alpha is %s, expected a number above zero", m->name,
                        m->alpha == 0 ? "missing" : "not usable");
    m->scale = m->alpha / (meta->rslora ? sqrt(rank) : rank);
    return ERR_NONE;
}

/* ---- metadata ---- */

static const char *text_of(const struct safetensors *st, const char *key)
{
    const char *text = safetensors_metadata(st, key);
    return text ? text : "";
}

static err kind_of(enum adapter_file_kind *out, const char *text)
{
    static const char *const names[] = {[ADAPTER_FILE_STATE] = "state",
                                        [ADAPTER_FILE_UPDATE] = "update",
                                        [ADAPTER_FILE_FROZEN] = "frozen",
                                        [ADAPTER_FILE_MEMORY] = "memory"};
    if (!text[0]) {
        *out = ADAPTER_FILE_STATE;
        return ERR_NONE;
    }
    for (int k = ADAPTER_FILE_STATE; k <= ADAPTER_FILE_MEMORY; k++) {
        if (strcmp(text, names[k]) != 0) continue;
        *out = (enum adapter_file_kind)k;
        return ERR_NONE;
    }
    return err_make(ERR_INPUT,
                    "fedlora.kind is \"%.40s\", expected state, update, frozen or memory", text);
}

static err meta_read(struct adapter_file_meta *meta, const struct safetensors *st)
{
    int64_t whole = 0;
    const char *text;
    TRY(kind_of(&meta->kind, text_of(st, "fedlora.kind")));
    meta->run = text_of(st, "fedlora.run");
    meta->method = text_of(st, "fedlora.method");
    meta->base = text_of(st, "fedlora.base");
    meta->frozen = text_of(st, "fedlora.frozen");
    meta->member = text_of(st, "fedlora.member");
    meta->alpha_pattern = text_of(st, "fedlora.alpha_pattern");
    meta->modules = text_of(st, "fedlora.modules");
    meta->dropped = text_of(st, "fedlora.dropped");
    meta->options = text_of(st, "fedlora.options");
    meta->memory = text_of(st, "fedlora.memory");
    meta->target_modules = meta->base_path = meta->bias = meta->modules_to_save = "";
    meta->task_type = "CAUSAL_LM";
    if ((text = safetensors_metadata(st, "fedlora.round"))) {
        err e = text_parse_int(&whole, text, 0, LIMIT_ROUNDS + 1);
        if (err_is(e)) return err_in(e, "fedlora.round");
        meta->round = (uint32_t)whole;
    }
    if ((text = safetensors_metadata(st, "fedlora.rank"))) {
        err e = text_parse_int(&whole, text, 1, LIMIT_RANK);
        if (err_is(e)) return err_in(e, "fedlora.rank");
        meta->rank = (uint32_t)whole;
    }
    if ((text = safetensors_metadata(st, "fedlora.alpha"))) {
        err e = text_parse_num(&meta->alpha, text, 0, 1e12);
        if (err_is(e)) return err_in(e, "fedlora.alpha");
        if (!(meta->alpha > 0))
            return err_make(ERR_INPUT, "fedlora.alpha is %s, expected > 0", text);
    }
    text = text_of(st, "fedlora.rslora");
    meta->rslora = strcmp(text, "true") == 0;
    if (text[0] && !meta->rslora && strcmp(text, "false") != 0)
        return err_make(ERR_INPUT, "fedlora.rslora is \"%.20s\", expected true or false", text);
    return ERR_NONE;
}

static err meta_of_config(struct adapter_file *f, const struct adapter_config *c)
{
    struct adapter_file_meta *meta = &f->meta;
    meta->kind = ADAPTER_FILE_PEFT;
    meta->run = meta->method = meta->base = meta->frozen = meta->member = "";
    meta->modules = meta->dropped = meta->options = meta->memory = "";
    meta->rank = c->r;
    meta->alpha = c->alpha;
    meta->rslora = c->rslora;
    meta->fan_in_fan_out = c->fan_in_fan_out;
    TRY(arena_text(&meta->alpha_pattern, &f->arena, c->alpha_text, strlen(c->alpha_text)));
    TRY(arena_text(&meta->task_type, &f->arena, c->task_type, strlen(c->task_type)));
    TRY(arena_text(&meta->bias, &f->arena, c->bias, strlen(c->bias)));
    TRY(arena_text(&meta->modules_to_save, &f->arena, c->save_text, strlen(c->save_text)));
    TRY(arena_text(&meta->base_path, &f->arena, c->base_path, strlen(c->base_path)));
    return arena_text(&meta->target_modules, &f->arena, c->target_modules,
                      strlen(c->target_modules));
}

/* ---- opening ---- */

static err modules_read(struct adapter_file *f, const struct adapter_config *config)
{
    struct scales scales = {.config = config};
    json_t *pattern = NULL;
    const char *text = f->meta.alpha_pattern;
    if (!config && text[0]) {
        TRY(json_parse(&pattern, text, strlen(text), "fedlora.alpha_pattern"));
    }
    err e = ERR_NONE;
    if (pattern)
        TRY_OUT(e, adapter_config_pattern_read(&scales.alphas, pattern, false,
                                               "fedlora.alpha_pattern", &f->arena));
    TRY_OUT(e, adapter_file_gather(f, config));
    for (size_t i = 0; i < f->count; i++) {
        TRY_OUT(e, module_shapes(&f->module[i]));
        TRY_OUT(e, module_pairs(&f->module[i], &f->meta));
        TRY_OUT(e, module_scale(&f->module[i], &f->meta, &scales));
    }
    if (f->count == 0 && f->meta.kind != ADAPTER_FILE_STATE)
        e = err_make(ERR_INPUT, "has no adapted module");
out:
    json_decref(pattern);
    adapter_config_pattern_close(&scales.alphas);
    return e;
}

static err directory_read(struct adapter_file *f, const char *path)
{
    char name[LIMIT_PATH_BYTES];
    struct adapter_config config = {0};
    TRY(file_join(name, sizeof name, path, "adapter_config.json"));
    if (!file_exists(name))
        return err_make(ERR_INPUT, "%s: no PEFT adapter: adapter_config.json is missing", path);
    TRY(adapter_config_open(&config, name));
    err e = ERR_NONE;
    TRY_OUT(e, file_join(name, sizeof name, path, "adapter_model.safetensors"));
    if (!file_exists(name)) {
        TRY_OUT(e, file_join(name, sizeof name, path, "adapter_model.bin"));
        e = err_make(ERR_INPUT, "%s: no PEFT adapter: adapter_model.safetensors is missing%s", path,
                     file_exists(name) ? "; reading adapter_model.bin can run code, so convert "
                                         "it in its directory: python3 -c \"import torch, "
                                         "safetensors.torch as s; "
                                         "s.save_file(torch.load('adapter_model.bin', 'cpu', "
                                         "weights_only=True), 'adapter_model.safetensors')\""
                                       : "");
        goto out;
    }
    TRY_OUT(e, safetensors_open(&f->tensors, name));
    TRY_OUT(e, meta_of_config(f, &config));
    e = modules_read(f, &config);
    if (err_is(e)) e = err_in(e, "%s", name);
out:
    adapter_config_close(&config);
    return e;
}

/* Some of the texts are JSON, which takes up to 75 times as much memory when it is parsed. */
static err check_metadata(const struct safetensors *st)
{
    for (size_t i = 0; i < st->metadata_count; i++)
        if (strlen(st->metadata[i].value) > METADATA_BYTES_MAX)
            return err_make(ERR_INPUT, "metadata %.80s: %zu bytes, expected at most %d",
                            st->metadata[i].key, strlen(st->metadata[i].value), METADATA_BYTES_MAX);
    return ERR_NONE;
}

/* The file of a PEFT adapter says neither rank nor scale, which are in the configuration beside
 * it. */
static err check_alone(const struct safetensors *st, const char *path)
{
    const char *slash = strrchr(path, '/'), *name = slash ? slash + 1 : path;
    if (safetensors_metadata(st, "fedlora.kind") || strcmp(name, "adapter_model.safetensors") != 0)
        return ERR_NONE;
    return err_make(ERR_INPUT, "%s: is a part of a PEFT adapter: expected the directory", path);
}

static err file_read(struct adapter_file *f, const char *path)
{
    TRY(safetensors_open(&f->tensors, path));
    TRY(check_alone(&f->tensors, path));
    err e = check_metadata(&f->tensors);
    if (!err_is(e)) e = meta_read(&f->meta, &f->tensors);
    if (!err_is(e)) e = modules_read(f, NULL);
    return err_is(e) ? err_in(e, "%s", path) : e;
}

err adapter_file_map_whole(struct adapter_file *out, const char *path)
{
    struct adapter_file f = {0};
    if (strlen(path) >= sizeof f.path)
        return err_make(ERR_INPUT, "%.80s...: the path is too long", path);
    snprintf(f.path, sizeof f.path, "%s", path);
    err e = file_is_dir(path) ? directory_read(&f, path) : file_read(&f, path);
    if (err_is(e)) {
        adapter_file_close(&f);
        return e;
    }
    /* The pages of the header are not needed again. */
    file_map_drop(&f.tensors.map, 0, f.tensors.map.size);
    *out = f;
    return ERR_NONE;
}

err adapter_file_map(struct adapter_file *out, const char *path)
{
    struct adapter_file f = {0};
    TRY(adapter_file_map_whole(&f, path));
    err e = adapter_saved_refuse(&f);
    if (err_is(e))
        adapter_file_close(&f);
    else
        *out = f;
    return e;
}

static err values_read(struct adapter_file *f)
{
    for (size_t i = 0; i < f->count; i++) {
        struct adapter_file_module *m = &f->module[i];
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
            if (m->factor[r].tensor)
                TRY(adapter_file_f32(&m->factor[r].f32, &m->factor[r], &f->arena));
        if (m->magnitude.tensor) TRY(adapter_file_f32(&m->magnitude.f32, &m->magnitude, &f->arena));
        TRY(adapter_file_check_finite(f, m));
    }
    return ERR_NONE;
}

err adapter_file_open_whole(struct adapter_file *out, const char *path)
{
    struct adapter_file f = {0};
    TRY(adapter_file_map_whole(&f, path));
    err e = values_read(&f);
    if (err_is(e))
        adapter_file_close(&f);
    else
        *out = f;
    return e;
}

err adapter_file_open(struct adapter_file *out, const char *path)
{
    struct adapter_file f = {0};
    TRY(adapter_file_map(&f, path));
    err e = values_read(&f);
    if (err_is(e))
        adapter_file_close(&f);
    else
        *out = f;
    return e;
}

bool adapter_file_is_dora(const struct adapter_file *file)
{
    for (size_t i = 0; i < file->count; i++)
        if (file->module[i].magnitude.tensor) return true;
    return false;
}

void adapter_file_close(struct adapter_file *file)
{
    safetensors_close(&file->tensors);
    arena_close(&file->arena);
    *file = (struct adapter_file){0};
}
