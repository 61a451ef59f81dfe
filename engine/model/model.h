/* A base model, immutable once open, its weights left where they lie in the memory-mapped files: a
 * Hugging Face directory (config.json of either style, model.safetensors or its shards) or one GGUF
 * v3 file. One description covers Llama 2/3/3.x, SmolLM2, TinyLlama, Mistral, Qwen2/2.5 and Qwen3;
 * anything else is refused by name (ERR_INPUT). After model_open() every field is checked: shapes
 * agree with `arch`, types can be computed with, and no tensor of the file was left unread. Safe to
 * share between threads.
 *
 * Names and orientation are Hugging Face's whatever the file: W (d_out, d_in), y = W x + b,
 * rotation by halves (rotate_half). weight_rows_f32() is the one way to read values. */
#ifndef CLIENT_MODEL_H
#define CLIENT_MODEL_H

#include "base/arena.h"
#include "base/digest.h"
#include "base/dtype.h"
#include "base/limits.h"
#include "engine/model/family.h"
#include "engine/model/gguf.h"

enum module_kind {
    MODULE_Q,
    MODULE_K,
    MODULE_V,
    MODULE_O,
    MODULE_GATE,
    MODULE_UP,
    MODULE_DOWN,
    MODULE_KINDS
};
enum rope_kind {
    ROPE_DEFAULT,
    ROPE_LINEAR,  /* frequencies / factor */
    ROPE_LLAMA3,  /* long wavelengths / factor, short ones kept, smoothed between */
    ROPE_FACTORS, /* frequency i / factors[i], as GGUF's rope_freqs.weight where it is not llama3's
                   */
};
enum { MODEL_EOS_MAX = 8 };

struct rope {
    enum rope_kind kind;
    double theta;
    double factor;                            /* linear, llama3 */
    double low_freq_factor, high_freq_factor; /* llama3 */
    uint32_t original_positions;              /* llama3 */
    const float *factors;                     /* (head_dim / 2), ROPE_FACTORS only */
};

struct arch {
    const struct family *family;
    uint32_t layers, d_model, heads, kv_heads, head_dim, d_ffn, vocab;
    uint32_t max_positions; /* what the model was made for; no bound of ours */
    float rms_eps;
    struct rope rope;
    uint32_t window; /* 0: none. Else layers with a window see this many positions, the token's own
                        counted */
    bool qkv_bias, o_bias, mlp_bias, qk_norm, tied;
};

struct weight {       /* absent: data is NULL, rows and cols 0 */
    const void *data; /* (rows, cols) of dtype in the file's row order; may be unaligned */
    enum dtype dtype;
    uint32_t rows, cols; /* a vector of n (norm, bias) is (n, 1) */
    uint32_t rope_heads; /* > 0: the file's rows are permuted for interleaved rotation, that many
                            heads */
};

struct layer {
    struct weight linear[MODULE_KINDS]; /* q (heads*head_dim, d_model) .. down (d_model, d_ffn) */
    struct weight bias[MODULE_KINDS];
    struct weight attn_norm, mlp_norm; /* (d_model, 1) */
    struct weight q_norm, k_norm;      /* (head_dim, 1), with arch.qk_norm */
    uint32_t window;                   /* 0: full causal attention; else arch.window */
};

struct model_file; /* one mapped safetensors file */
struct model {
    struct arch arch;
    struct weight embed;      /* (vocab, d_model) */
    struct weight final_norm; /* (d_model, 1) */
    struct weight head;       /* (vocab, d_model); the same as embed when arch.tied */
    struct layer *layer;      /* (arch.layers) */
    int32_t bos, pad;         /* token ids; -1: none given */
    int32_t eos[MODEL_EOS_MAX];
    uint32_t eos_count;
    char path[LIMIT_PATH_BYTES];
    struct gguf
        gguf; /* what a GGUF base was read from (its tokenizer too); kv_count 0 for a directory */
    struct model_file *file;
    size_t file_count;
    struct arena arena;
};

err model_open(struct model *out, const char *path);
void model_close(struct model *m);
static inline bool model_is_gguf(const struct model *m)
{
    return m->gguf.map.data != NULL;
}

/* Rows [row, row + n) as float32 in Hugging Face's row order. */
void weight_rows_f32(float *out /* (n, cols) */, const struct weight *w, uint32_t row, uint32_t n);

/* The base's identity (design, section 1): BLAKE2b-256 of the text
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
 * each line ending in "\n", reals as float32 with %.9g, rope= "default theta=T", "linear theta=T
 * factor=F", as above, or "factors theta=T HEX" (BLAKE2b-256 of the float32 factors); then one line
 * a tensor in order of name (strcmp): Hugging Face name, shape, and BLAKE2b-256 of its float32
 * values (little-endian, row-major, Hugging Face row order). A tied head has its own line, so tied
 * and copied heads are one base. The family's name, token ids and position limits are not part of
 * it. Reads the whole model; tensors are hashed in parallel. */
err model_digest(struct digest *out, const struct model *m);

/* Rotation frequencies in radians a position, as transformers computes them in float32. */
void model_rope_frequencies(float *out /* (head_dim / 2) */, const struct arch *a);

/* (d_out, d_in) of a module of this architecture. */
void model_module_shape(uint32_t *d_out, uint32_t *d_in, const struct arch *a,
                        enum module_kind kind);
/* "model.layers.3.self_attn.q_proj" */
void model_module_name(char out[LIMIT_TENSOR_NAME_BYTES], uint32_t layer, enum module_kind kind);
/* The reverse; also takes a "base_model.model." prefix. ERR_INPUT for any other name. */
err model_module_parse(uint32_t *layer, enum module_kind *kind, const char *name);
const char *model_module_short(enum module_kind kind); /* "q_proj", ... "down_proj" */
const char *model_module_gguf(enum module_kind kind);  /* "attn_q", ... "ffn_down" */

/* Tells the kernel that the files' pages may go, as after packing; they come back when touched. */
void model_drop_pages(const struct model *m);
void model_drop_weight(const struct model *m, const struct weight *w); /* just that one's */

#endif
