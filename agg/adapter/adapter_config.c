#include "agg/adapter/adapter_config.h"

#include "agg/adapter/adapter_names.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PATTERN_KEYS_MAX = LIMIT_MODULES,
    PATTERN_TEXT_MAX = 1 << 20,
    /* Of keys that are no plain names. Together they bound the time of all modules to seconds. */
    EXPRESSIONS_MAX = 32,
    EXPRESSION_BYTES = 1024,
    EXPRESSION_NESTING = 16,
    EXPRESSION_STEPS = 5000, /* of one key on one name; common ones take some hundreds */
    EXPRESSION_HEAP_KB = 256,
};

/* ---- patterns ---- */

static bool is_plain(const char *key)
{
    return key[strspn(key, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_.-")] ==
           0;
}

/* Matches (.*\.)?(key)$, where '.' in the key stands for any one character, as in PEFT. */
static bool plain_matches(const char *key, const char *module)
{
    size_t k = strlen(key), n = strlen(module);
    if (k > n || (k < n && module[n - k - 1] != '.')) return false;
    for (size_t i = 0; i < k; i++)
        if (key[i] != '.' && key[i] != module[n - k + i]) return false;
    return true;
}

/* Python reads some texts that PCRE2 accepts otherwise, or not at all: escapes that only Perl has,
 * POSIX classes, which Python takes as a set of characters, and "{,3}", which PCRE2 takes as plain
 * text. Returns the first of them, or NULL. */
static const char *other_than_python(const char *key)
{
    bool set = false; /* inside of [] */
    for (const char *p = key; *p; p++) {
        if (*p == '\\') {
            bool letter = (p[1] >= 'a' && p[1] <= 'z') || (p[1] >= 'A' && p[1] <= 'Z');
            if (letter && !strchr("AbBdDsSwWZafnrtvxuU", p[1])) return p;
            if (p[1] == 'x' && p[2] == '{') return p;
            p += p[1] != 0;
        } else if (set) {
            if (*p == '[' && (p[1] == ':' || p[1] == '.' || p[1] == '=')) return p;
            set = *p != ']';
        } else if (*p == '[') {
            set = true;
            p += p[1] == '^';
            p += p[1] == ']'; /* as the first of a set it is a character */
        } else if (*p == '{' && p[1] == ',') {
            return p;
        } else if (*p == '(' &&
                   (p[1] == '*' || (p[1] == '?' && strchr("|R&+0123456789'C", p[2])))) {
            return p;
        }
    }
    return NULL;
}

/* PCRE2 reads Python's syntax, and refuses an expression whose repetitions take more than 64 KiB of
 * its code. */
static err key_compile(struct adapter_config_key *key, const char *where)
{
    char whole[EXPRESSION_BYTES + 16];
    int code = 0;
    PCRE2_SIZE at;
    if (strlen(key->text) > EXPRESSION_BYTES)
        return err_make(ERR_INPUT, "%s: a key is longer than %d bytes", where, EXPRESSION_BYTES);
    const char *other = other_than_python(key->text);
    if (other)
        return err_make(ERR_INPUT,
                        "%s: \"%.100s\" is not a regular expression that can be read here: Python "
                        "reads \"%.10s\" otherwise",
                        where, key->text, other);
    snprintf(whole, sizeof whole, "^(.*\\.)?(%s)$", key->text);
    pcre2_compile_context *context = pcre2_compile_context_create(NULL);
    if (!context) return err_make(ERR_MACHINE, "%s: no memory for an expression", where);
    pcre2_set_parens_nest_limit(context, EXPRESSION_NESTING);
    key->expression = pcre2_compile((PCRE2_SPTR)whole, PCRE2_ZERO_TERMINATED,
                                    PCRE2_UTF | PCRE2_NEVER_BACKSLASH_C, &code, &at, context);
    pcre2_compile_context_free(context);
    if (key->expression) return ERR_NONE;
    PCRE2_UCHAR why[120];
    pcre2_get_error_message(code, why, sizeof why);
    return err_make(ERR_INPUT,
                    "%s: \"%.100s\" is not a regular expression that can be read here: %s", where,
                    key->text, (const char *)why);
}

/* Names of modules come from the file, so PCRE2 checks that they are UTF-8. */
static err key_matches(bool *out, const struct adapter_config_key *key, const char *module)
{
    pcre2_match_context *context = pcre2_match_context_create(NULL);
    pcre2_match_data *match = pcre2_match_data_create(1, NULL);
    int code = PCRE2_ERROR_NOMEMORY;
    if (context && match) {
        pcre2_set_match_limit(context, EXPRESSION_STEPS);
        pcre2_set_heap_limit(context, EXPRESSION_HEAP_KB);
        code = pcre2_match(key->expression, (PCRE2_SPTR)module, PCRE2_ZERO_TERMINATED, 0, 0, match,
                           context);
    }
    pcre2_match_data_free(match);
    pcre2_match_context_free(context);
    *out = code >= 0;
    if (code >= 0 || code == PCRE2_ERROR_NOMATCH) return ERR_NONE;
    return err_make(ERR_INPUT, "\"%.100s\" takes more than %d steps on module %s", key->text,
                    EXPRESSION_STEPS, module);
}

err adapter_config_pattern_read(struct adapter_config_pattern *out, const json_t *object,
                                bool expressions, const char *where, struct arena *arena)
{
    if (!object || json_is_null(object)) return ERR_NONE;
    if (!json_is_object(object)) return err_make(ERR_INPUT, "%s: expected a map", where);
    size_t n = json_object_size(object);
    if (n > PATTERN_KEYS_MAX)
        return err_make(ERR_INPUT, "%s: %zu keys, expected at most %d", where, n, PATTERN_KEYS_MAX);
    TRY(arena_take(&out->key, arena, n, sizeof *out->key));
    size_t found = 0;
    const char *text;
    json_t *value;
    json_object_foreach((json_t *)(uintptr_t)object, text, value)
    {
        struct adapter_config_key *key = &out->key[out->count];
        double number = json_number_value(value);
        if (!json_is_number(value) || !(number > 0) || !isfinite(number))
            return err_make(ERR_INPUT, "%s: \"%.100s\": expected a number above zero", where, text);
        key->value = number;
        TRY(arena_text(&key->text, arena, text, strlen(text)));
        if (!is_plain(text)) {
            if (!expressions)
                return err_make(ERR_INPUT, "%s: \"%.100s\": expected (the end of) a module's name",
                                where, text);
            if (found++ == EXPRESSIONS_MAX)
                return err_make(ERR_INPUT, "%s: more than %d keys are regular expressions", where,
                                EXPRESSIONS_MAX);
            TRY(key_compile(key, where));
        }
        out->count++;
    }
    return ERR_NONE;
}

void adapter_config_pattern_close(struct adapter_config_pattern *pattern)
{
    for (size_t i = 0; i < pattern->count; i++)
        pcre2_code_free(pattern->key[i].expression);
    *pattern = (struct adapter_config_pattern){0};
}

err adapter_config_pattern_find(double *out, const struct adapter_config_pattern *pattern,
                                const char *module, double otherwise)
{
    *out = otherwise;
    for (size_t i = 0; i < pattern->count; i++) {
        const struct adapter_config_key *key = &pattern->key[i];
        bool found = false;
        if (key->expression)
            TRY(key_matches(&found, key, module));
        else
            found = plain_matches(key->text, module);
        if (!found) continue;
        *out = key->value;
        break;
    }
    return ERR_NONE;
}

/* ---- reading ---- */

static bool is_set(const json_t *value)
{
    return value && !json_is_null(value) && !json_is_false(value) &&
           !(json_is_object(value) && json_object_size(value) == 0) &&
           !(json_is_array(value) && json_array_size(value) == 0) &&
           !(json_is_string(value) && json_string_length(value) == 0);
}

/* Some initialisations subtract the initial B A from the base, so the adapter is right only on that
 * changed base. save_pretrained(path_initial_model_for_weight_conversion) undoes this; PEFT then
 * writes `true` here. */
static err refuse_changed_base(const json_t *config, const char *path)
{
    static const char *const harmless[] = {"gaussian", "eva", "orthogonal", "mica"};
    const json_t *value = json_object_get(config, "init_lora_weights");
    if (!json_is_string(value)) return ERR_NONE;
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (strcmp(json_string_value(value), harmless[i]) == 0) return ERR_NONE;
    return err_make(
        ERR_INPUT,
        "%s: init_lora_weights \"%.60s\" changes the base, which is not supported; convert "
        "the adapter to plain LoRA when saving it",
        path, json_string_value(value));
}

/* Refuses settings that make the adapter another function than the one in adapter_file.h. */
static err refuse_others(const json_t *config, const char *path)
{
    static const struct {
        const char *key, *what;
    } other[] = {
        {"use_qalora", "QALoRA"},
        {"use_bdlora", "BD-LoRA"},
        {"lora_bias", "a bias on B"},
        {"loftq_config", "LoftQ, which changes the base,"},
        {"ensure_weight_tying", "tied adapters"},
        {"layer_replication", "replicated layers"},
        {"trainable_token_indices", "trained token embeddings"},
        {"alora_invocation_tokens", "an activated LoRA"},
        {"arrow_config", "Arrow routing"},
        {"target_parameters", "adapted parameters that are no modules"},
        {"velora_config", "VeLoRA"},
        {"monteclora_config", "MonteCLoRA"},
        {"kasa_config", "KaSA"},
    };
    const char *type = NULL;
    TRY(json_get_str(&type, config, "peft_type", path));
    if (strcmp(type, "LORA") != 0)
        return err_make(ERR_INPUT, "%s: peft_type \"%.60s\" is not supported; expected LORA", path,
                        type);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (is_set(json_object_get(config, other[i].key)))
            return err_make(ERR_INPUT, "%s: %s: %s is not supported", path, other[i].key,
                            other[i].what);
    return refuse_changed_base(config, path);
}

static err arena_json(const char **out, struct arena *arena, const json_t *value)
{
    struct bytes text = {.max = PATTERN_TEXT_MAX};
    err e = json_write(&text, value);
    if (!err_is(e)) e = arena_text(out, arena, (const char *)text.data, text.size);
    bytes_close(&text);
    return e;
}

static err patterns_read(struct adapter_config *c, const json_t *config, const char *path)
{
    char where[LIMIT_PATH_BYTES + 32];
    const json_t *ranks = json_object_get(config, "rank_pattern");
    const json_t *alphas = json_object_get(config, "alpha_pattern");
    const json_t *targets = json_object_get(config, "target_modules");
    snprintf(where, sizeof where, "%s: rank_pattern", path);
    TRY(adapter_config_pattern_read(&c->rank, ranks, true, where, &c->arena));
    snprintf(where, sizeof where, "%s: alpha_pattern", path);
    TRY(adapter_config_pattern_read(&c->alphas, alphas, true, where, &c->arena));
    c->alpha_text = c->target_modules = c->base_path = "";
    if (is_set(alphas)) TRY(arena_json(&c->alpha_text, &c->arena, alphas));
    if (targets && !json_is_null(targets)) TRY(arena_json(&c->target_modules, &c->arena, targets));
    return ERR_NONE;
}

/* The tensors saved whole in addition to A and B. */
static err saved_read(struct adapter_config *c, const json_t *config, const char *path)
{
    const json_t *list = json_object_get(config, "modules_to_save");
    const char *bias = "none";
    TRY(json_opt_str(&bias, config, "bias", path));
    if (strcmp(bias, "none") != 0 && strcmp(bias, "lora_only") != 0 && strcmp(bias, "all") != 0)
        return err_make(ERR_INPUT, "%s: bias \"%.60s\", expected none, lora_only or all", path,
                        bias);
    TRY(arena_text(&c->bias, &c->arena, bias, strlen(bias)));
    c->save_text = "";
    if (!is_set(list)) return ERR_NONE;
    TRY(arena_json(&c->save_text, &c->arena, list));
    TRY(arena_take(&c->save, &c->arena, json_array_size(list), sizeof *c->save));
    for (; c->save_count < json_array_size(list); c->save_count++) {
        const json_t *item = json_array_get(list, c->save_count);
        if (!json_is_string(item) || json_string_length(item) == 0) break;
        TRY(arena_text(&c->save[c->save_count], &c->arena, json_string_value(item),
                       json_string_length(item)));
    }
    if (c->save_count == 0 || c->save_count < json_array_size(list))
        return err_make(ERR_INPUT, "%s: modules_to_save: expected a list of names", path);
    return ERR_NONE;
}

static err config_read(struct adapter_config *c, const json_t *config, const char *path)
{
    int64_t r = 0;
    TRY(refuse_others(config, path));
    TRY(json_get_int(&r, config, "r", 1, LIMIT_RANK, path));
    c->r = (uint32_t)r;
    TRY(json_get_num(&c->alpha, config, "lora_alpha", path));
    if (!(c->alpha > 0) || !isfinite(c->alpha))
        return err_make(ERR_INPUT, "%s: lora_alpha %g, expected a number above zero", path,
                        c->alpha);
    TRY(json_opt_bool(&c->rslora, config, "use_rslora", path));
    TRY(json_opt_bool(&c->fan_in_fan_out, config, "fan_in_fan_out", path));
    TRY(json_opt_bool(&c->dora, config, "use_dora", path));
    TRY(patterns_read(c, config, path));
    TRY(saved_read(c, config, path));
    const char *base = "", *task = "";
    TRY(json_opt_str(&base, config, "base_model_name_or_path", path));
    TRY(json_opt_str(&task, config, "task_type", path));
    TRY(arena_text(&c->task_type, &c->arena, task, strlen(task)));
    return arena_text(&c->base_path, &c->arena, base, strlen(base));
}

err adapter_config_open(struct adapter_config *out, const char *path)
{
    json_t *config = NULL;
    struct adapter_config c = {0};
    TRY(json_open(&config, path, PATTERN_TEXT_MAX * 4));
    err e = config_read(&c, config, path);
    json_decref(config);
    if (err_is(e)) {
        adapter_config_close(&c);
        return e;
    }
    *out = c;
    return ERR_NONE;
}

void adapter_config_close(struct adapter_config *config)
{
    adapter_config_pattern_close(&config->rank);
    adapter_config_pattern_close(&config->alphas);
    arena_close(&config->arena);
    *config = (struct adapter_config){0};
}

/* ---- writing ---- */

/* The value that most modules have, so that the pattern has the fewest entries. In a tie the module
 * of the smallest name decides, so that the same content gives the same text. */
static double commonest(const struct adapter_file_module *module, size_t count, bool alpha)
{
    double best = 0;
    size_t most = 0;
    for (size_t i = 0; i < count; i++) {
        double value = alpha ? module[i].alpha : module[i].rank;
        size_t same = 0;
        bool seen = false;
        for (size_t j = 0; j < count && !seen; j++) {
            bool equal = (alpha ? module[j].alpha : module[j].rank) == value;
            seen = equal && j < i;
            same += equal;
        }
        if (!seen && same > most) {
            most = same;
            best = value;
        }
    }
    return best;
}

/* Keys are whole module names, so each matches its own module. That '.' matches any character does
 * no harm, because no two modules of a model differ only in a dot. */
static err pattern_make(json_t *object, const struct adapter_file_meta *meta,
                        const struct adapter_file_module *module, size_t count, bool alpha)
{
    char name[LIMIT_TENSOR_NAME_BYTES];
    double usual = commonest(module, count, alpha);
    for (size_t i = 0; i < count; i++) {
        double value = alpha ? module[i].alpha : module[i].rank;
        if (value == usual) continue;
        json_t *number = value == floor(value) && value < 1e15 ? json_integer((json_int_t)value)
                                                               : json_real(value);
        err e = adapter_name_rooted(name, module[i].name, meta->root);
        if (err_is(e)) {
            json_decref(number);
            return e;
        }
        if (!number || json_object_set_new(object, name, number) != 0)
            return err_make(ERR_MACHINE, "no memory for a configuration");
    }
    return ERR_NONE;
}

static err config_pack(json_t *config, const struct adapter_file_meta *meta,
                       const struct adapter_file_module *module, size_t count)
{
    double rank = commonest(module, count, false), alpha = commonest(module, count, true);
    json_t *targets = json_array(), *ranks = json_object(), *alphas = json_object();
    bool ok = json_object_set_new(config, "target_modules", targets) == 0;
    ok = json_object_set_new(config, "rank_pattern", ranks) == 0 && ok;
    ok = json_object_set_new(config, "alpha_pattern", alphas) == 0 && ok;
    bool dora = false;
    for (size_t i = 0; ok && i < count; i++) {
        char name[LIMIT_TENSOR_NAME_BYTES];
        TRY(adapter_name_rooted(name, module[i].name, meta->root));
        ok = json_array_append_new(targets, json_string(name)) == 0;
        dora = dora || module[i].magnitude.f32;
    }
    bool named = meta->base_path && *meta->base_path;
    ok = json_object_set_new(config, "base_model_name_or_path",
                             named ? json_string(meta->base_path) : json_null()) == 0 &&
         ok;
    static const char *const null_keys[] = {"auto_mapping",      "revision",
                                            "layers_pattern",    "layers_to_transform",
                                            "layer_replication", "exclude_modules"};
    for (size_t i = 0; i < sizeof null_keys / sizeof *null_keys; i++)
        ok = json_object_set_new(config, null_keys[i], json_null()) == 0 && ok;
    json_t *values =
        json_pack("{s:s, s:s, s:s, s:i, s:f, s:b, s:b, s:b, s:b, s:b, s:f, s:b, s:{}}", "peft_type",
                  "LORA", "task_type", meta->task_type ? meta->task_type : "CAUSAL_LM", "bias",
                  meta->bias && *meta->bias ? meta->bias : "none", "r", (int)rank, "lora_alpha",
                  alpha, "use_rslora", (int)meta->rslora, "use_dora", (int)dora, "fan_in_fan_out",
                  (int)meta->fan_in_fan_out, "inference_mode", 1, "lora_bias", 0, "lora_dropout",
                  0.0, "init_lora_weights", 1, "loftq_config");
    ok = ok && values && json_object_update(config, values) == 0;
    json_decref(values);
    if (ok && meta->task_type && !*meta->task_type)
        ok = json_object_set_new(config, "task_type", json_null()) == 0;
    bool saves = meta->modules_to_save && *meta->modules_to_save;
    if (ok)
        ok = json_object_set_new(config, "modules_to_save",
                                 saves ? json_loads(meta->modules_to_save, 0, NULL)
                                       : json_null()) == 0;
    if (ok && alpha == floor(alpha) && alpha < 1e15)
        ok = json_object_set_new(config, "lora_alpha", json_integer((json_int_t)alpha)) == 0;
    if (!ok) return err_make(ERR_MACHINE, "no memory for a configuration");
    TRY(pattern_make(ranks, meta, module, count, false));
    return pattern_make(alphas, meta, module, count, true);
}

err adapter_config_write(struct bytes *out, const struct adapter_file_meta *meta,
                         const struct adapter_file_module *module, size_t count)
{
    json_t *config = json_object();
    err e = config ? config_pack(config, meta, module, count)
                   : err_make(ERR_MACHINE, "no memory for a configuration");
    if (!err_is(e)) {
        char *text = json_dumps(config, JSON_INDENT(1) | JSON_SORT_KEYS | JSON_REAL_PRECISION(17));
        e = text ? bytes_printf(out, "%s\n", text)
                 : err_make(ERR_MACHINE, "no memory for a configuration");
        free(text);
    }
    json_decref(config);
    return e;
}
