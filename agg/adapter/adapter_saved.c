#include "agg/adapter/adapter_saved.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "base_model.model.", wrapped[] = ".base_layer.bias", bias[] = ".bias";

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), k = strlen(end);
    return n >= k && strcmp(text + n - k, end) == 0;
}

/* The tensor belongs to a module whose name ends with `key`; the same comparison as in PEFT. */
static bool lies_in(const char *name, const char *key)
{
    size_t k = strlen(key);
    for (const char *at = strstr(name, key); at; at = strstr(at + 1, key))
        if (at[k] == '.') return true;
    return false;
}

bool adapter_saved_is(const struct adapter_config *config, const char *tensor_name)
{
    if (strncmp(tensor_name, prefix, sizeof prefix - 1) != 0 || strstr(tensor_name, ".lora_"))
        return false;
    const char *name = tensor_name + sizeof prefix - 1;
    if (strcmp(config->bias, "none") != 0 && ends_with(name, bias)) return true;
    for (size_t i = 0; i < config->save_count; i++)
        if (lies_in(name, config->save[i])) return true;
    return false;
}

err adapter_saved_add(struct adapter_file *file, const struct tensor *t)
{
    const char *name = t->name + sizeof prefix - 1;
    size_t n = strlen(name);
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16)
        return err_make(ERR_INPUT, "tensor %s: dtype %s, expected F32, F16 or BF16", t->name,
                        dtype_name(t->dtype));
    if (n + sizeof prefix + sizeof wrapped > LIMIT_TENSOR_NAME_BYTES || t->count == 0)
        return err_make(ERR_INPUT, "tensor %.200s: %s", t->name,
                        t->count ? "the name is too long" : "has no values");
    if (!file->saved)
        TRY(arena_take(&file->saved, &file->arena, file->tensors.count, sizeof *file->saved));
    struct adapter_file_saved *s = &file->saved[file->saved_count];
    if (ends_with(name, wrapped)) {
        char plain[LIMIT_TENSOR_NAME_BYTES];
        snprintf(plain, sizeof plain, "%.*s%s", (int)(n - (sizeof wrapped - 1)), name, bias);
        TRY(arena_text(&s->name, &file->arena, plain, strlen(plain)));
    } else {
        TRY(arena_text(&s->name, &file->arena, name, n));
    }
    s->tensor = t;
    file->saved_count++;
    return ERR_NONE;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct adapter_file_saved *)a)->name,
                  ((const struct adapter_file_saved *)b)->name);
}

err adapter_saved_sort(struct adapter_file *file)
{
    struct adapter_file_saved *s = file->saved;
    if (!file->saved_count) return ERR_NONE;
    qsort(s, file->saved_count, sizeof *s, by_name);
    for (size_t i = 1; i < file->saved_count; i++)
        if (strcmp(s[i - 1].name, s[i].name) == 0)
            return err_make(ERR_INPUT, "the file has tensor %s twice", s[i].tensor->name);
    return ERR_NONE;
}

err adapter_saved_refuse(const struct adapter_file *file)
{
    if (file->meta.kind != ADAPTER_FILE_PEFT) return ERR_NONE;
    if (file->meta.modules_to_save[0])
        return err_make(ERR_INPUT,
                        "%s: modules_to_save: modules saved whole with the adapter are "
                        "not supported here",
                        file->path);
    if (strcmp(file->meta.bias, "none") != 0)
        return err_make(ERR_INPUT, "%s: bias \"%s\" is not supported here; expected none",
                        file->path, file->meta.bias);
    return ERR_NONE;
}

err adapter_saved_tensor_name(const char **out, struct arena *arena, const char *name,
                              const struct adapter_file_module *module, size_t count)
{
    char full[LIMIT_TENSOR_NAME_BYTES];
    size_t n = strlen(name), k = n - (sizeof bias - 1);
    bool adapted = false;
    for (size_t i = 0; i < count && ends_with(name, bias) && !adapted; i++)
        adapted = strlen(module[i].name) == k && strncmp(module[i].name, name, k) == 0;
    int size = adapted ? snprintf(full, sizeof full, "%s%.*s%s", prefix, (int)k, name, wrapped)
                       : snprintf(full, sizeof full, "%s%s", prefix, name);
    if (size < 0 || size >= (int)sizeof full)
        return err_make(ERR_INPUT, "tensor %.200s: the name is too long", name);
    return arena_text(out, arena, full, (size_t)size);
}
