/* The families of base models: one row each, in the table of family.c.
 *
 * A family is a `model_type` of Hugging Face's config.json. Its row holds the names that the file
 * formats use and the defaults and switches that config.json leaves to the model class. The rest of
 * the engine reads only struct arch, so a family without new mathematics needs one new row and no
 * other code. Names of tensors are in model_slots.c.
 *
 * Rows are constant and live as long as the program, so pointers to them may be compared. */
#ifndef ENGINE_FAMILY_H
#define ENGINE_FAMILY_H

#include "engine/model/gguf.h"
#include "kernels/backend.h"

/* The norms of a block f in x = x + f(x). */
enum norm_places {
    NORMS_BEFORE, /* x + f(norm(x)) */
    NORMS_AFTER,  /* x + norm(f(x)): OLMo 2 */
    NORMS_AROUND, /* x + norm(f(norm(x))): Gemma 2 and 3 */
};
enum qk_norm {
    QK_NORM_NONE,
    QK_NORM_HEAD,  /* RMS norm of each head's query and key before rotation: Qwen3, Gemma 3 */
    QK_NORM_WHOLE, /* over all heads together: OLMo 2 */
};

enum family_bias {
    FAMILY_BIAS_NEVER,
    FAMILY_BIAS_OPTIONAL, /* by attention_bias or mlp_bias of config.json */
    FAMILY_BIAS_ALWAYS,   /* config.json has no key for it */
};

enum family_window {
    FAMILY_WINDOW_NEVER,     /* sliding_window of config.json has no effect */
    FAMILY_WINDOW_ALWAYS,    /* all layers, unless sliding_window is null */
    FAMILY_WINDOW_SWITCHED,  /* with use_sliding_window; layer_types or max_window_layers choose the
                               layers */
    FAMILY_WINDOW_PATTERN,   /* layer_types choose the layers, else all but each n-th */
    FAMILY_WINDOW_UNROTATED, /* with use_sliding_window; layer_types, else the unrotated layers */
};

/* Values where config.json has no such key. 0: the key is required, or as stated. */
struct family_defaults {
    uint32_t layers, d_model, d_ffn, heads, vocab;
    uint32_t kv_heads;           /* 0: as many as heads */
    uint32_t head_dim;           /* 0: hidden size / heads */
    uint32_t max_positions;      /* 0: 2048 */
    uint32_t original_positions; /* before the context was extended; read outside of the scaling. 0:
                                    read there, else max_positions */
    uint32_t window;             /* 0: no window */
    uint32_t window_every; /* FAMILY_WINDOW_PATTERN: each layer of this number has no window */
    double rms_eps;        /* 0: 1e-6 */
    double theta;          /* 0: 10000 */
    double window_theta;   /* of the layers with a window; 0: they rotate like the others */
    double attention_cap, logit_cap;
    bool tied;
};

struct family {
    const char *model_type;    /* in config.json; unique */
    const char *wrapper;       /* model_type of a config.json whose text_config is such a model */
    const char *hf_class;      /* in `architectures` of an exported config.json */
    const char *gguf;          /* general.architecture; families may share one */
    bool gguf_permutes;        /* GGUF files order the rows of q and k for interleaved rotation */
    enum family_bias qkv_bias; /* of q, k and v */
    enum family_bias o_bias;   /* of the attention's output; optional: with attention_bias */
    enum family_bias mlp_bias; /* of gate, up and down */
    enum qk_norm qk_norm;
    enum norm_places norms;
    enum activation activation; /* where config.json does not state one */
    const char *activation_key; /* in config.json; NULL: hidden_act */
    float norm_plus;            /* added to the norms' weights of Hugging Face files */
    bool fused;                 /* modules qkv_proj and gate_up_proj */
    bool embed_by_width;        /* embedded tokens are multiplied by sqrt(hidden size) */
    bool caps;                  /* attn_logit_softcapping, final_logit_softcapping, and
                                   query_pre_attn_scalar, which is 256 where it is absent */
    bool multipliers;           /* embedding_, residual_ and attention_multiplier, logits_scaling */
    bool partial;               /* partial_rotary_factor: only a part of a head rotates */
    bool unrotated;             /* no_rope_layers, else each no_rope_layer_interval-th layer */
    enum family_window window;
    struct family_defaults by_default;
};

/* Row i, or NULL after the last one. */
const struct family *family_at(size_t i);

/* NULL for an unknown name. Of families that share a GGUF name the first row is returned. */
const struct family *family_find(const char *model_type);
const struct family *family_find_wrapper(const char *model_type);
const struct family *family_find_gguf(struct gguf_str architecture);

/* The family under which config.json can describe a model of family f that has a sliding window: f,
 * or the first family of the same GGUF name with windows. NULL if there is none. */
const struct family *family_with_window(const struct family *f);

/* For error messages: "llama, mistral, qwen2 or qwen3". */
enum { FAMILY_LIST_BYTES = 256 };
void family_list(char out[FAMILY_LIST_BYTES]);
void family_list_gguf(char out[FAMILY_LIST_BYTES]); /* each GGUF name once */

#endif
