/* The families of base models: one row each, in the table of family.c.
 *
 * A family is a `model_type` of Hugging Face's config.json. Its row holds the names that the file
 * formats use and the defaults and switches that config.json leaves to the model class. The rest of
 * the engine reads only struct arch, so a family without new mathematics needs one new row and no
 * other code. Tensor names are the same in all families; they are in model_slots.c.
 *
 * Rows are constant and live as long as the program, so pointers to them may be compared. */
#ifndef ENGINE_FAMILY_H
#define ENGINE_FAMILY_H

#include "engine/model/gguf.h"

enum family_bias {
    FAMILY_BIAS_NEVER,
    FAMILY_BIAS_OPTIONAL, /* by attention_bias or mlp_bias of config.json */
    FAMILY_BIAS_ALWAYS,   /* config.json has no key for it */
};

enum family_window {
    FAMILY_WINDOW_NEVER,    /* sliding_window of config.json has no effect */
    FAMILY_WINDOW_ALWAYS,   /* all layers, unless sliding_window is null */
    FAMILY_WINDOW_SWITCHED, /* with use_sliding_window; layer_types or max_window_layers choose the
                               layers */
};

struct family {
    const char *model_type;    /* in config.json; unique */
    const char *hf_class;      /* in `architectures` of an exported config.json */
    const char *gguf;          /* general.architecture; families may share one */
    bool gguf_permutes;        /* GGUF files order the rows of q and k for interleaved rotation */
    enum family_bias qkv_bias; /* of q, k and v */
    enum family_bias o_bias;   /* of the attention's output; optional: with attention_bias */
    enum family_bias mlp_bias; /* of gate, up and down */
    bool qk_norm;              /* RMS norm of each head's query and key before rotation */
    uint32_t kv_heads;         /* where num_key_value_heads is absent; 0: as many as heads */
    uint32_t head_dim;         /* where head_dim is absent; 0: hidden size / heads */
    enum family_window window;
};

/* Row i, or NULL after the last one. */
const struct family *family_at(size_t i);

/* NULL for an unknown name. Of families that share a GGUF name the first row is returned. */
const struct family *family_find(const char *model_type);
const struct family *family_find_gguf(struct gguf_str architecture);

/* The family under which config.json can describe a model of family f that has a sliding window: f,
 * or the first family of the same GGUF name with windows. NULL if there is none. */
const struct family *family_with_window(const struct family *f);

/* For error messages: "llama, mistral, qwen2 or qwen3". */
enum { FAMILY_LIST_BYTES = 256 };
void family_list(char out[FAMILY_LIST_BYTES]);
void family_list_gguf(char out[FAMILY_LIST_BYTES]); /* each GGUF name once */

#endif
