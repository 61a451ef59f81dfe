/* Reads config.json of a Hugging Face directory into struct arch. Absent fields have the defaults
 * of the family's configuration class in transformers. */
#include "engine/model/model_config.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define CONFIG_BYTES_MAX (4u << 20)

err config_refuse(const struct model_config *c, const char *key, const char *value,
                  const char *expected)
{
    return err_make(ERR_INPUT, "%s: %s \"%s\": expected %s", c->where, key, value, expected);
}

err config_opt_u32(uint32_t *out, const struct model_config *c, const char *key)
{
    int64_t value = *out;
    TRY(json_opt_int(&value, c->root, key, 0, UINT32_MAX, c->where));
    *out = (uint32_t)value;
    return ERR_NONE;
}

/* A size with a default of the family; without one (0) the key is required. */
static err get_u32(uint32_t *out, const struct model_config *c, const char *key,
                   uint32_t by_default)
{
    int64_t value = by_default;
    if (by_default > 0)
        TRY(json_opt_int(&value, c->root, key, 0, UINT32_MAX, c->where));
    else
        TRY(json_get_int(&value, c->root, key, 0, UINT32_MAX, c->where));
    *out = (uint32_t)value;
    return ERR_NONE;
}

/* The description of the language model: the whole file, or text_config in the file of a model that
 * also reads images. */
static err read_family(const struct family **out, struct model_config *c)
{
    const char *type = NULL;
    char known[FAMILY_LIST_BYTES];
    TRY(json_get_str(&type, c->root, "model_type", c->where));
    family_list(known);
    const struct family *found = family_find(type), *inside = family_find_wrapper(type);
    if (found == NULL && inside == NULL) return config_refuse(c, "model_type", type, known);
    *out = found != NULL ? found : inside;
    if (found != NULL) return ERR_NONE;
    const json_t *text = json_object_get(c->root, "text_config");
    if (!json_is_object(text))
        return err_make(ERR_INPUT, "%s: text_config: expected an object in a \"%s\" model",
                        c->where, type);
    type = inside->model_type;
    TRY(json_opt_str(&type, text, "model_type", c->where));
    if (strcmp(type, inside->model_type) != 0)
        return config_refuse(c, "text_config: model_type", type, inside->model_type);
    c->root = text;
    return ERR_NONE;
}

/* Keys that change the function in the families that know them, or in models with code of their
 * own. transformers ignores them in any other family, but such a file was made for a model that
 * does not. */
static err refuse_foreign(const struct family *f, const struct model_config *c)
{
    const struct {
        const char *key;
        bool known;
        double neutral;
    } key[] = {
        {"attn_logit_softcapping", f->caps, 0},
        {"final_logit_softcapping", f->caps, 0},
        {"embedding_multiplier", f->multipliers, 1},
        {"residual_multiplier", f->multipliers, 1},
        {"logits_scaling", f->multipliers, 1},
        {"logit_scale", false, 1},
        {"scale_emb", false, 1},
        {"scale_depth", false, 1},
        {"clip_qkv", false, 0},
        {"use_bidirectional_attention", false, 0},
        {"qk_layernorm", false, 0},
        {"use_qk_norm", f->qk_norm != QK_NORM_NONE, 0},
        {"attention_chunk_size", false, 0},
        {"num_experts", false, 0},
        {"num_local_experts", false, 0},
        {"n_routed_experts", false, 0},
        {"kv_lora_rank", false, 0},
    };
    for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
        const json_t *value = json_object_get(c->root, key[i].key);
        double number = json_is_true(value) ? 1 : json_number_value(value);
        if (key[i].known || value == NULL || json_is_null(value) || number == key[i].neutral)
            continue;
        return err_make(ERR_INPUT,
                        "%s: %s changes the function of the model, and a \"%s\" model has no such "
                        "part: this base is not supported",
                        c->where, key[i].key, f->model_type);
    }
    return ERR_NONE;
}

static err refuse_quantised(const struct model_config *c)
{
    const char *method = "unknown", *base = NULL;
    const json_t *quantization = json_object_get(c->root, "quantization_config");
    if (quantization == NULL || json_is_null(quantization)) return ERR_NONE;
    TRY(json_opt_str(&method, quantization, "quant_method", c->where));
    TRY(json_opt_str(&base, c->root, "_name_or_path", c->where));
    return model_refuse_quantised(c->where, method, base);
}

static err read_activation(struct arch *a, const struct model_config *c)
{
    static const struct {
        const char *name;
        enum activation activation;
    } known[] = {{"silu", ACTIVATION_SILU},
                 {"swish", ACTIVATION_SILU},
                 {"gelu_pytorch_tanh", ACTIVATION_GELU_TANH}};
    const char *key = a->family->activation_key ? a->family->activation_key : "hidden_act";
    const char *name = NULL;
    a->activation = a->family->activation;
    TRY(json_opt_str(&name, c->root, key, c->where));
    for (size_t i = 0; name != NULL && i < sizeof known / sizeof *known; i++)
        if (strcmp(name, known[i].name) == 0) {
            a->activation = known[i].activation;
            return ERR_NONE;
        }
    return name == NULL ? ERR_NONE : config_refuse(c, key, name, "silu or gelu_pytorch_tanh");
}

/* hidden_size must be a multiple of the number of heads only if the head dimension is derived from
 * it; Qwen3 and some Llama models state head_dim on its own. */
static err read_shape(struct arch *a, const struct model_config *c)
{
    const struct family_defaults *d = &a->family->by_default;
    TRY(get_u32(&a->layers, c, "num_hidden_layers", d->layers));
    TRY(get_u32(&a->d_model, c, "hidden_size", d->d_model));
    TRY(get_u32(&a->d_ffn, c, "intermediate_size", d->d_ffn));
    TRY(get_u32(&a->heads, c, "num_attention_heads", d->heads));
    TRY(get_u32(&a->vocab, c, "vocab_size", d->vocab));
    if (a->heads == 0 || a->layers > LIMIT_LAYERS)
        return err_make(ERR_INPUT, "%s: %u heads in %u layers: expected 1 or more in at most %d",
                        c->where, a->heads, a->layers, LIMIT_LAYERS);
    /* An explicit null means as many key/value heads as heads; an absent key means the default of
     * the class. */
    a->kv_heads = a->heads;
    if (json_object_get(c->root, "num_key_value_heads") == NULL && d->kv_heads > 0)
        a->kv_heads = d->kv_heads;
    TRY(config_opt_u32(&a->kv_heads, c, "num_key_value_heads"));
    a->head_dim = d->head_dim > 0 ? d->head_dim : a->d_model / a->heads;
    TRY(config_opt_u32(&a->head_dim, c, "head_dim"));
    if (json_object_get(c->root, "head_dim") == NULL && d->head_dim == 0 &&
        a->d_model % a->heads != 0)
        return err_make(ERR_INPUT, "%s: hidden_size %u is no multiple of num_attention_heads %u",
                        c->where, a->d_model, a->heads);
    a->max_positions = d->max_positions > 0 ? d->max_positions : 2048;
    TRY(config_opt_u32(&a->max_positions, c, "max_position_embeddings"));
    double eps = d->rms_eps > 0 ? d->rms_eps : 1e-6;
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
static err read_switches(struct arch *a, const struct model_config *c)
{
    const struct family *f = a->family;
    bool attention = false, mlp = false;
    a->tied = f->by_default.tied;
    TRY(json_opt_bool(&a->tied, c->root, "tie_word_embeddings", c->where));
    TRY(json_opt_bool(&attention, c->root, "attention_bias", c->where));
    TRY(json_opt_bool(&mlp, c->root, "mlp_bias", c->where));
    a->qkv_bias = has_bias(f->qkv_bias, attention);
    a->o_bias = has_bias(f->o_bias, attention);
    a->mlp_bias = has_bias(f->mlp_bias, mlp);
    a->qk_norm = f->qk_norm;
    a->norms = f->norms;
    a->fused = f->fused;
    return read_activation(a, c);
}

/* A factor of struct arch: 0 where it is the usual value, so that a file that states this value and
 * one that does not describe the same model. */
static err get_factor(float *out, const struct model_config *c, const char *key, double by_default,
                      double usual)
{
    double value = by_default;
    TRY(json_opt_num(&value, c->root, key, c->where));
    if (!(isfinite(value) && value > 0))
        return err_make(ERR_INPUT, "%s: %s is %g, expected a positive number", c->where, key,
                        value);
    *out = (float)value == (float)usual ? 0 : (float)value;
    return ERR_NONE;
}

/* A cap that is null is off; one that is absent has the default of the class. */
static err get_cap(float *out, const struct model_config *c, const char *key, double by_default)
{
    const json_t *given = json_object_get(c->root, key);
    if ((given == NULL && by_default == 0) || (given != NULL && json_is_null(given)))
        return ERR_NONE;
    return get_factor(out, c, key, by_default, 0);
}

static err read_factors(struct arch *a, const struct model_config *c)
{
    const struct family *f = a->family;
    double usual = 1 / sqrt((double)a->head_dim), scalar = 256;
    if (f->embed_by_width) a->embed_scale = (float)sqrt((double)a->d_model);
    if (f->caps) {
        TRY(json_opt_num(&scalar, c->root, "query_pre_attn_scalar", c->where));
        if (!(isfinite(scalar) && scalar > 0))
            return err_make(ERR_INPUT, "%s: query_pre_attn_scalar is %g, expected more than 0",
                            c->where, scalar);
        a->attention_scale = scalar == a->head_dim ? 0 : (float)(1 / sqrt(scalar));
        if (f->by_default.attention_cap > 0) /* Gemma 3 has the key, but its class ignores it */
            TRY(get_cap(&a->attention_cap, c, "attn_logit_softcapping",
                        f->by_default.attention_cap));
        TRY(get_cap(&a->logit_cap, c, "final_logit_softcapping", f->by_default.logit_cap));
    }
    if (!f->multipliers) return ERR_NONE;
    float scaling = 0;
    TRY(get_factor(&a->embed_scale, c, "embedding_multiplier", 1, 1));
    TRY(get_factor(&a->residual_scale, c, "residual_multiplier", 1, 1));
    TRY(get_factor(&a->attention_scale, c, "attention_multiplier", 1, usual));
    TRY(get_factor(&scaling, c, "logits_scaling", 1, 1));
    a->logit_scale = scaling == 0 ? 0 : 1 / scaling;
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

/* A model with images states some settings of the whole beside text_config. */
static err read_outer(struct model *m, const struct model_config *outer,
                      const struct model_config *c)
{
    if (outer->root == c->root) return ERR_NONE;
    TRY(refuse_quantised(outer));
    return json_opt_bool(&m->arch.tied, outer->root, "tie_word_embeddings", c->where);
}

/* The layers come last: they are allocated only after the sizes have been checked against the
 * limits. */
static err read_root(struct model *m, const struct model_config *outer)
{
    struct model_config inner = *outer, *c = &inner;
    if (!json_is_object(c->root)) return err_make(ERR_INPUT, "%s: expected an object", c->where);
    TRY(read_family(&m->arch.family, c));
    TRY(refuse_quantised(c));
    TRY(refuse_foreign(m->arch.family, c));
    TRY(read_shape(&m->arch, c));
    TRY(read_switches(&m->arch, c));
    TRY(read_outer(m, outer, c));
    TRY(read_factors(&m->arch, c));
    TRY(config_read_rope(m, c));
    err e = model_check_arch(&m->arch);
    if (err_is(e)) return err_in(e, "%s", c->where);
    TRY(model_take_layers(m));
    TRY(config_read_layers(m, c));
    read_tokens(m, outer->root);
    if (outer->root != c->root) read_tokens(m, c->root);
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
    err e = read_root(m, &(struct model_config){.root = root, .where = path});
    json_decref(root);
    if (err_is(e)) return e;
    return read_generation(m, directory);
}

/* ---- sizes alone ---- */

/* Rows of a family that this program does not know: biases and norms are left out, because their
 * few values do not matter in a plan. */
static const struct family other_family = {.model_type = "", .hf_class = "", .gguf = ""};

/* Experts multiply the weights of the feed-forward blocks, which these sizes do not tell. */
static err refuse_experts(const struct model_config *c)
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

static err read_dtype(enum dtype *out, const struct model_config *c)
{
    const char *name = "bfloat16";
    TRY(json_opt_str(&name, c->root, "torch_dtype", c->where));
    TRY(json_opt_str(&name, c->root, "dtype", c->where));
    *out = !strcmp(name, "float32") ? DTYPE_F32 : !strcmp(name, "float16") ? DTYPE_F16 : DTYPE_BF16;
    return ERR_NONE;
}

static err read_sizes(struct model *m, enum dtype *dtype, struct model_config *c)
{
    const char *type = "";
    struct arch *a = &m->arch;
    if (!json_is_object(c->root)) return err_make(ERR_INPUT, "%s: expected an object", c->where);
    TRY(json_get_str(&type, c->root, "model_type", c->where));
    if (family_find(type) || family_find_wrapper(type))
        TRY(read_family(&a->family, c));
    else
        a->family = &other_family;
    TRY(refuse_experts(c));
    TRY(read_shape(a, c));
    TRY(read_switches(a, c));
    a->rope = a->window_rope = (struct rope){.theta = 10000};
    err e = model_check_arch(a);
    if (err_is(e)) return err_in(e, "%s", c->where);
    return read_dtype(dtype, c);
}

err model_config_check(const char *path)
{
    struct model m = {.bos = -1, .pad = -1};
    json_t *root = NULL;
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    err e = read_root(&m, &(struct model_config){.root = root, .where = path});
    json_decref(root);
    arena_close(&m.arena);
    return e;
}

err model_config_shapes(struct model *m, enum dtype *dtype, const char *path)
{
    json_t *root = NULL;
    TRY(json_open(&root, path, CONFIG_BYTES_MAX));
    struct model_config c = {.root = root, .where = path};
    err e = read_sizes(m, dtype, &c);
    json_decref(root);
    return e;
}
