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

/* Only plain files are removed, because nothing else was created in it. */
void export_dir_abandon(const char *part)
{
    DIR *d = opendir(part);
    if (d == NULL) return;
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

/* The base's own file with two changes: the type, under the key that the file uses (transformers 5
 * renamed torch_dtype to dtype), and tied embeddings, which older files leave to a default. */
static err config_of_directory(json_t **out, const struct model *base, enum dtype type)
{
    char path[LIMIT_PATH_BYTES];
    json_t *config = NULL;
    TRY(file_join(path, sizeof path, base->path, "config.json"));
    TRY(json_open(&config, path, LIMIT_JSON_BYTES));
    const char *key = json_object_get(config, "dtype") != NULL ? "dtype" : "torch_dtype";
    json_object_set_new(config, key, json_string(type_name(type)));
    json_object_set_new(config, "tie_word_embeddings", json_boolean(base->arch.tied));
    *out = config;
    return ERR_NONE;
}

/* The keys rope_theta and rope_scaling of transformers 4, which version 5 reads too. */
static err config_rope(json_t *config, const struct rope *r)
{
    json_t *scaling = json_null();
    if (r->kind == ROPE_FACTORS)
        return err_make(
            ERR_INPUT, "the base has a tensor rope_freqs.weight, which config.json cannot express");
    if (r->kind == ROPE_LINEAR)
        scaling = json_pack("{s:s, s:f}", "rope_type", "linear", "factor", r->factor);
    if (r->kind == ROPE_LLAMA3)
        scaling = json_pack("{s:s, s:f, s:f, s:f, s:I}", "rope_type", "llama3", "factor", r->factor,
                            "low_freq_factor", r->low_freq_factor, "high_freq_factor",
                            r->high_freq_factor, "original_max_position_embeddings",
                            (json_int_t)r->original_positions);
    json_object_set_new(config, "rope_theta", json_real(r->theta));
    json_object_set_new(config, "rope_scaling", scaling);
    return ERR_NONE;
}

/* One id, a list of ids, or null, as Hugging Face writes it. */
static json_t *eos_json(const struct model *m)
{
    if (m->eos_count == 0) return json_null();
    if (m->eos_count == 1) return json_integer(m->eos[0]);
    json_t *list = json_array();
    for (uint32_t i = 0; i < m->eos_count; i++)
        json_array_append_new(list, json_integer(m->eos[i]));
    return list;
}

/* A float32 of a GGUF as the decimal that it was made from: the shortest one that reads back as the
 * same float. 1e-5 would otherwise be printed as 9.99999975e-06. */
static double shortest(float x)
{
    char text[32];
    for (int digits = 1; digits < 9; digits++) {
        (void)snprintf(text, sizeof text, "%.*g", digits, (double)x);
        if (strtof(text, NULL) == x) return strtod(text, NULL);
    }
    return (double)x;
}

static bool bias_fits(enum family_bias rule, bool present)
{
    return rule == FAMILY_BIAS_OPTIONAL || present == (rule == FAMILY_BIAS_ALWAYS);
}

/* config.json has one key for all biases of attention, so q, k, v and o must agree where both
 * follow it. */
static bool biases_fit(const struct family *f, const struct arch *a)
{
    bool one_key = f->qkv_bias == FAMILY_BIAS_OPTIONAL && f->o_bias == FAMILY_BIAS_OPTIONAL;
    return bias_fits(f->qkv_bias, a->qkv_bias) && bias_fits(f->o_bias, a->o_bias) &&
           bias_fits(f->mlp_bias, a->mlp_bias) && (!one_key || a->qkv_bias == a->o_bias);
}

/* Each key has its name in the configuration classes of transformers. Settings that these classes
 * cannot express are refused, because a loader would compute another function without an error.
 * Families with a switch get max_window_layers 0, which gives every layer the window. */
static err config_of_gguf(json_t **out, const struct model *m, enum dtype type)
{
    const struct arch *a = &m->arch;
    const struct family *family = a->window > 0 ? family_with_window(a->family) : a->family;
    if (family == NULL)
        return err_make(ERR_INPUT, "config.json has no sliding window for %s models",
                        a->family->model_type);
    if (!biases_fit(family, a))
        return err_make(ERR_INPUT, "the base has biases that config.json cannot express");
    json_t *config = json_pack(
        "{s:[s], s:s, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:s, s:b, s:b, s:b, s:s}",
        "architectures", family->hf_class, "model_type", family->model_type, "hidden_size",
        (json_int_t)a->d_model, "intermediate_size", (json_int_t)a->d_ffn, "num_hidden_layers",
        (json_int_t)a->layers, "num_attention_heads", (json_int_t)a->heads, "num_key_value_heads",
        (json_int_t)a->kv_heads, "head_dim", (json_int_t)a->head_dim, "vocab_size",
        (json_int_t)a->vocab, "max_position_embeddings", (json_int_t)a->max_positions,
        "rms_norm_eps", shortest(a->rms_eps), "hidden_act", "silu", "tie_word_embeddings", a->tied,
        "attention_bias", family->qkv_bias == FAMILY_BIAS_OPTIONAL && a->qkv_bias, "mlp_bias",
        a->mlp_bias, "torch_dtype", type_name(type));
    if (config == NULL) return err_make(ERR_MACHINE, "no memory for config.json");
    if (m->bos >= 0) json_object_set_new(config, "bos_token_id", json_integer(m->bos));
    if (m->pad >= 0) json_object_set_new(config, "pad_token_id", json_integer(m->pad));
    json_object_set_new(config, "eos_token_id", eos_json(m));
    if (family->window != FAMILY_WINDOW_NEVER)
        json_object_set_new(config, "sliding_window",
                            a->window > 0 ? json_integer(a->window) : json_null());
    if (family->window == FAMILY_WINDOW_SWITCHED) {
        json_object_set_new(config, "use_sliding_window", json_boolean(a->window > 0));
        json_object_set_new(config, "max_window_layers",
                            json_integer(a->window > 0 ? 0 : a->layers));
    }
    err e = config_rope(config, &a->rope);
    if (err_is(e))
        json_decref(config);
    else
        *out = config;
    return e;
}

/* float32 values of a GGUF need 9 significant digits to be exact; numbers copied from a directory's
 * config.json are doubles and need 17. */
err export_config(const char *dir, const struct model *base, enum dtype type)
{
    json_t *config = NULL;
    TRY(model_is_gguf(base) ? config_of_gguf(&config, base, type)
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
    return ERR_NONE;
}
