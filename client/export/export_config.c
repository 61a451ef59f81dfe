/* config.json of a merged model whose base is a GGUF: client/export/export_parts.h. Each key has
 * its name in the configuration classes of transformers. Settings that these classes cannot express
 * are refused, because a loader would compute another function without an error. */
#include "base/json.h"
#include "client/export/export_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* An absent key would mean the default of the class, which is a token of another model. */
static json_t *id_json(int32_t id)
{
    return id >= 0 ? json_integer(id) : json_null();
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

static json_t *list_of(const float *value, uint32_t n)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < n; i++)
        json_array_append_new(list, json_real(shortest(value[i])));
    return list;
}

static double factor_or_1(float factor)
{
    return factor > 0 ? (double)factor : 1;
}

static json_t *yarn_json(const struct rope *r)
{
    return json_pack("{s:s, s:f, s:f, s:f, s:f, s:I, s:b}", "rope_type", "yarn", "factor",
                     r->factor, "beta_fast", r->beta_fast, "beta_slow", r->beta_slow,
                     "attention_factor", factor_or_1(r->attention_factor),
                     "original_max_position_embeddings", (json_int_t)r->original_positions,
                     "truncate", !r->untruncated);
}

static json_t *longrope_json(const struct rope *r, uint32_t rotated)
{
    return json_pack("{s:s, s:o, s:o, s:f, s:I}", "rope_type", "longrope", "short_factor",
                     list_of(r->factors, rotated / 2), "long_factor",
                     list_of(r->long_factors, rotated / 2), "attention_factor",
                     factor_or_1(r->attention_factor), "original_max_position_embeddings",
                     (json_int_t)r->original_positions);
}

/* Rounded up at the ninth digit, which is the last one in the file: loaders round the product with
 * the head dimension down. */
static double part_of_head(const struct arch *a)
{
    return ceil((double)model_rotated(a) / a->head_dim * 1e9) / 1e9;
}

/* The keys rope_theta, rope_scaling and rope_local_base_freq of transformers 4, which version 5
 * reads too. Phi-3 states its original length outside of the scaling. */
static err add_rope(json_t *config, const struct arch *a)
{
    const struct rope *r = &a->rope;
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
    if (r->kind == ROPE_YARN) scaling = yarn_json(r);
    if (r->kind == ROPE_LONGROPE) scaling = longrope_json(r, model_rotated(a));
    json_object_set_new(config, "rope_theta", json_real(r->theta));
    json_object_set_new(config, "rope_scaling", scaling);
    if (a->family->by_default.window_theta > 0)
        json_object_set_new(config, "rope_local_base_freq", json_real(a->window_rope.theta));
    if (a->family->by_default.original_positions > 0 && r->original_positions > 0)
        json_object_set_new(config, "original_max_position_embeddings",
                            json_integer(r->original_positions));
    if (a->family->partial)
        json_object_set_new(config, "partial_rotary_factor", json_real(part_of_head(a)));
    return ERR_NONE;
}

static json_t *cap_json(float cap)
{
    return cap > 0 ? json_real(shortest(cap)) : json_null();
}

/* query_pre_attn_scalar is a whole number in transformers; a GGUF's factor follows from one. */
static void add_factors(json_t *config, const struct arch *a)
{
    const struct family *f = a->family;
    if (f->caps) {
        double scalar = a->attention_scale > 0
                            ? 1 / ((double)a->attention_scale * (double)a->attention_scale)
                            : a->head_dim;
        json_object_set_new(config, "query_pre_attn_scalar", json_integer(lround(scalar)));
        json_object_set_new(config, "attn_logit_softcapping", cap_json(a->attention_cap));
        json_object_set_new(config, "final_logit_softcapping", cap_json(a->logit_cap));
    }
    if (!f->multipliers) return;
    double usual = 1 / sqrt(a->head_dim);
    json_object_set_new(config, "embedding_multiplier", json_real(factor_or_1(a->embed_scale)));
    json_object_set_new(config, "residual_multiplier", json_real(factor_or_1(a->residual_scale)));
    json_object_set_new(
        config, "attention_multiplier",
        json_real(a->attention_scale > 0 ? (double)a->attention_scale : (double)(float)usual));
    json_object_set_new(config, "logits_scaling",
                        json_real(shortest((float)(1 / factor_or_1(a->logit_scale)))));
}

/* Families with a switch get max_window_layers 0, which gives every layer the window. */
static void add_layers(json_t *config, const struct model *m, const struct family *family)
{
    const struct arch *a = &m->arch;
    json_t *types = json_array(), *rotates = json_array();
    for (uint32_t i = 0; i < a->layers; i++) {
        bool window = m->layer[i].window > 0;
        json_array_append_new(types, json_string(window ? "sliding_attention" : "full_attention"));
        json_array_append_new(rotates, json_integer(!m->layer[i].unrotated));
    }
    bool switched = family->window == FAMILY_WINDOW_SWITCHED;
    bool listed =
        family->window == FAMILY_WINDOW_PATTERN || family->window == FAMILY_WINDOW_UNROTATED;
    if (family->window != FAMILY_WINDOW_NEVER)
        json_object_set_new(config, "sliding_window",
                            a->window > 0 ? json_integer(a->window) : json_null());
    if (switched || family->window == FAMILY_WINDOW_UNROTATED)
        json_object_set_new(config, "use_sliding_window", json_boolean(a->window > 0));
    if (switched)
        json_object_set_new(config, "max_window_layers",
                            json_integer(a->window > 0 ? 0 : a->layers));
    if (listed) json_object_set(config, "layer_types", types);
    if (family->unrotated) json_object_set(config, "no_rope_layers", rotates);
    json_decref(types);
    json_decref(rotates);
}

err export_config_of_gguf(json_t **out, const struct model *m, const char *type)
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
        "rms_norm_eps", shortest(a->rms_eps),
        family->activation_key ? family->activation_key : "hidden_act",
        a->activation == ACTIVATION_GELU_TANH ? "gelu_pytorch_tanh" : "silu", "tie_word_embeddings",
        a->tied, "attention_bias", family->qkv_bias == FAMILY_BIAS_OPTIONAL && a->qkv_bias,
        "mlp_bias", a->mlp_bias, "torch_dtype", type);
    if (config == NULL) return err_make(ERR_MACHINE, "no memory for config.json");
    json_object_set_new(config, "bos_token_id", id_json(m->bos));
    json_object_set_new(config, "pad_token_id", id_json(m->pad));
    json_object_set_new(config, "eos_token_id", eos_json(m));
    add_factors(config, a);
    add_layers(config, m, family);
    err e = add_rope(config, a);
    if (err_is(e))
        json_decref(config);
    else
        *out = config;
    return e;
}
