#include "engine/model/family.h"

#include <stdio.h>
#include <string.h>

/* The numbers are defaults of the configuration classes in transformers. llama comes before mistral
 * because a GGUF of either has the architecture "llama". */
static const struct family families[] = {
    {
        .model_type = "llama", /* Llama 2 and 3, SmolLM2, TinyLlama */
        .hf_class = "LlamaForCausalLM",
        .gguf = "llama",
        .gguf_permutes = true,
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .mlp_bias = FAMILY_BIAS_OPTIONAL,
    },
    {
        .model_type = "mistral",
        .hf_class = "MistralForCausalLM",
        .gguf = "llama",
        .gguf_permutes = true,
        .window = FAMILY_WINDOW_ALWAYS,
        .by_default = {.kv_heads = 8, .window = 4096},
    },
    {
        .model_type = "qwen2", /* Qwen2 and Qwen2.5 */
        .hf_class = "Qwen2ForCausalLM",
        .gguf = "qwen2",
        .qkv_bias = FAMILY_BIAS_ALWAYS,
        .window = FAMILY_WINDOW_SWITCHED,
        .by_default = {.kv_heads = 32, .window = 4096},
    },
    {
        .model_type = "qwen3",
        .hf_class = "Qwen3ForCausalLM",
        .gguf = "qwen3",
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .qk_norm = QK_NORM_HEAD,
        .window = FAMILY_WINDOW_SWITCHED,
        .by_default = {.kv_heads = 32, .head_dim = 128, .window = 4096},
    },
    /* Gemma 2: every second layer has a window, from the first one on. Its largest model divides
     * the scores by another number than the root of the head dimension (query_pre_attn_scalar).
     * Norms are stored as their distance from 1. */
    {
        .model_type = "gemma2",
        .hf_class = "Gemma2ForCausalLM",
        .gguf = "gemma2",
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .norms = NORMS_AROUND,
        .activation = ACTIVATION_GELU_TANH,
        .activation_key = "hidden_activation",
        .norm_plus = 1,
        .embed_by_width = true,
        .caps = true,
        .window = FAMILY_WINDOW_PATTERN,
        .by_default = {.layers = 26,
                       .d_model = 2304,
                       .d_ffn = 9216,
                       .heads = 8,
                       .vocab = 256000,
                       .kv_heads = 4,
                       .head_dim = 256,
                       .max_positions = 8192,
                       .window = 4096,
                       .window_every = 2,
                       .attention_cap = 50,
                       .logit_cap = 30,
                       .tied = true},
    },
    /* Gemma 3: five of six layers have a window and rotate by frequencies of their own, which no
     * scaling changes. The published 4B, 12B and 27B models and MedGemma also read images, and
     * their text_config leaves out most of its keys, so the defaults below are needed. */
    {
        .model_type = "gemma3_text",
        .wrapper = "gemma3", /* with a vision part, which is not read */
        .hf_class = "Gemma3ForCausalLM",
        .gguf = "gemma3",
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .qk_norm = QK_NORM_HEAD,
        .norms = NORMS_AROUND,
        .activation = ACTIVATION_GELU_TANH,
        .activation_key = "hidden_activation",
        .norm_plus = 1,
        .embed_by_width = true,
        .caps = true,
        .window = FAMILY_WINDOW_PATTERN,
        .by_default = {.layers = 26,
                       .d_model = 2304,
                       .d_ffn = 9216,
                       .heads = 8,
                       .vocab = 262208,
                       .kv_heads = 4,
                       .head_dim = 256,
                       .max_positions = 131072,
                       .window = 4096,
                       .window_every = 6,
                       .theta = 1e6,
                       .window_theta = 1e4,
                       .tied = true},
    },
    /* Phi-3: q, k and v are one module, gate and up another, and PEFT adapts them as such. The
     * models with 128k positions use longrope; Phi-4-mini rotates three quarters of a head. */
    {
        .model_type = "phi3", /* Phi-3, Phi-3.5, Phi-4 and Phi-4-mini */
        .hf_class = "Phi3ForCausalLM",
        .gguf = "phi3",
        .fused = true,
        .partial = true,
        .window = FAMILY_WINDOW_ALWAYS,
        .by_default = {.layers = 32,
                       .d_model = 3072,
                       .d_ffn = 8192,
                       .heads = 32,
                       .vocab = 32064,
                       .max_positions = 4096,
                       .original_positions = 4096,
                       .rms_eps = 1e-5},
    },
    /* Granite 3: the block is Llama's, with factors of the embedding, of each block's output, of
     * the scores and of the logits. */
    {
        .model_type = "granite", /* Granite 3, dense */
        .hf_class = "GraniteForCausalLM",
        .gguf = "granite",
        .gguf_permutes = true,
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .mlp_bias = FAMILY_BIAS_OPTIONAL,
        .multipliers = true,
        .by_default = {.layers = 32, .d_model = 4096, .d_ffn = 11008, .heads = 32, .vocab = 32000},
    },
    /* OLMo 2: a block reads the residual stream without a norm, and its output has one. The norms
     * of q and k are over all heads together, so their weights are as wide as the projection. */
    {
        .model_type = "olmo2",
        .hf_class = "Olmo2ForCausalLM",
        .gguf = "olmo2",
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .qk_norm = QK_NORM_WHOLE,
        .norms = NORMS_AFTER,
        .by_default = {.layers = 32,
                       .d_model = 4096,
                       .d_ffn = 11008,
                       .heads = 32,
                       .vocab = 50304,
                       .rms_eps = 1e-5},
    },
    /* SmolLM3: every fourth layer does not rotate. */
    {
        .model_type = "smollm3",
        .hf_class = "SmolLM3ForCausalLM",
        .gguf = "smollm3",
        .gguf_permutes = true,
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .mlp_bias = FAMILY_BIAS_OPTIONAL,
        .unrotated = true,
        .window = FAMILY_WINDOW_UNROTATED,
        .by_default = {.layers = 36,
                       .d_model = 2048,
                       .d_ffn = 11008,
                       .heads = 16,
                       .vocab = 128256,
                       .kv_heads = 4,
                       .max_positions = 32768,
                       .theta = 2e6,
                       .tied = true},
    },
};
enum { FAMILIES = sizeof families / sizeof *families };

const struct family *family_at(size_t i)
{
    return i < FAMILIES ? &families[i] : NULL;
}

const struct family *family_find(const char *model_type)
{
    for (size_t i = 0; i < FAMILIES; i++)
        if (strcmp(families[i].model_type, model_type) == 0) return &families[i];
    return NULL;
}

const struct family *family_find_wrapper(const char *model_type)
{
    for (size_t i = 0; i < FAMILIES; i++)
        if (families[i].wrapper && strcmp(families[i].wrapper, model_type) == 0)
            return &families[i];
    return NULL;
}

/* The first row wins, so a GGUF file with the architecture "llama" opens as llama even if it was
 * made from a Mistral model. That is safe: GGUF files state the window and the biases themselves,
 * so no default of the family is used. */
const struct family *family_find_gguf(struct gguf_str architecture)
{
    for (size_t i = 0; i < FAMILIES; i++)
        if (gguf_str_is(architecture, families[i].gguf)) return &families[i];
    return NULL;
}

/* transformers ignores sliding_window in a config.json of a family without windows, so an exported
 * llama with a window has to call itself mistral. */
const struct family *family_with_window(const struct family *f)
{
    if (f->window != FAMILY_WINDOW_NEVER) return f;
    for (size_t i = 0; i < FAMILIES; i++)
        if (families[i].window != FAMILY_WINDOW_NEVER && strcmp(families[i].gguf, f->gguf) == 0)
            return &families[i];
    return NULL;
}

/* "a, b or c" of the names. A list that does not fit is cut; FAMILY_LIST_BYTES holds about thirty
 * names. */
static void list(char out[FAMILY_LIST_BYTES], const char *const name[FAMILIES], size_t count)
{
    size_t used = 0;
    for (size_t i = 0; i < count && used < FAMILY_LIST_BYTES; i++) {
        const char *before = i == 0 ? "" : i + 1 == count ? " or " : ", ";
        used += (size_t)snprintf(out + used, FAMILY_LIST_BYTES - used, "%s%s", before, name[i]);
    }
}

void family_list(char out[FAMILY_LIST_BYTES])
{
    const char *name[FAMILIES];
    for (size_t i = 0; i < FAMILIES; i++)
        name[i] = families[i].model_type;
    list(out, name, FAMILIES);
}

/* A GGUF name that several families share is listed by the first of them only. */
void family_list_gguf(char out[FAMILY_LIST_BYTES])
{
    const char *name[FAMILIES];
    size_t count = 0;
    for (size_t i = 0; i < FAMILIES; i++) {
        const struct gguf_str own = {.data = families[i].gguf, .size = strlen(families[i].gguf)};
        if (family_find_gguf(own) == &families[i]) name[count++] = families[i].gguf;
    }
    list(out, name, count);
}
