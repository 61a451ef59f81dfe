/* Reads config.json of a Hugging Face directory into struct arch, in the style before transformers
 * 5 (rope_theta and rope_scaling) and since then (rope_parameters). Absent fields have the defaults
 * of the family's configuration class in transformers. */
#include "base/json.h"
#include "engine/model/model_build.h"

#include <stdio.h>
#include <string.h>

#define CONFIG_BYTES_MAX (4u << 20)

struct config {
    const json_t *root;
    const char *where; /* the file's path, for errors */
};

static err refuse(const struct config *c, const char *key, const char *value, const char *expected)
{
    return err_make(ERR_INPUT, "%s: %s \"%s\": expected %s", c->where, key, value, expected);
}

/* Absent or null leaves *out unchanged. */
static err opt_u32(uint32_t *out, const struct config *c, const char *key)
{
    int64_t value = *out;
    TRY(json_opt_int(&value, c->root, key, 0, UINT32_MAX, c->where));
    *out = (uint32_t)value;
    return ERR_NONE;
}

static err get_u32(uint32_t *out, const struct config *c, const char *key)
{
    int64_t value;
    TRY(json_get_int(&value, c->root, key, 0, UINT32_MAX, c->where));
    *out = (uint32_t)value;
    return ERR_NONE;
}

static err read_family(const struct family **out, const struct config *c)
{
    const char *type = NULL;
    char known[FAMILY_LIST_BYTES];
    TRY(json_get_str(&type, c->root, "model_type", c->where));
    family_list(known);
    const struct family *found = family_find(type);
    if (found == NULL) return refuse(c, "model_type", type, known);
    *out = found;
    return ERR_NONE;
}

/* Refuses settings that change the computed function and that the engine does not implement.
 * Ignoring one would train and evaluate a different model without any sign of it. */
static err refuse_unknown(const struct config *c)
{
    const char *act = "silu", *method = "unknown", *base = NULL;
    const json_t *quantization = json_object_get(c->root, "quantization_config");
    double rotary = 1;
    TRY(json_opt_str(&act, c->root, "hidden_act", c->where));
    if (strcmp(act, "silu") != 0 && strcmp(act, "swish") != 0)
        return refuse(c, "hidden_act", act, "silu");
    if (quantization != NULL && !json_is_null(quantization)) {
        TRY(json_opt_str(&method, quantization, "quant_method", c->where));
        TRY(json_opt_str(&base, c->root, "_name_or_path", c->where));
        return model_refuse_quantised(c->where, method, base);
    }
    TRY(json_opt_num(&rotary, c->root, "partial_rotary_factor", c->where));
    if (rotary != 1)
        return err_make(ERR_INPUT, "%s: partial_rotary_factor %g: expected 1", c->where, rotary);
    return ERR_NONE;
}

/* hidden_size must be a multiple of the number of heads only if the head dimension is derived from
 * it; Qwen3 and some Llama models state head_dim on its own. */
static err read_shape(struct arch *a, const struct config *c)
{
    TRY(get_u32(&a->layers, c, "num_hidden_layers"));
    TRY(get_u32(&a->d_model, c, "hidden_size"));
    TRY(get_u32(&a->d_ffn, c, "intermediate_size"));
    TRY(get_u32(&a->heads, c, "num_attention_heads"));
    TRY(get_u32(&a->vocab, c, "vocab_size"));
    if (a->heads == 0 || a->layers > LIMIT_LAYERS)
        return err_make(ERR_INPUT, "%s: %u heads in %u layers: expected 1 or more in at most %d",
                        c->where, a->heads, a->layers, LIMIT_LAYERS);
    /* An explicit null means as many key/value heads as heads; an absent key means the default of
     * the class. */
    a->kv_heads = a->heads;
    if (json_object_get(c->root, "num_key_value_heads") == NULL && a->family->kv_heads > 0)
        a->kv_heads = a->family->kv_heads;
    TRY(opt_u32(&a->kv_heads, c, "num_key_value_heads"));
    a->head_dim = a->family->head_dim > 0 ? a->family->head_dim : a->d_model / a->heads;
    TRY(opt_u32(&a->head_dim, c, "head_dim"));
    if (json_object_get(c->root, "head_dim") == NULL && a->family->head_dim == 0 &&
        a->d_model % a->heads != 0)
        return err_make(ERR_INPUT, "%s: hidden_size %u is no multiple of num_attention_heads %u",
                        c->where, a->d_model, a->heads);
    a->max_positions = 2048;
    TRY(opt_u32(&a->max_positions, c, "max_position_embeddings"));
    double eps = 1e-6;
    TRY(json_opt_num(&eps, c->root, "rms_norm_eps", c->where));
    a->rms_eps = (float)eps;
    return ERR_NONE;
}

/* Whether a family has a bias that config.json may configure. */
static bool has_bias(enum family_bias rule, bool configured)
{
    return rule == FAMILY_BIAS_ALWAYS || (rule == FAMILY_BIAS_OPTIONAL && configured);
}

/* transformers ignores attention_bias and mlp_bias where the model class has no such option, so
 * they are ignored here as well. */
static err read_switches(struct arch *a, const struct config *c)
{
    const struct family *f = a->family;
    bool attention = false, mlp = false;
    TRY(json_opt_bool(&a->tied, c->root, "tie_word_embeddings", c->where));
    TRY(json_opt_bool(&attention, c->root, "attention_bias", c->where));
    TRY(json_opt_bool(&mlp, c->root, "mlp_bias", c->where));
    a->qkv_bias = has_bias(f->qkv_bias, attention);
    a->o_bias = has_bias(f->o_bias, attention);
    a->mlp_bias = has_bias(f->mlp_bias, mlp);
    a->qk_norm = f->qk_norm;
    return ERR_NONE;
}

/* The factors have no defaults in transformers, so a missing one is an error; the original length
 * has one. */
static err read_llama3(struct rope *r, const json_t *rope, const struct config *c)
{
    int64_t original = 0;
    r->kind = ROPE_LLAMA3;
    TRY(json_get_num(&r->factor, rope, "factor", c->where));
    TRY(json_get_num(&r->low_freq_factor, rope, "low_freq_factor", c->where));
    TRY(json_get_num(&r->high_freq_factor, rope, "high_freq_factor", c->where));
    /* Without original_max_position_embeddings transformers uses the limit of the model. */
    TRY(json_opt_int(&original, c->root, "max_position_embeddings", 1, UINT32_MAX, c->where));
    TRY(json_opt_int(&original, rope, "original_max_position_embeddings", 1, UINT32_MAX, c->where));
    r->original_positions = (uint32_t)original;
    return ERR_NONE;
}

/* The old style has rope_theta and rope_scaling side by side, the new one has rope_parameters with
 * both. If a file has both styles, rope_parameters is read for the scaling only if rope_scaling
 * is empty. Frequencies that differ between layers (Gemma 3) are refused, because struct arch has
 * one set for all layers. */
static err read_rope(struct rope *r, const struct config *c)
{
    const json_t *rope = json_object_get(c->root, "rope_scaling");
    const char *type = "default";
    double rotary = 1;
    r->theta = 10000;
    TRY(json_opt_num(&r->theta, c->root, "rope_theta", c->where));
    if (!json_is_object(rope) || json_object_size(rope) == 0)
        rope = json_object_get(c->root, "rope_parameters");
    if (rope == NULL || json_is_null(rope)) return ERR_NONE;
    if (!json_is_object(rope))
        return err_make(ERR_INPUT, "%s: rope_parameters: expected an object", c->where);
    if (json_is_object(json_object_get(rope, "full_attention")) ||
        json_is_object(json_object_get(rope, "sliding_attention")))
        return err_make(ERR_INPUT, "%s: rope_parameters differ by layer: expected one for all",
                        c->where);
    TRY(json_opt_num(&r->theta, rope, "rope_theta", c->where));
    TRY(json_opt_num(&rotary, rope, "partial_rotary_factor", c->where));
    if (rotary != 1)
        return err_make(ERR_INPUT, "%s: partial_rotary_factor %g: expected 1", c->where, rotary);
    TRY(json_opt_str(&type, rope, "type", c->where));
    TRY(json_opt_str(&type, rope, "rope_type", c->where));
    if (strcmp(type, "default") == 0) return ERR_NONE;
    if (strcmp(type, "llama3") == 0) return read_llama3(r, rope, c);
    if (strcmp(type, "linear") != 0)
        return refuse(c, "rope_type", type, "default, linear or llama3");
    r->kind = ROPE_LINEAR;
    return json_get_num(&r->factor, rope, "factor", c->where);
}

/* The layers with a window when there are no layer_types: all of them, or with a switch those from
 * max_window_layers on (28 in transformers' classes). */
static err windows_by_default(struct model *m, const struct config *c)
{
    uint32_t first = 0;
    if (m->arch.family->window == FAMILY_WINDOW_SWITCHED) {
        first = 28;
        TRY(opt_u32(&first, c, "max_window_layers"));
    }
    for (uint32_t i = first; i < m->arch.layers; i++)
        m->layer[i].window = m->arch.window;
    return ERR_NONE;
}

/* layer_types names the layers with a window one by one; only families with a switch have it. A
 * layer_types entry other than full_attention and sliding_attention would be another kind of
 * attention, so it is refused. */
static err read_windows(struct model *m, const struct config *c)
{
    struct arch *a = &m->arch;
    bool switched = a->family->window == FAMILY_WINDOW_SWITCHED, used = !switched;
    if (a->family->window == FAMILY_WINDOW_NEVER) return ERR_NONE;
    if (switched) TRY(json_opt_bool(&used, c->root, "use_sliding_window", c->where));
    if (used) {
        const json_t *given = json_object_get(c->root, "sliding_window");
        a->window = given != NULL && json_is_null(given) ? 0 : 4096;
        TRY(opt_u32(&a->window, c, "sliding_window"));
    }
    const json_t *types = json_object_get(c->root, "layer_types");
    if (types == NULL || json_is_null(types) || !switched) return windows_by_default(m, c);
    if (json_array_size(types) != a->layers)
        return err_make(ERR_INPUT, "%s: layer_types: expected a list of %u", c->where, a->layers);
    for (uint32_t i = 0; i < a->layers; i++) {
        const char *type = json_string_value(json_array_get(types, i));
        bool sliding = type != NULL && strcmp(type, "sliding_attention") == 0;
        if (!sliding && (type == NULL || strcmp(type, "full_attention") != 0))
            return refuse(c, "layer_types", type ? type : "?",
                          "full_attention or sliding_attention");
        if (sliding && a->window == 0)
            return err_make(ERR_INPUT,
                            "%s: layer_types has sliding_attention, but sliding_window is off",
                            c->where);
        m->layer[i].window = sliding ? a->window : 0;
    }
    return ERR_NONE;
}

static void add_eos(struct model *m, const json_t *value)
{
    if (!json_is_integer(value) || m->eos_count == MODEL_EOS_MAX) return;
    json_int_t id = json_integer_value(value);
    if (id < 0 || id >= m->arch.vocab) return;
    for (uint32_t i = 0; i < m->eos_count; i++)
        if (m->eos[i] == (int32_t)id) return;
    m->eos[m->eos_count++] = (int32_t)id;
}

/* Token ids of config.json or generation_config.json. An id outside the vocabulary counts as
 * absent, because some published configurations have such pad ids. eos_token_id may be one id or a
 * list. */
static void read_tokens(struct model *m, const json_t *root)
{
    const json_t *eos = json_object_get(root, "eos_token_id");
    const char *const keys[2] = {"bos_token_id", "pad_token_id"};
    int32_t *const ids[2] = {&m->bos, &m->pad};
    for (int i = 0; i < 2; i++) {
        const json_t *value = json_object_get(root, keys[i]);
        if (json_is_integer(value) && json_integer_value(value) >= 0 &&
            json_integer_value(value) < m->arch.vocab)
            *ids[i] = (int32_t)json_integer_value(value);
    }
    add_eos(m, eos);
    for (size_t i = 0; i < json_array_size(eos); i++)
        add_eos(m, json_array_get(eos, i));
}

/* Instruction models often declare their end-of-turn token only in generation_config.json, so its
 * ids are added to those of config.json. */
static err read_generation(struct model *m, const char *directory)
{
    char path[LIMIT_PATH_BYTES];
    json_t *root = NULL;
    TRY(file_join(path, sizeof path, directory, "generation_config.json"));
    if (!file_exists(path)) return ERR_NONE;
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    read_tokens(m, root);
    json_decref(root);
    return ERR_NONE;
}

/* The windows come last: they need the number of layers and the layers themselves, which are
 * allocated only after the sizes have been checked against the limits. */
static err read_root(struct model *m, const struct config *c)
{
    if (!json_is_object(c->root)) return err_make(ERR_INPUT, "%s: expected an object", c->where);
    TRY(read_family(&m->arch.family, c));
    TRY(refuse_unknown(c));
    TRY(read_shape(&m->arch, c));
    TRY(read_switches(&m->arch, c));
    TRY(read_rope(&m->arch.rope, c));
    err e = model_check_arch(&m->arch);
    if (err_is(e)) return err_in(e, "%s", c->where);
    TRY(model_take_layers(m));
    TRY(read_windows(m, c));
    read_tokens(m, c->root);
    return ERR_NONE;
}

/* The JSON document is freed before returning: struct arch holds numbers only. */
err model_config_read(struct model *m, const char *directory)
{
    char path[LIMIT_PATH_BYTES];
    json_t *root = NULL;
    TRY(file_join(path, sizeof path, directory, "config.json"));
    if (!file_exists(path))
        return err_make(
            ERR_INPUT,
            "%s: contains no config.json; a base model is a Hugging Face directory or a .gguf file",
            directory);
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    err e = read_root(m, &(struct config){.root = root, .where = path});
    json_decref(root);
    if (err_is(e)) return e;
    return read_generation(m, directory);
}

/* ---- sizes alone ---- */

/* Rows of a family that this program does not know: biases and norms are left out, because their
 * few values do not matter in a plan. */
static const struct family other_family = {.model_type = "", .hf_class = "", .gguf = ""};

/* Experts multiply the weights of the feed-forward blocks, which these sizes do not tell. */
static err refuse_experts(const struct config *c)
{
    static const char *const keys[] = {"num_experts", "num_local_experts", "n_routed_experts"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        int64_t experts = 0;
        TRY(json_opt_int(&experts, c->root, keys[i], 0, UINT32_MAX, c->where));
        if (experts > 1)
            return err_make(ERR_INPUT, "%s: %s %lld: expected a model without experts", c->where,
                            keys[i], (long long)experts);
    }
    return ERR_NONE;
}

static err read_dtype(enum dtype *out, const struct config *c)
{
    const char *name = "bfloat16";
    TRY(json_opt_str(&name, c->root, "torch_dtype", c->where));
    TRY(json_opt_str(&name, c->root, "dtype", c->where));
    *out = !strcmp(name, "float32") ? DTYPE_F32 : !strcmp(name, "float16") ? DTYPE_F16 : DTYPE_BF16;
    return ERR_NONE;
}

static err read_sizes(struct model *m, enum dtype *dtype, const struct config *c)
{
    const char *type = "";
    struct arch *a = &m->arch;
    if (!json_is_object(c->root)) return err_make(ERR_INPUT, "%s: expected an object", c->where);
    TRY(json_get_str(&type, c->root, "model_type", c->where));
    a->family = family_find(type);
    if (!a->family) a->family = &other_family;
    TRY(refuse_experts(c));
    TRY(read_shape(a, c));
    TRY(read_switches(a, c));
    a->rope = (struct rope){.theta = 10000};
    err e = model_check_arch(a);
    if (err_is(e)) return err_in(e, "%s", c->where);
    return read_dtype(dtype, c);
}

err model_config_check(const char *path)
{
    struct model m = {.bos = -1, .pad = -1};
    json_t *root = NULL;
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    err e = read_root(&m, &(struct config){.root = root, .where = path});
    json_decref(root);
    arena_close(&m.arena);
    return e;
}

err model_config_shapes(struct model *m, enum dtype *dtype, const char *path)
{
    json_t *root = NULL;
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    err e = read_sizes(m, dtype, &(struct config){.root = root, .where = path});
    json_decref(root);
    return e;
}
