/* Reads a base model from one GGUF file. Names and orientation become those of Hugging Face.
 * Converters of some families permute the rows of q and k for interleaved rotation;
 * weight_rows_f32() undoes that. */
#include "engine/model/model_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct gguf_key gguf_key_of(const struct model *m, const char *name)
{
    struct gguf_key k;
    snprintf(k.text, sizeof k.text, "%s.%s", m->arch.family->gguf, name);
    return k;
}

static err read_family(struct model *m)
{
    struct gguf_str type = {.data = "model", .size = 5}, name;
    TRY(gguf_opt_str(&type, &m->gguf, "general.type"));
    if (gguf_str_is(type, "adapter"))
        return err_make(ERR_INPUT, "general.type \"adapter\": this is a LoRA adapter; give it with "
                                   "--adapter, and its base model with --base");
    if (!gguf_str_is(type, "model"))
        return err_make(ERR_INPUT, "general.type \"%.*s\": expected model", (int)type.size,
                        type.data);
    TRY(gguf_get_str(&name, &m->gguf, "general.architecture"));
    m->arch.family = family_find_gguf(name);
    if (m->arch.family != NULL) return ERR_NONE;
    char known[FAMILY_LIST_BYTES];
    family_list_gguf(known);
    return err_make(ERR_INPUT, "general.architecture \"%.*s\": expected %s",
                    (int)(name.size < 64 ? name.size : 64), name.data, known);
}

static err get_u32(uint32_t *out, const struct model *m, const char *name)
{
    return gguf_get_u32(out, &m->gguf, gguf_key_of(m, name).text);
}

static err opt_u32(uint32_t *out, const struct model *m, const char *name)
{
    return gguf_opt_u32(out, &m->gguf, gguf_key_of(m, name).text);
}

/* The vocabulary size is the number of rows of the embedding: no key is required to state it. Heads
 * whose values or rotated part differ in size from the head, and mixtures of experts, are other
 * architectures and are refused. */
static err read_shape(struct model *m)
{
    struct arch *a = &m->arch;
    const struct gguf_tensor *embed = gguf_find_tensor(&m->gguf, "token_embd.weight");
    if (embed == NULL) return err_make(ERR_INPUT, "tensor token_embd.weight is missing");
    a->vocab = embed->ne[1] <= LIMIT_VOCAB ? (uint32_t)embed->ne[1] : 0;
    TRY(get_u32(&a->layers, m, "block_count"));
    TRY(get_u32(&a->d_model, m, "embedding_length"));
    TRY(get_u32(&a->d_ffn, m, "feed_forward_length"));
    TRY(get_u32(&a->heads, m, "attention.head_count"));
    a->kv_heads = a->heads;
    TRY(opt_u32(&a->kv_heads, m, "attention.head_count_kv"));
    TRY(opt_u32(&a->max_positions, m, "context_length"));
    TRY(gguf_get_f32(&a->rms_eps, &m->gguf,
                     gguf_key_of(m, "attention.layer_norm_rms_epsilon").text));
    if (a->heads == 0)
        return err_make(ERR_INPUT, "key %s is 0", gguf_key_of(m, "attention.head_count").text);
    a->head_dim = a->d_model / a->heads;
    TRY(opt_u32(&a->head_dim, m, "attention.key_length"));
    uint32_t value_dim = a->head_dim, rotated = a->head_dim, experts = 0;
    TRY(opt_u32(&value_dim, m, "attention.value_length"));
    TRY(opt_u32(&rotated, m, "rope.dimension_count"));
    TRY(opt_u32(&experts, m, "expert_count"));
    if (experts > 0)
        return err_make(ERR_INPUT, "a mixture of %u experts: expected a dense model", experts);
    if (value_dim != a->head_dim || rotated == 0 ||
        (a->family->partial ? rotated > a->head_dim : rotated != a->head_dim))
        return err_make(
            ERR_INPUT,
            "head dimension %u, value dimension %u, rotated dimension %u: expected all equal",
            a->head_dim, value_dim, rotated);
    a->rotary_dim = rotated == a->head_dim ? 0 : rotated;
    return ERR_NONE;
}

/* No key declares biases, so the tensors of the first layer do. */
static bool has_bias(const struct model *m, enum module_kind kind)
{
    char name[64];
    snprintf(name, sizeof name, "blk.0.%s.bias", model_module_gguf(kind));
    return gguf_find_tensor(&m->gguf, name) != NULL;
}

/* A file without output.weight uses the embedding as its head. */
static void read_switches(struct model *m)
{
    struct arch *a = &m->arch;
    a->tied = gguf_find_tensor(&m->gguf, "output.weight") == NULL;
    a->qkv_bias = a->family->qkv_bias == FAMILY_BIAS_ALWAYS ||
                  has_bias(m, a->family->fused ? MODULE_QKV : MODULE_Q);
    a->o_bias = a->family->o_bias == FAMILY_BIAS_ALWAYS || has_bias(m, MODULE_O);
    a->mlp_bias = a->family->mlp_bias == FAMILY_BIAS_ALWAYS || has_bias(m, MODULE_GATE);
    a->qk_norm = a->family->qk_norm;
    a->norms = a->family->norms;
    a->activation = a->family->activation;
    a->fused = a->family->fused;
}

/* A factor whose usual value is 1 is 0 in struct arch where it is that. */
static err opt_factor(float *out, const struct model *m, const char *name, float usual)
{
    float value = usual;
    TRY(gguf_opt_f32(&value, &m->gguf, gguf_key_of(m, name).text));
    *out = value == usual ? 0 : value;
    return ERR_NONE;
}

/* llama.cpp has no key for Gemma's factor of the scores: it is 1 / sqrt(head dimension), but in the
 * largest model of each generation, which it knows by the number of layers, 1 / sqrt(hidden size /
 * heads). */
static float gemma_scale(const struct arch *a)
{
    bool largest = a->layers == (a->qk_norm == QK_NORM_NONE ? 46 : 62);
    uint32_t part = a->d_model / a->heads;
    return largest && part != a->head_dim ? (float)(1 / sqrt((double)part)) : 0;
}

/* Absent caps have llama.cpp's values, which are those of transformers. logit_scale of a file
 * divides. */
static err read_factors(struct model *m)
{
    struct arch *a = &m->arch;
    const struct family *f = a->family;
    if (f->embed_by_width) a->embed_scale = (float)sqrt((double)a->d_model);
    if (f->caps) {
        a->attention_scale = gemma_scale(a);
        a->attention_cap = (float)f->by_default.attention_cap;
        a->logit_cap = (float)f->by_default.logit_cap;
        if (a->attention_cap > 0)
            TRY(gguf_opt_f32(&a->attention_cap, &m->gguf,
                             gguf_key_of(m, "attn_logit_softcapping").text));
        TRY(gguf_opt_f32(&a->logit_cap, &m->gguf, gguf_key_of(m, "final_logit_softcapping").text));
    }
    if (!f->multipliers) return ERR_NONE;
    float usual = (float)(1 / sqrt((double)a->head_dim)), scaling = 0;
    TRY(opt_factor(&a->embed_scale, m, "embedding_scale", 1));
    TRY(opt_factor(&a->residual_scale, m, "residual_scale", 1));
    TRY(opt_factor(&a->attention_scale, m, "attention.scale", usual));
    TRY(opt_factor(&scaling, m, "logit_scale", 1));
    a->logit_scale = scaling == 0 ? 0 : 1 / scaling;
    return ERR_NONE;
}

/* A file states the width of the windows, and newer ones that each n-th layer has none. The number
 * of unrotated layers is fixed in llama.cpp. */
static err read_layers(struct model *m)
{
    const struct family *f = m->arch.family;
    uint32_t every = f->by_default.window_every;
    m->arch.window = f->window == FAMILY_WINDOW_PATTERN ? f->by_default.window : 0;
    TRY(opt_u32(&m->arch.window, m, "attention.sliding_window"));
    /* OLMo 3 has the architecture of OLMo 2, with windows and two kinds of rotation. */
    bool known = family_with_window(f) != NULL && f->window != FAMILY_WINDOW_UNROTATED;
    if (m->arch.window > 0 && !known)
        return err_make(ERR_INPUT, "%s is %u: windows of %s models are not supported",
                        gguf_key_of(m, "attention.sliding_window").text, m->arch.window, f->gguf);
    if (f->window == FAMILY_WINDOW_PATTERN)
        TRY(opt_u32(&every, m, "attention.sliding_window_pattern"));
    if (f->window == FAMILY_WINDOW_PATTERN && every == 0)
        return err_make(ERR_INPUT, "key %s is 0",
                        gguf_key_of(m, "attention.sliding_window_pattern").text);
    for (uint32_t i = 0; i < m->arch.layers; i++) {
        bool full = f->window == FAMILY_WINDOW_PATTERN && (i + 1) % every == 0;
        m->layer[i].window = full ? 0 : m->arch.window;
        m->layer[i].unrotated = f->unrotated && (i + 1) % 4 == 0;
    }
    return ERR_NONE;
}

/* Order matters: the rotation needs the head dimension, and the factors are read only after the
 * sizes have passed the limits, because they are copied into arrays of a fixed size. */
static err read_arch(struct model *m)
{
    TRY(read_family(m));
    TRY(read_shape(m));
    read_switches(m);
    TRY(read_factors(m));
    TRY(gguf_read_rope(m));
    TRY(model_check_arch(&m->arch));
    TRY(gguf_read_rope_factors(m));
    TRY(model_check_rope(&m->arch.rope, model_rotated(&m->arch)));
    TRY(model_take_layers(m));
    return read_layers(m);
}

/* Ids that are wrong or out of range count as absent here; opening the tokenizer reports them. Up
 * to three tokens end an answer: end of sequence, end of turn and end of message. */
static void read_tokens(struct model *m)
{
    static const char *const eos[] = {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
                                      "tokenizer.ggml.eom_token_id"};
    uint32_t id;
    id = UINT32_MAX;
    if (!err_is(gguf_opt_u32(&id, &m->gguf, "tokenizer.ggml.bos_token_id")) && id < m->arch.vocab)
        m->bos = (int32_t)id;
    id = UINT32_MAX;
    if (!err_is(gguf_opt_u32(&id, &m->gguf, "tokenizer.ggml.padding_token_id")) &&
        id < m->arch.vocab)
        m->pad = (int32_t)id;
    for (size_t i = 0; i < sizeof eos / sizeof eos[0]; i++) {
        id = UINT32_MAX;
        if (err_is(gguf_opt_u32(&id, &m->gguf, eos[i])) || id >= m->arch.vocab) continue;
        bool again = false;
        for (uint32_t k = 0; k < m->eos_count; k++)
            again = again || m->eos[k] == (int32_t)id;
        if (!again) m->eos[m->eos_count++] = (int32_t)id;
    }
}

/* ne lists the fastest-varying side first, so a weight (rows, cols) has ne = {cols, rows}. */
static err fill_slot(const struct model *m, const struct model_slot *slot)
{
    const struct gguf_tensor *t = gguf_find_tensor(&m->gguf, slot->gguf);
    if (t == NULL) return err_make(ERR_INPUT, "tensor %s is missing", slot->gguf);
    uint64_t first = slot->vector ? slot->rows : slot->cols, second = slot->vector ? 1 : slot->rows;
    if (t->ne[0] != first || t->ne[1] != second || t->ne[2] != 1 || t->ne[3] != 1)
        return err_make(ERR_INPUT,
                        "tensor %s: shape (%llu, %llu, %llu, %llu), expected (%llu, %llu)", t->name,
                        (unsigned long long)t->ne[0], (unsigned long long)t->ne[1],
                        (unsigned long long)t->ne[2], (unsigned long long)t->ne[3],
                        (unsigned long long)first, (unsigned long long)second);
    err e = model_fill(slot, t->data, t->dtype, gguf_type_name(t->type_id));
    if (err_is(e)) return err_in(e, "tensor %s", t->name);
    if (m->arch.family->gguf_permutes) slot->weight->rope_heads = slot->rope_heads;
    return ERR_NONE;
}

/* The factors of frequencies have been read with the rotation; attn_rot_embd.weight is a buffer of
 * very old converters. */
static bool is_ignored(const char *name)
{
    return strcmp(name, "rope_freqs.weight") == 0 ||
           strcmp(name, "rope_factors_long.weight") == 0 ||
           strcmp(name, "rope_factors_short.weight") == 0 ||
           strstr(name, ".attn_rot_embd.weight") != NULL;
}

/* As in model_hf.c a tensor that is not used is an error, because it means that the model computes
 * something else than its keys describe. */
static err fill_all(struct model *m, struct arena *arena)
{
    struct model_slot *slot;
    size_t count;
    bool *used;
    TRY(model_slots(&slot, &count, m, arena));
    TRY(arena_take(&used, arena, m->gguf.tensor_count, sizeof *used));
    for (size_t i = 0; i < count; i++) {
        TRY(fill_slot(m, &slot[i]));
        used[gguf_find_tensor(&m->gguf, slot[i].gguf) - m->gguf.tensor] = true;
    }
    for (size_t i = 0; i < m->gguf.tensor_count; i++)
        if (!used[i] && !is_ignored(m->gguf.tensor[i].name))
            return err_make(ERR_INPUT,
                            "tensor %s is not part of a %s model as its keys describe it",
                            m->gguf.tensor[i].name, m->arch.family->gguf);
    return ERR_NONE;
}

/* The open file stays in m->gguf, since the weights point into its map and the tokenizer is read
 * from its keys. model_open() closes it after a failure. */
err model_gguf_open(struct model *m)
{
    struct arena arena = {0};
    err e;
    TRY(gguf_open(&m->gguf, m->path, GGUF_WITH_DATA));
    TRY_OUT(e, read_arch(m));
    read_tokens(m);
    TRY_OUT(e, fill_all(m, &arena));
out:
    arena_close(&arena);
    return err_is(e) ? err_in(e, "%s", m->path) : e;
}
