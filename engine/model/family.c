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
        .kv_heads = 8,
        .window = FAMILY_WINDOW_ALWAYS,
    },
    {
        .model_type = "qwen2", /* Qwen2 and Qwen2.5 */
        .hf_class = "Qwen2ForCausalLM",
        .gguf = "qwen2",
        .qkv_bias = FAMILY_BIAS_ALWAYS,
        .kv_heads = 32,
        .window = FAMILY_WINDOW_SWITCHED,
    },
    {
        .model_type = "qwen3",
        .hf_class = "Qwen3ForCausalLM",
        .gguf = "qwen3",
        .qkv_bias = FAMILY_BIAS_OPTIONAL,
        .o_bias = FAMILY_BIAS_OPTIONAL,
        .qk_norm = true,
        .kv_heads = 32,
        .head_dim = 128,
        .window = FAMILY_WINDOW_SWITCHED,
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
