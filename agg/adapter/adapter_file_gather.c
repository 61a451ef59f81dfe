/* The modules of an adapter file from its tensors; contract in adapter_file.h. */
#include "agg/adapter/adapter_file_parts.h"
#include "agg/adapter/adapter_names.h"
#include "agg/adapter/adapter_saved.h"

#include <stdlib.h>
#include <string.h>

static const char *const role_suffix[ADAPTER_FILE_ROLES] = {
    ".lora_A.weight", ".lora_B.weight", ".lora_R.weight", ".carry_A.weight", ".carry_B.weight",
};

void adapter_file_tensor_name(char out[LIMIT_TENSOR_NAME_BYTES], const char *module,
                              enum adapter_file_role role)
{
    const char *part[] = {ADAPTER_FILE_PREFIX, module, role_suffix[role]};
    size_t used = 0;
    for (int i = 0; i < 3; i++) {
        size_t n = strlen(part[i]);
        REQUIRE(n < LIMIT_TENSOR_NAME_BYTES - used);
        memcpy(out + used, part[i], n);
        used += n;
    }
    out[used] = 0;
}

static err name_split(const char **module, size_t *length, enum adapter_file_role *role,
                      const char *name)
{
    size_t n = strlen(name), p = sizeof ADAPTER_FILE_PREFIX - 1;
    if (n < LIMIT_TENSOR_NAME_BYTES && strncmp(name, ADAPTER_FILE_PREFIX, p) == 0) {
        for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
            size_t s = strlen(role_suffix[r]);
            if (n <= p + s || strcmp(name + n - s, role_suffix[r]) != 0) continue;
            *module = name + p;
            *length = n - p - s;
            *role = (enum adapter_file_role)r;
            return ERR_NONE;
        }
    }
    return err_make(ERR_INPUT,
                    "tensor %.200s: expected %s<module>.lora_A.weight, lora_B, lora_R, carry_A or "
                    "carry_B",
                    name, ADAPTER_FILE_PREFIX);
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
            strlen(name) + sizeof ADAPTER_FILE_PREFIX + 20 > LIMIT_TENSOR_NAME_BYTES)
            return err_make(ERR_INPUT, "fedlora.modules: %.200s: expected [d_out, d_in]", name);
        REQUIRE(f->count < room);
        struct adapter_file_module *m = &f->module[f->count++];
        m->d_out = (uint32_t)d_out;
        m->d_in = (uint32_t)d_in;
        TRY(arena_text(&m->name, &f->arena, name, strlen(name)));
    }
    return ERR_NONE;
}

/* DoRA's m: one value for each row. Some versions of PEFT have written it as (d_out, 1). */
static err magnitude_of(struct adapter_file_factor *out, const struct tensor *t)
{
    struct tensor flat = *t;
    bool vector = t->dims == 1 || (t->dims == 2 && (t->shape[0] == 1 || t->shape[1] == 1));
    flat.dims = 2;
    flat.shape[0] = t->count;
    flat.shape[1] = 1;
    if (!vector || t->count == 0)
        return err_make(ERR_INPUT, "tensor %s: expected one dimension", t->name);
    TRY(factor_of(out, &flat));
    out->tensor = t;
    return ERR_NONE;
}

/* A file that names the language model in two ways may be two adapters in one. */
static err root_of(struct adapter_file *f, const struct adapter_name *n, const char *tensor)
{
    if (n->root && f->meta.root && strcmp(n->root, f->meta.root) != 0)
        return err_make(
            ERR_INPUT, "tensor %s: other tensors name the language model \"%s\"; expected one name",
            tensor, f->meta.root);
    if (n->root) f->meta.root = n->root;
    return ERR_NONE;
}

/* A tensor of a PEFT directory. */
static err peft_tensor(struct adapter_file *f, const struct adapter_config *config,
                       const struct tensor *t)
{
    struct adapter_name n;
    TRY(adapter_name_read(&n, t->name));
    if (n.part == ADAPTER_NAME_COPY) return ERR_NONE;
    TRY(root_of(f, &n, t->name));
    if (n.part == ADAPTER_NAME_WHOLE) {
        if (adapter_saved_is(config, n.module)) return adapter_saved_add(f, n.module, t);
        return err_make(ERR_INPUT,
                        "tensor %.200s: expected %s<module>.lora_A.weight or lora_B "
                        "(modules_to_save and bias do not list it as saved whole)",
                        t->name, ADAPTER_FILE_PREFIX);
    }
    struct adapter_file_module *m = &f->module[f->count++];
    TRY(arena_text(&m->name, &f->arena, n.module, strlen(n.module)));
    if (n.part == ADAPTER_NAME_MAGNITUDE) return magnitude_of(&m->magnitude, t);
    m->embedding = n.part == ADAPTER_NAME_EMBEDDING_A || n.part == ADAPTER_NAME_EMBEDDING_B;
    bool a = n.part == ADAPTER_NAME_A || n.part == ADAPTER_NAME_EMBEDDING_A;
    return factor_of(&m->factor[a ? ADAPTER_FILE_A : ADAPTER_FILE_B], t);
}

static err own_tensor(struct adapter_file *f, const struct tensor *t)
{
    const char *name = NULL;
    size_t length = 0;
    enum adapter_file_role role = ADAPTER_FILE_A;
    TRY(name_split(&name, &length, &role, t->name));
    struct adapter_file_module *m = &f->module[f->count++];
    TRY(arena_text(&m->name, &f->arena, name, length));
    return factor_of(&m->factor[role], t);
}

/* Two tensors can have one meaning, because names are spelled in several ways. */
static err merge_factor(struct adapter_file_factor *into, const struct adapter_file_factor *x)
{
    if (!x->tensor) return ERR_NONE;
    if (into->tensor)
        return err_make(ERR_INPUT, "tensors %.200s and %.200s are the same factor of one module",
                        into->tensor->name, x->tensor->name);
    *into = *x;
    return ERR_NONE;
}

static err merge_module(struct adapter_file_module *into, const struct adapter_file_module *m)
{
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++)
        TRY(merge_factor(&into->factor[r], &m->factor[r]));
    TRY(merge_factor(&into->magnitude, &m->magnitude));
    into->embedding = into->embedding || m->embedding;
    if (m->d_out) into->d_out = m->d_out;
    if (m->d_in) into->d_in = m->d_in;
    return ERR_NONE;
}

/* Makes one module for each tensor, sorts them, and merges those of one name. */
err adapter_file_gather(struct adapter_file *f, const struct adapter_config *config)
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
        TRY(config ? peft_tensor(f, config, t) : own_tensor(f, t));
    }
    if (f->count) qsort(f->module, f->count, sizeof *f->module, adapter_file_by_name);
    size_t kept = 0;
    for (size_t i = 0; i < f->count; i++) {
        struct adapter_file_module *m = &f->module[i];
        if (kept == 0 || strcmp(f->module[kept - 1].name, m->name) != 0) {
            f->module[kept++] = *m;
            continue;
        }
        TRY(merge_module(&f->module[kept - 1], m));
    }
    f->count = kept;
    return adapter_saved_sort(f);
}
