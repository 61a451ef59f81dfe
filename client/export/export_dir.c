/* The directory and the configuration of a merged model: client/export/export_parts.h.
 *
 * A directory cannot be replaced atomically with rename(2) if the target is not empty. Therefore
 * the new one is completed under a temporary name, the old one is renamed away, and the new one is
 * renamed into place. A crash between the two renames leaves both under other names, and nothing is
 * lost. */
#include "base/file.h"
#include "base/json.h"
#include "client/export/export_parts.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Limit of a tokenizer file; those of large vocabularies have tens of megabytes. */
#define COPY_BYTES_MAX (256u << 20)

/* The process id in the name keeps two exports apart. Remains of a crashed process with the same id
 * are removed. Mode 0777 minus the umask: an export is made to be passed on. */
err export_dir_begin(char part[LIMIT_PATH_BYTES], const char *dir, bool replace)
{
    size_t size = strlen(dir);
    while (size > 1 && dir[size - 1] == '/')
        size--;
    if (size == 0 || size + 32 > LIMIT_PATH_BYTES)
        return err_make(ERR_INPUT, "%.80s: the path is empty or too long", dir);
    if (file_exists(dir) && !replace) return err_make(ERR_INPUT, "%s: exists already", dir);
    if (file_exists(dir) && !file_is_dir(dir))
        return err_make(ERR_INPUT, "%s: is a file, expected a directory", dir);
    (void)snprintf(part, LIMIT_PATH_BYTES, "%.*s.part-%d", (int)size, dir, (int)getpid());
    export_dir_abandon(part);
    return mkdir(part, 0777) == 0 ? ERR_NONE : err_sys(errno, "%s", part);
}

/* The only folder in a model's directory: chat templates with other names than "default". */
static const char templates[] = "additional_chat_templates";

/* Only plain files and the folder of templates are removed, because nothing else was created. */
void export_dir_abandon(const char *part)
{
    char folder[LIMIT_PATH_BYTES];
    DIR *d = opendir(part);
    if (d == NULL) return;
    if (!strstr(part, templates) && !err_is(file_join(folder, sizeof folder, part, templates)))
        export_dir_abandon(folder);
    for (struct dirent *entry; (entry = readdir(d)) != NULL;)
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            (void)unlinkat(dirfd(d), entry->d_name, 0);
    closedir(d);
    (void)rmdir(part);
}

/* Without this a power loss could undo the renames. */
static err sync_parent(const char *part)
{
    char parent[LIMIT_PATH_BYTES];
    (void)snprintf(parent, sizeof parent, "%s", part);
    char *slash = strrchr(parent, '/');
    if (slash == NULL) return file_sync_dir(".");
    slash[slash == parent] = 0;
    return file_sync_dir(parent);
}

/* If the second rename fails, the old directory is put back; if that fails too, the error names the
 * place where it is. */
err export_dir_commit(const char *part, const char *dir)
{
    char old[LIMIT_PATH_BYTES + 8];
    (void)snprintf(old, sizeof old, "%s.old", part);
    TRY(file_sync_dir(part));
    bool there = file_exists(dir);
    if (there && file_disk.rename(dir, old) != 0) return err_sys(errno, "%s", dir);
    if (file_disk.rename(part, dir) != 0) {
        err e = err_sys(errno, "%s", dir);
        if (there && file_disk.rename(old, dir) != 0)
            return err_in(e, "the previous directory was kept as %s", old);
        return e;
    }
    /* Files other than plain ones are not deleted and stay under the old name. */
    if (there) export_dir_abandon(old);
    return sync_parent(part);
}

/* `digits` is the precision of numbers, see export_config(). */
static err write_json(const char *dir, const char *name, const json_t *value, size_t digits)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, dir, name));
    char *text =
        json_dumps(value, JSON_INDENT(2) | JSON_PRESERVE_ORDER | JSON_REAL_PRECISION(digits));
    if (text == NULL) return err_make(ERR_MACHINE, "%s: no memory", path);
    err e = file_write(path, text, strlen(text), true);
    free(text);
    return e;
}

static const char *type_name(enum dtype type)
{
    return type == DTYPE_F32 ? "float32" : "bfloat16";
}

/* A base with a part for images is exported as its text part: text_config becomes the whole file,
 * with the ids of the tokens that stand beside it. */
static err text_part(json_t **config, const struct model *base)
{
    static const char *const keys[] = {"bos_token_id", "eos_token_id", "pad_token_id", "dtype",
                                       "torch_dtype"};
    json_t *text = json_deep_copy(json_object_get(*config, "text_config"));
    if (text == NULL) return err_make(ERR_MACHINE, "no memory for config.json");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        json_t *value = json_object_get(*config, keys[i]);
        if (value != NULL && json_object_get(text, keys[i]) == NULL)
            json_object_set(text, keys[i], value);
    }
    json_object_set_new(text, "model_type", json_string(base->arch.family->model_type));
    json_object_set_new(text, "architectures", json_pack("[s]", base->arch.family->hf_class));
    json_decref(*config);
    *config = text;
    return ERR_NONE;
}

/* The base's own file with two changes: the type, under the key that the file uses (transformers 5
 * renamed torch_dtype to dtype), and tied embeddings, which older files leave to a default. */
static err config_of_directory(json_t **out, const struct model *base, enum dtype type)
{
    char path[LIMIT_PATH_BYTES];
    json_t *config = NULL;
    TRY(file_join(path, sizeof path, base->path, "config.json"));
    TRY(json_open(&config, path, LIMIT_JSON_BYTES));
    const char *family = json_string_value(json_object_get(config, "model_type"));
    if (family != NULL && family_find_wrapper(family) != NULL) {
        err e = text_part(&config, base);
        if (err_is(e)) {
            json_decref(config);
            return e;
        }
    }
    const char *key = json_object_get(config, "dtype") != NULL ? "dtype" : "torch_dtype";
    json_object_set_new(config, key, json_string(type_name(type)));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(base->arch.tied));
    /* An adapter may have resized the vocabulary. */
    json_object_set_new(config, "vocab_size", json_integer((json_int_t)base->arch.vocab));
    *out = config;
    return ERR_NONE;
}

/* float32 values of a GGUF need 9 significant digits to be exact; numbers copied from a directory's
 * config.json are doubles and need 17. */
err export_config(const char *dir, const struct model *base, enum dtype type)
{
    json_t *config = NULL;
    TRY(model_is_gguf(base) ? export_config_of_gguf(&config, base, type_name(type))
                            : config_of_directory(&config, base, type));
    err e = write_json(dir, "config.json", config, model_is_gguf(base) ? 9 : 17);
    json_decref(config);
    return e;
}

/* A file that does not exist in the base is skipped: models have different sets of them. */
static err copy_file(const char *dir, const char *from, const char *name)
{
    char source[LIMIT_PATH_BYTES], target[LIMIT_PATH_BYTES];
    char *data = NULL;
    size_t size;
    TRY(file_join(source, sizeof source, from, name));
    TRY(file_join(target, sizeof target, dir, name));
    if (!file_exists(source)) return ERR_NONE;
    TRY(file_read_all(&data, &size, source, COPY_BYTES_MAX));
    err e = file_write(target, data, size, true);
    free(data);
    return e;
}

static err copy_templates(const char *dir, const char *from)
{
    char source[LIMIT_PATH_BYTES], target[LIMIT_PATH_BYTES];
    TRY(file_join(source, sizeof source, from, templates));
    TRY(file_join(target, sizeof target, dir, templates));
    DIR *d = opendir(source);
    if (d == NULL) return ERR_NONE;
    err e = mkdir(target, 0777) == 0 ? ERR_NONE : err_sys(errno, "%s", target);
    for (struct dirent *entry; !err_is(e) && (entry = readdir(d)) != NULL;) {
        const char *end = strrchr(entry->d_name, '.');
        if (end && strcmp(end, ".jinja") == 0) e = copy_file(target, source, entry->d_name);
    }
    closedir(d);
    return err_is(e) ? e : file_sync_dir(target);
}

/* All names that transformers and llama.cpp look for, in several generations of file layouts. */
err export_copy_tokenizer(const char *dir, const char *from)
{
    static const char *const names[] = {"tokenizer.json",
                                        "tokenizer_config.json",
                                        "special_tokens_map.json",
                                        "added_tokens.json",
                                        "vocab.json",
                                        "merges.txt",
                                        "tokenizer.model",
                                        "chat_template.jinja",
                                        "chat_template.json",
                                        "generation_config.json"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        TRY(copy_file(dir, from, names[i]));
    return copy_templates(dir, from);
}
