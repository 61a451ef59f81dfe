#include "agg/adapter/adapter_file.h"

#include "agg/adapter/adapter_config.h"
#include "agg/adapter/adapter_saved.h"
#include "base/json.h"
#include "base/text.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char tensor_prefix[] = "base_model.model.";
static const char *const role_suffix[ADAPTER_FILE_ROLES] = {
    ".lora_A.weight", ".lora_B.weight", ".lora_R.weight", ".carry_A.weight", ".carry_B.weight",
};
/* The longest text has a name of LIMIT_TENSOR_NAME_BYTES for each of LIMIT_MODULES. */
enum { METADATA_BYTES_MAX = 1 << 21 };

void adapter_file_tensor_name(char out[LIMIT_TENSOR_NAME_BYTES], const char *module,
                              enum adapter_file_role role)
{
    const char *part[] = {tensor_prefix, module, role_suffix[role]};
    size_t used = 0;
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(part[i]);
        REQUIRE(n < LIMIT_TENSOR_NAME_BYTES - used);
        memcpy(out + used, part[i], n);
        used += n;
    }
    out[used] = 0;
}

/* ---- from tensors to modules ---- */

static err name_split(const char **module, size_t *length, enum adapter_file_role *role,
                      const char *name)
{
    size_t n = strlen(name), p = sizeof tensor_prefix - 1;
    if (n < LIMIT_TENSOR_NAME_BYTES && strncmp(name, tensor_prefix, p) == 0) {
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
            size_t s = strlen(role_suffix[r]);
            if (n <= p + s || strcmp(name + n - s, role_suffix[r]) != 0) continue;
            *module = name + p;
            *length = n - p - s;
            *role = (enum adapter_file_role)r;
            return ERR_NONE;
        }
    }
    bool lora = strstr(name, "lora_") || strstr(name, "carry_");
    const char *what = strstr(name, "lora_magnitude_vector") ? " (DoRA is not supported)"
                       : strstr(name, "lora_embedding") ? " (adapted embeddings are not supported)"
                       : !lora ? " (modules_to_save and bias do not list it as saved whole)"
                               : "";
    return err_make(ERR_INPUT,
                    "tensor %.200s: expected %s<module>.lora_A.weight, lora_B, lora_R, carry_A or "
                    "carry_B%s",
                    name, tensor_prefix, what);
}

static int module_by_name(const void *a, const void *b)
{
    return strcmp(((const struct adapter_file_module *)a)->name,
                  ((const struct adapter_file_module *)b)->name);
}

const struct adapter_file_module *adapter_file_find(const struct adapter_file *file,
                                                    const char *module)
{
    struct adapter_file_module key = {.name = module};
    if (!file->count) return NULL;
    return bsearch(&key, file->module, file->count, sizeof key, module_by_name);
}

static err factor_of(struct adapter_file_factor *out, const struct tensor *t)
{
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16)
        return err_make(ERR_INPUT, "tensor %s: dtype %s, expected F32, F16 or BF16", t->name,
                        dtype_name(t->dtype));
    if (t->dims != 2 || t->shape[0] < 1 || t->shape[1] < 1 || t->shape[0] > LIMIT_DIMENSION ||
        t->shape[1] > LIMIT_DIMENSION)
        return err_make(ERR_INPUT, "tensor %s: expected two dimensions of 1 to %d", t->name,
                        LIMIT_DIMENSION);
    out->rows = (uint32_t)t->shape[0];
    out->cols = (uint32_t)t->shape[1];
    out->tensor = t;
    if (t->dtype == DTYPE_F32 && (uintptr_t)t->data % sizeof(float) == 0) out->f32 = t->data;
    return ERR_NONE;
}

/* Adds the modules of fedlora.modules, {"name":[d_out,d_in],...}; some have no tensor yet. */
static err listed_modules(struct adapter_file *f, const json_t *map, size_t room)
{
    const char *name;
    json_t *shape;
    if (!json_is_object(map)) return err_make(ERR_INPUT, "fedlora.modules: expected a map");
    json_object_foreach((json_t *)(uintptr_t)map, name, shape)
    {
        json_int_t d_out = json_integer_value(json_array_get(shape, 0));
        json_int_t d_in = json_integer_value(json_array_get(shape, 1));
        if (json_array_size(shape) != 2 || d_out < 1 || d_in < 1 || d_out > LIMIT_DIMENSION ||
            d_in > LIMIT_DIMENSION ||
            strlen(name) + sizeof tensor_prefix + 20 > LIMIT_TENSOR_NAME_BYTES)
            return err_make(ERR_INPUT, "fedlora.modules: %.200s: expected [d_out, d_in]", name);
        REQUIRE(f->count < room);
        struct adapter_file_module *m = &f->module[f->count++];
        m->d_out = (uint32_t)d_out;
        m->d_in = (uint32_t)d_in;
        TRY(arena_text(&m->name, &f->arena, name, strlen(name)));
    }
    return ERR_NONE;
}

/* Makes one module for each tensor, sorts them, and merges those of one name. */
static err modules_gather(struct adapter_file *f, const struct adapter_config *config)
{
    const char *text = safetensors_metadata(&f->tensors, "fedlora.modules");
    json_t *map = NULL;
    if (text) TRY(json_parse(&map, text, strlen(text), "fedlora.modules"));
    size_t room = f->tensors.count + (json_is_object(map) ? json_object_size(map) : 0);
    err e = arena_take(&f->module, &f->arena, room, sizeof *f->module);
    if (!err_is(e) && map) e = listed_modules(f, map, room);
    json_decref(map);
    if (err_is(e)) return e;
    for (size_t i = 0; i < f->tensors.count; i++) {
        const struct tensor *t = &f->tensors.tensor[i];
        const char *name = NULL;
        size_t length = 0;
        enum adapter_file_role role = ADAPTER_FILE_A;
        if (config && adapter_saved_is(config, t->name)) {
            TRY(adapter_saved_add(f, t));
            continue;
        }
        TRY(name_split(&name, &length, &role, t->name));
        struct adapter_file_module *m = &f->module[f->count++];
        TRY(arena_text(&m->name, &f->arena, name, length));
        TRY(factor_of(&m->factor[role], t));
    }
    if (f->count) qsort(f->module, f->count, sizeof *f->module, module_by_name);
    size_t kept = 0;
    for (size_t i = 0; i < f->count; i++) {
        struct adapter_file_module *m = &f->module[i];
        if (kept == 0 || strcmp(f->module[kept - 1].name, m->name) != 0) {
            f->module[kept++] = *m;
            continue;
        }
        struct adapter_file_module *into = &f->module[kept - 1];
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
            if (m->factor[r].tensor) into->factor[r] = m->factor[r];
        if (m->d_out) into->d_out = m->d_out;
        if (m->d_in) into->d_in = m->d_in;
    }
    f->count = kept;
    return adapter_saved_sort(f);
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
    if (m->rank > LIMIT_RANK)
        return err_make(ERR_INPUT, "module %s: rank %u, expected at most %d", m->name, m->rank,
                        LIMIT_RANK);
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
    if (m->rank == 0) return ERR_NONE;
    if (s->config) {
        double r;
        TRY(adapter_config_pattern_find(&r, &s->config->rank, m->name, s->config->r));
        if (r != m->rank)
            return err_make(ERR_INPUT, "tensor %s: rank %u, expected %g by adapter_config.json",
                            m->factor[ADAPTER_FILE_A].tensor->name, m->rank, r);
    }
    const struct adapter_config_pattern *alphas = s->config ? &s->config->alphas : &s->alphas;
    TRY(adapter_config_pattern_find(&m->alpha, alphas, m->name, meta->alpha));
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
    TRY_OUT(e, modules_gather(f, config));
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
                     file_exists(name) ? " (reading adapter_model.bin can run code; save the "
                                         "adapter with safe_serialization)"
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

static err file_read(struct adapter_file *f, const char *path)
{
    TRY(safetensors_open(&f->tensors, path));
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

err adapter_file_open(struct adapter_file *out, const char *path)
{
    struct adapter_file f = {0};
    err e = ERR_NONE;
    TRY(adapter_file_map(&f, path));
    for (size_t i = 0; i < f.count; i++) {
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
            struct adapter_file_factor *x = &f.module[i].factor[r];
            if (x->tensor) TRY_OUT(e, adapter_file_f32(&x->f32, x, &f.arena));
        }
        TRY_OUT(e, adapter_file_check_finite(&f, &f.module[i]));
    }
    *out = f;
    return ERR_NONE;
out:
    adapter_file_close(&f);
    return e;
}

void adapter_file_close(struct adapter_file *file)
{
    safetensors_close(&file->tensors);
    arena_close(&file->arena);
    *file = (struct adapter_file){0};
}
