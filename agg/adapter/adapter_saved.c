#include "agg/adapter/adapter_saved.h"

#include "agg/adapter/adapter_names.h"
#include "base/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char prefix[] = "base_model.model.", bias[] = ".bias";

/* Names of embeddings and heads. PEFT saves them whole without a setting. */
static const char *const vocabulary[] = {
    "embed_tokens.weight", "lm_head.weight",   "lm_head.bias",           "wte.weight",
    "embed_in.weight",     "embed_out.weight", "word_embeddings.weight",
};

/* The tensor belongs to a module whose name ends with `key`; the same comparison as in PEFT. */
static bool lies_in(const char *name, const char *key)
{
    size_t k = strlen(key);
    for (const char *at = strstr(name, key); at; at = strstr(at + 1, key))
        if (at[k] == '.') return true;
    return false;
}

static bool is_vocabulary(const char *name)
{
    for (size_t i = 0; i < sizeof vocabulary / sizeof *vocabulary; i++) {
        size_t n = strlen(name), k = strlen(vocabulary[i]);
        if (text_ends_with(name, vocabulary[i]) && (n == k || name[n - k - 1] == '.')) return true;
    }
    return false;
}

bool adapter_saved_is(const struct adapter_config *config, const char *name)
{
    if (strcmp(config->bias, "none") != 0 && text_ends_with(name, bias)) return true;
    for (size_t i = 0; i < config->save_count; i++)
        if (lies_in(name, config->save[i])) return true;
    return is_vocabulary(name);
}

err adapter_saved_add(struct adapter_file *file, const char *name, const struct tensor *t)
{
    if (t->dtype != DTYPE_F32 && t->dtype != DTYPE_F16 && t->dtype != DTYPE_BF16)
        return err_make(ERR_INPUT, "tensor %s: dtype %s, expected F32, F16 or BF16", t->name,
                        dtype_name(t->dtype));
    if (t->count == 0) return err_make(ERR_INPUT, "tensor %.200s: has no values", t->name);
    if (!file->saved)
        TRY(arena_take(&file->saved, &file->arena, file->tensors.count, sizeof *file->saved));
    struct adapter_file_saved *s = &file->saved[file->saved_count];
    TRY(arena_text(&s->name, &file->arena, name, strlen(name)));
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
    if (file->saved_count)
        return err_make(ERR_INPUT, "%s: %s is saved whole, which is not supported here", file->path,
                        file->saved[0].name);
    for (size_t i = 0; i < file->count; i++)
        if (file->module[i].embedding || file->module[i].magnitude.tensor)
            return err_make(ERR_INPUT, "%s: module %s: %s is not supported here", file->path,
                            file->module[i].name,
                            file->module[i].embedding ? "the LoRA of an embedding" : "DoRA");
    return ERR_NONE;
}

/* PEFT keeps the base's tensors of an adapted layer in base_layer. */
err adapter_saved_tensor_name(const char **out, struct arena *arena, const char *name,
                              const struct adapter_file_peft *what)
{
    char rooted[LIMIT_TENSOR_NAME_BYTES], full[LIMIT_TENSOR_NAME_BYTES];
    const char *dot = strrchr(name, '.');
    size_t k = dot ? (size_t)(dot - name) : strlen(name);
    bool adapted = false;
    for (size_t i = 0; i < what->count && dot && !adapted; i++) {
        const char *module = what->module[i].name;
        adapted = strlen(module) == k && strncmp(module, name, k) == 0;
    }
    TRY(adapter_name_rooted(rooted, name, what->meta->root));
    dot = strrchr(rooted, '.');
    k = dot ? (size_t)(dot - rooted) : strlen(rooted);
    int size = snprintf(full, sizeof full, "%s%.*s%s%s", prefix, (int)k, rooted,
                        adapted ? ".base_layer" : "", rooted + k);
    if (size < 0 || size >= (int)sizeof full)
        return err_make(ERR_INPUT, "tensor %.200s: the name is too long", name);
    return arena_text(out, arena, full, (size_t)size);
}
