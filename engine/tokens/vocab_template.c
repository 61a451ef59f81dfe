/* Chat templates and the special tokens that they name, from the files beside a tokenizer.json or
 * from a GGUF. The order of the files is that of transformers: chat_template.jinja and the folder
 * additional_chat_templates, else tokenizer_config.json, else chat_template.json. */
#include "base/file.h"
#include "base/json.h"
#include "base/limits.h"
#include "base/text.h"
#include "engine/model/gguf.h"
#include "engine/tokens/tokenizer_parts.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CONFIG_BYTES_MAX = 64 << 20, TEMPLATES_MAX = 64 };

static err no_memory(void)
{
    return err_sys(ENOMEM, "tokenizer");
}

/* A text that is not UTF-8 cannot be used, and counts as absent, because a base can be used without
 * its template. */
static err put(json_t *object, const char *name, const char *text, size_t size)
{
    json_t *value = json_stringn(text, size);
    if (!value) return text_is_utf8(text, size) ? no_memory() : ERR_NONE;
    return json_object_set_new(object, name, value) == 0 ? ERR_NONE : no_memory();
}

static err open_config(json_t **out, const char *dir, const char *name)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    return file_exists(path) ? json_open(out, path, CONFIG_BYTES_MAX) : ERR_NONE;
}

/* ---- templates ---- */

static err read_file(struct tokenizer *t, const char *dir, const char *file, const char *name)
{
    char path[LIMIT_PATH_BYTES], *text;
    size_t size;
    TRY(file_join(path, sizeof path, dir, file));
    if (!file_exists(path)) return ERR_NONE;
    TRY(file_read_all(&text, &size, path, LIMIT_TEMPLATE_BYTES));
    err e = put(t->templates, name, text, size);
    free(text);
    return e;
}

/* additional_chat_templates/NAME.jinja */
static err read_folder(struct tokenizer *t, const char *dir)
{
    char path[LIMIT_PATH_BYTES], name[128];
    static const char suffix[] = ".jinja";
    TRY(file_join(path, sizeof path, dir, "additional_chat_templates"));
    DIR *folder = opendir(path);
    if (!folder) return ERR_NONE;
    err e = ERR_NONE;
    for (struct dirent *entry; !err_is(e) && (entry = readdir(folder)) != NULL;) {
        size_t size = strlen(entry->d_name);
        if (size < sizeof suffix || size >= sizeof name || !text_ends_with(entry->d_name, suffix))
            continue;
        if (json_object_size(t->templates) >= TEMPLATES_MAX) break;
        (void)snprintf(name, sizeof name, "%.*s", (int)(size - (sizeof suffix - 1)), entry->d_name);
        e = read_file(t, path, entry->d_name, name);
    }
    closedir(folder);
    return e;
}

/* chat_template is a string, or a list of objects {name, template}. */
static err read_member(struct tokenizer *t, const json_t *config)
{
    const json_t *value = json_object_get(config, "chat_template"), *item;
    size_t i;
    if (json_is_string(value) && json_object_set(t->templates, "default", (json_t *)value) != 0)
        return no_memory();
    json_array_foreach(value, i, item)
    {
        const char *name = json_string_value(json_object_get(item, "name"));
        json_t *text = json_object_get(item, "template");
        if (name && json_is_string(text) && json_object_set(t->templates, name, text) != 0)
            return no_memory();
    }
    return ERR_NONE;
}

static err read_templates(struct tokenizer *t, const char *dir, const json_t *config)
{
    json_t *legacy = NULL;
    TRY(read_file(t, dir, "chat_template.jinja", "default"));
    if (json_object_size(t->templates) > 0) return read_folder(t, dir);
    TRY(read_member(t, config));
    if (json_object_size(t->templates) > 0) return ERR_NONE;
    TRY(open_config(&legacy, dir, "chat_template.json"));
    err e = read_member(t, legacy);
    json_decref(legacy);
    return e;
}

/* ---- special tokens ---- */

static const char *const names[] = {"bos_token", "eos_token", "unk_token", "sep_token",
                                    "pad_token", "cls_token", "mask_token"};
enum { NAMES = sizeof names / sizeof *names };

/* A token is a string, or an object with `content`. A null says that the model has none. */
static err read_specials(struct tokenizer *t, const json_t *config, json_t *seen)
{
    for (size_t i = 0; i < NAMES; i++) {
        json_t *value = json_object_get(config, names[i]);
        if (!value || json_object_get(seen, names[i])) continue;
        if (json_object_set(seen, names[i], value) != 0) return no_memory();
        if (json_is_object(value)) value = json_object_get(value, "content");
        if (json_is_string(value) && json_object_set(t->specials, names[i], value) != 0)
            return no_memory();
    }
    return ERR_NONE;
}

/* Tokens that a model names itself: image_token, ... */
static err read_extra(struct tokenizer *t, const json_t *config)
{
    json_t *extra = json_object_get(config, "extra_special_tokens"), *value;
    const char *name;
    json_object_foreach(extra, name, value)
    {
        if (json_is_object(value)) value = json_object_get(value, "content");
        if (json_is_string(value) && json_object_set(t->specials, name, value) != 0)
            return no_memory();
    }
    return ERR_NONE;
}

static err put_token(struct tokenizer *t, const char *name, int32_t id)
{
    const char *text = tokenizer_token(t, id);
    return text ? put(t->specials, name, text, strlen(text)) : ERR_NONE;
}

static err make_lists(struct tokenizer *t)
{
    t->templates = json_object();
    t->specials = json_object();
    return t->templates && t->specials ? ERR_NONE : no_memory();
}

/* Directories without tokenizer_config.json still name the ends in generation_config.json, so bos
 * and eos of the tokenizer are used there. A tokenizer_config.json that does not name them leaves
 * them undefined, as in transformers. */
err vocab_template_read_hf(struct tokenizer *t, const char *dir)
{
    json_t *config = NULL, *map = NULL, *seen = json_object();
    err e;
    TRY_OUT(e, seen ? ERR_NONE : no_memory());
    TRY_OUT(e, make_lists(t));
    TRY_OUT(e, open_config(&config, dir, "tokenizer_config.json"));
    TRY_OUT(e, open_config(&map, dir, "special_tokens_map.json"));
    TRY_OUT(e, read_specials(t, config, seen));
    TRY_OUT(e, read_specials(t, map, seen));
    TRY_OUT(e, read_extra(t, config));
    bool named = config != NULL;
    if (!named && !json_object_get(seen, "bos_token"))
        TRY_OUT(e, put_token(t, "bos_token", t->bos));
    if (!named && !json_object_get(seen, "eos_token"))
        TRY_OUT(e, put_token(t, "eos_token", t->eos));
    e = read_templates(t, dir, config);
out:
    json_decref(config);
    json_decref(map);
    json_decref(seen);
    return e;
}

err vocab_template_read_gguf(struct tokenizer *t, const struct gguf *g)
{
    uint32_t unknown = UINT32_MAX, padding = UINT32_MAX;
    struct gguf_str plain = {0}, tools = {0};
    TRY(make_lists(t));
    TRY(put_token(t, "bos_token", t->bos));
    TRY(put_token(t, "eos_token", t->eos));
    TRY(gguf_opt_u32(&unknown, g, "tokenizer.ggml.unknown_token_id"));
    TRY(gguf_opt_u32(&padding, g, "tokenizer.ggml.padding_token_id"));
    if (unknown < t->vocab) TRY(put_token(t, "unk_token", (int32_t)unknown));
    if (padding < t->vocab) TRY(put_token(t, "pad_token", (int32_t)padding));
    TRY(gguf_opt_str(&plain, g, "tokenizer.chat_template"));
    TRY(gguf_opt_str(&tools, g, "tokenizer.chat_template.tool_use"));
    if (plain.data) TRY(put(t->templates, "default", plain.data, plain.size));
    return tools.data ? put(t->templates, "tool_use", tools.data, tools.size) : ERR_NONE;
}
