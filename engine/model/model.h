/* A base model: its architecture and its weights. Weights stay in the memory-mapped files and are
 * not copied. A model is a Hugging Face directory (config.json of either style, with
 * model.safetensors or its shards) or one GGUF v3 file. The families are in family.c: Llama 2, 3
 * and 3.x, SmolLM2 and 3, TinyLlama, Mistral, Qwen2, Qwen2.5 and Qwen3, Gemma 2 and the text part
 * of Gemma 3, Phi-3 and Phi-4, Granite 3 and OLMo 2. Any other model is refused by name with
 * ERR_INPUT.
 *
 * After model_open() everything is checked: shapes agree with `arch`, types can be computed with,
 * and every tensor of the file is either used or known to be unnecessary. A model is immutable and
 * may be shared between threads.
 *
 * Names and orientation are those of Hugging Face for every file format: W is (d_out, d_in), y = W
 * x + b, and positions rotate the two halves of a head (rotate_half). Values are read with
 * weight_rows_f32() only. */
#ifndef ENGINE_MODEL_H
#define ENGINE_MODEL_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/dtype.h"
#include "base/limits.h"
#include "engine/model/family.h"
#include "engine/model/gguf.h"
#include "kernels/backend.h"

/* Modules of a layer. A base has either q, k, v, gate and up or, if it is fused, qkv and gate_up in
 * their place. The order is that of the modules in an adapter's memory and in its masks, so new
 * kinds come last. */
enum module_kind {
    MODULE_Q,
    MODULE_K,
    MODULE_V,
    MODULE_O,
    MODULE_GATE,
    MODULE_UP,
    MODULE_DOWN,
    MODULE_QKV,     /* q, k and v, one below the other */
    MODULE_GATE_UP, /* gate, then up */
    MODULE_KINDS
};
enum { MODULE_UNFUSED = MODULE_QKV }; /* the kinds before are those of a base without fusion */
enum rope_kind {
    ROPE_DEFAULT,
    ROPE_LINEAR,   /* all frequencies are divided by `factor` */
    ROPE_LLAMA3,   /* low frequencies are divided by `factor`, high ones kept, smoothed between */
    ROPE_FACTORS,  /* frequency i is divided by factors[i]: rope_freqs.weight of a GGUF file */
    ROPE_YARN,     /* low frequencies are divided by `factor`, high ones kept, a ramp between */
    ROPE_LONGROPE, /* frequency i is divided by factors[i], and by long_factors[i] in rows longer
                      than original_positions */
    ROPE_DYNAMIC,  /* theta grows with the length of rows longer than original_positions */
};
enum { MODEL_EOS_MAX = 8 };

struct rope {
    enum rope_kind kind;
    double theta;
    double factor;                            /* linear, llama3, yarn, dynamic */
    double low_freq_factor, high_freq_factor; /* llama3 */
    double beta_fast, beta_slow;              /* yarn: rotations at the two ends of the ramp */
    bool untruncated;                         /* yarn: the ends of the ramp are not rounded */
    float attention_factor;                   /* yarn, longrope: of cos and sin; 0: 1 */
    uint32_t original_positions;              /* llama3, yarn, longrope, dynamic */
    const float *factors;                     /* (rotated / 2): factors, longrope */
    const float *long_factors;                /* (rotated / 2): longrope */
};

struct arch {
    const struct family *family;
    uint32_t layers, d_model, heads, kv_heads, head_dim, d_ffn, vocab;
    uint32_t max_positions; /* as the model declares it; longer rows are not refused */
    float rms_eps;
    struct rope rope;
    struct rope window_rope; /* of the layers with a window; equal to `rope` but in Gemma 3 */
    uint32_t window; /* positions that a layer with a window sees, its own included; 0: no window */
    bool qkv_bias, o_bias, mlp_bias, tied;
    enum qk_norm qk_norm;
    enum norm_places norms;
    enum activation activation; /* of the gate */
    bool fused;          /* modules qkv_proj and gate_up_proj in place of q, k, v, gate, up */
    uint32_t rotary_dim; /* leading values of a head that rotate; 0: all */
    /* Factors; 0 stands for the usual value. */
    float embed_scale;     /* of the embedded tokens; usually 1 */
    float residual_scale;  /* of a block's output before it is added; usually 1 */
    float attention_scale; /* of q k^T; usually 1 / sqrt(head_dim) */
    float attention_cap;   /* scaled scores become cap tanh(score / cap); 0: they do not */
    float logit_scale;     /* of the logits; usually 1 */
    float logit_cap; /* logits become cap tanh(logit / cap) after logit_scale; 0: they do not */
};

struct weight {       /* an absent weight has data NULL and rows and cols 0 */
    const void *data; /* (rows, cols) of dtype in the row order of the file; may be unaligned */
    enum dtype dtype;
    uint32_t rows, cols; /* a vector of n values (norm, bias) is (n, 1) */
    uint32_t rope_heads; /* > 0: rows in the file are permuted for interleaved rotation, in so many
                            heads */
    float
        plus; /* added to each value of the file: 1 for the norms of Gemma in Hugging Face files */
};

struct layer {
    struct weight linear[MODULE_KINDS]; /* q (heads*head_dim, d_model) .. down (d_model, d_ffn) */
    struct weight bias[MODULE_KINDS];
    struct weight attn_norm, mlp_norm; /* (d_model, 1) */
    struct weight q_norm, k_norm;      /* (head_dim, 1), or (heads head_dim, 1) and (kv_heads
                                          head_dim, 1) with QK_NORM_WHOLE; with arch.qk_norm */
    /* Norms of the blocks' outputs, with NORMS_AFTER and NORMS_AROUND. attn_norm and mlp_norm are
     * absent with NORMS_AFTER. */
    struct weight attn_out_norm, mlp_out_norm; /* (d_model, 1) */
    uint32_t window;                           /* 0: full causal attention; else arch.window */
    bool unrotated; /* q and k are not rotated: every fourth layer of SmolLM3 */
};

/* The name of the language model in transformers' class of a model with `images`. */
#define MODEL_IMAGES_ROOT "model.language_model."

struct model_file; /* one mapped safetensors file */
struct model {
    struct arch arch;
    struct weight embed;      /* (vocab, d_model) */
    struct weight final_norm; /* (d_model, 1) */
    struct weight head;       /* (vocab, d_model); a copy of `embed` if arch.tied */
    struct layer *layer;      /* (arch.layers) */
    int32_t bos, pad;         /* token ids; -1: not given */
    int32_t eos[MODEL_EOS_MAX];
    uint32_t eos_count;
    char path[LIMIT_PATH_BYTES];
    struct gguf gguf; /* the open file of a GGUF model; zeroed for a directory */
    struct model_file *file;
    size_t file_count;
    bool images;            /* the files hold a part that reads images too, which is not used */
    uint32_t image_tensors; /* of that part */
    struct arena arena;
};

err model_open(struct model *out, const char *path);
/* The architecture alone, to plan with a model that is not on this machine: from a config.json, a
 * folder that may hold nothing else, or a GGUF file. Weights have shapes and a type, but no values,
 * so nothing can be computed. A model of another family is accepted if config.json describes it by
 * the same sizes; *why then is the reason why it cannot be trained, else no error. ERR_INPUT: no
 * shapes follow from the file. */
err model_open_shapes(struct model *out, err *why, const char *path);
void model_close(struct model *m);
static inline bool model_is_gguf(const struct model *m)
{
    return m->gguf.map.data != NULL;
}

/* The weight as a backend takes it. */
static inline struct weight_part weight_part(const struct weight *w)
{
    return (struct weight_part){w->data, w->dtype, w->rows, w->rope_heads};
}
/* Calls each() for every weight that the files hold, with its Hugging Face name, in order of
 * names. */
err model_each_weight(const struct model *m,
                      void (*each)(void *user, const char *name, const struct weight *w),
                      void *user);
/* Rows row .. row + n - 1 as float32, in the row order of Hugging Face. */
void weight_rows_f32(float *out /* (n, cols) */, const struct weight *w, uint32_t row, uint32_t n);

/* The identity of a base model, equal for a directory and its lossless GGUF file: BLAKE2b-256 of
 * the text
 *
 *   fedlora base 1
 *   layers=2 d_model=64 heads=4 kv_heads=2 head_dim=16 d_ffn=160 vocab=320
 *   rms_eps=9.99999997e-07
 *   rope=llama3 theta=50000 factor=8 low=1 high=4 original=32
 *   windows=0,0
 *   lm_head.weight 320,64 0123...ef
 *   model.embed_tokens.weight 320,64 0123...ef
 *   ...
 *
 * Each line ends in "\n". Real numbers are float32, printed with %.9g. The line of the rotation is
 * one of
 *
 *   rope=default theta=T
 *   rope=linear theta=T factor=F
 *   rope=llama3 theta=T factor=F low=L high=H original=N
 *   rope=factors theta=T HEX              HEX: BLAKE2b-256 of the float32 factors
 *   rope=yarn theta=T factor=F fast=A slow=B truncate=1 attention=S original=N
 *   rope=longrope theta=T attention=S original=N HEX HEX
 *   rope=dynamic theta=T factor=F original=N
 *
 * Then come those of the following lines whose value is not the usual one, in this order:
 *
 *   window_rope=default theta=T           as above, of the layers with a window
 *   unrotated=0,0,0,1                     by layer
 *   rotated=96                            values of a head that rotate
 *   norms=after | norms=around
 *   qk_norm=whole
 *   activation=gelu_tanh
 *   embed_scale=S | residual_scale=S | attention_scale=S | logit_scale=S
 *   attention_cap=C | logit_cap=C
 *
 * Then comes one line per tensor in order of name (strcmp): the Hugging Face name, the shape, and
 * BLAKE2b-256 of its float32 values (little-endian, row-major, Hugging Face row order). A tied head
 * has its own line, so a tied head and an equal separate head give the same identity. The name of
 * the family, token ids and position limits are not included. Reads the whole model; tensors are
 * hashed in parallel. */
err model_digest(struct digest *out, const struct model *m);

/* Values of a head that rotate. */
static inline uint32_t model_rotated(const struct arch *a)
{
    return a->rotary_dim > 0 ? a->rotary_dim : a->head_dim;
}
/* Rotation frequencies in radians per position for a row of `positions` tokens, with the float32
 * rounding of transformers. Returns the factor of cos and sin.
 *
 * Longrope and dynamic scaling depend on the row's own length. transformers takes the longest row
 * of a batch, or even of earlier batches; here a row's result never depends on other rows. Rows
 * with the same model_rope_variant() have the same frequencies: 0 for all kinds but those two. */
float model_rope_frequencies(float *out /* (rotated / 2) */, const struct rope *r, uint32_t rotated,
                             uint32_t positions);
uint32_t model_rope_variant(const struct rope *r, uint32_t positions);

/* Whether layers with a window rotate by other frequencies than the others. */
bool model_rotates_apart(const struct model *m);

/* Whether the base has such modules: q, k, v, gate and up, or the fused ones. */
static inline bool model_has_module(const struct arch *a, enum module_kind kind)
{
    if (kind == MODULE_QKV || kind == MODULE_GATE_UP) return a->fused;
    return !a->fused || kind == MODULE_O || kind == MODULE_DOWN;
}
/* ERR_INPUT with the module to use, for one that the base does not have. */
err model_check_module(const struct arch *a, enum module_kind kind);
/* Shape (d_out, d_in) of a module's weight, also of one that the base does not have. */
void model_module_shape(uint32_t *d_out, uint32_t *d_in, const struct arch *a,
                        enum module_kind kind);
/* "model.layers.3.self_attn.q_proj" */
void model_module_name(char out[LIMIT_TENSOR_NAME_BYTES], uint32_t layer, enum module_kind kind);
/* The reverse; accepts the prefix "base_model.model." of PEFT. ERR_INPUT for any other name. */
err model_module_parse(uint32_t *layer, enum module_kind *kind, const char *name);
const char *model_module_short(enum module_kind kind); /* "q_proj", ... "down_proj" */
const char *model_module_gguf(enum module_kind kind);  /* "attn_q", ... "ffn_down" */

/* Tells the operating system that the mapped pages are not needed now, as after packing, so that
 * they do not count as memory of the process. They are read again when touched. */
void model_drop_pages(const struct model *m);
void model_drop_weight(const struct model *m, const struct weight *w); /* pages of one weight */

#endif
