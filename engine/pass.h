/* One forward and backward pass. Used only inside the engine (engine.c, forward.c, backward.c,
 * engine/train, generate.c).
 *
 * Rows of a batch lie one after the other, T tokens in all. Values that the backward pass needs are
 * kept in one struct saved for each layer. With checkpointing only the input x1 of each layer is
 * kept, and the rest is recomputed into one struct saved that all layers share. The residual stream
 * and its gradient are float32; kept copies of them and all operands of products have the engine's
 * precision. */
#ifndef ENGINE_PASS_H
#define ENGINE_PASS_H

#include "engine/engine.h"
#include "engine/factors.h"

/* A layer adds the outputs of two blocks to the stream. */
enum block { BLOCK_ATTENTION, BLOCK_MLP, BLOCKS };

/* Norms are on the device; NULL where the model has none. */
struct engine_layer {
    struct backend_weight *qkv, *o, *gate_up, *down;
    float *norm[BLOCKS];     /* (d_model) of a block's input */
    float *out_norm[BLOCKS]; /* (d_model) of a block's output */
    float *q_norm, *k_norm;  /* (head_dim), or (heads head_dim) and (kv_heads head_dim) */
};

struct saved {      /* of one layer; T tokens */
    struct mat x2;  /* (T, d_model) after attention */
    struct mat qkv; /* (T, (heads + 2 kv_heads) head_dim), q and k rotated */
    struct mat raw; /* (T, (heads + kv_heads) head_dim) q and k before their norms; qk_norm only */
    struct mat att; /* (T, heads head_dim) */
    struct mat gate_up;                       /* (T, 2 d_ffn) */
    struct mat h[SITES];                      /* (T, width of the site) the low-rank part's H */
    float *inv1, *inv2, *inv_q, *inv_k, *lse; /* (T), (T), (T, heads), (T, kv_heads), (T, heads) */
    /* The blocks' outputs before their norms, and 1 / rms of them; only with such norms. */
    struct mat out[BLOCKS]; /* (T, d_model) */
    float *inv_out[BLOCKS]; /* (T) */
};

struct pass_size { /* what the working memory has to hold */
    size_t tokens, rows, learned;
    size_t positions; /* the longest row */
    uint32_t site_width[SITES];
    bool backward, checkpoint;
};
struct pass { /* the engine's working memory */
    struct pass_size size;
    size_t tokens_max, learned_max; /* rows of the tensors below: T, learned */
    void *memory;
    struct backend_batch *batch;         /* the rows of the pass, on the device */
    struct saved *layer;                 /* (layers); only the first is used if all share it */
    struct mat *x1;                      /* (layers) */
    struct mat resid;                    /* (T, d_model) float32 */
    struct mat dresid;                   /* (T, d_model) float32 */
    struct mat normed;                   /* (T, d_model) */
    struct mat wide;                     /* (T, d_ffn) activation(gate) * up */
    struct mat dwide;                    /* (T, d_ffn) */
    struct mat dqkv;                     /* (T, qkv) */
    struct mat datt;                     /* (T, heads head_dim) */
    struct mat dy;                       /* (T, d_model) gradient of a block's output */
    struct mat dx;                       /* (T, d_model) gradient of a norm's output */
    struct mat g, p;                     /* (T, widest site) */
    struct mat last, last_normed, dlast; /* (learned, d_model) float32, precision, float32 */
    float *inv;                          /* (T) scratch */
};

/* Tables of rotation angles, see engine_rope.c. */
struct angle_part {
    uint32_t variant[2]; /* model_rope_variant() of arch.rope and arch.window_rope */
    uint32_t positions;  /* of a row with these frequencies */
    size_t first, rows;  /* its rows in the tables */
};
struct angles {
    float *memory; /* cos and sin for each table, each (rows, rotated / 2); device */
    size_t tables; /* 2 if layers with a window rotate by angles of their own */
    size_t rows, used;
    struct angle_part *part; /* (parts) the first one is for rows of ordinary length */
    size_t parts;
};

struct engine {
    const struct model *model;
    const struct engine *shared; /* the engine that owns the weights; NULL: this one */
    const struct backend *be;
    struct backend_context *ctx;
    struct engine_layer *layer;          /* (layers) */
    struct backend_weight *head, *embed; /* the same one if they are tied */
    float *final_norm;
    float *norms; /* the memory of all norms */
    struct angles angles;
    bool inference;               /* forward passes only */
    enum base_memory base_memory; /* BASE_PACKED or BASE_FILE */
    struct pass pass;
    char why[BACKEND_WHY_BYTES];                           /* device auto: why no GPU is used */
    char device[BACKEND_DEVICES_MAX * BACKEND_NAME_BYTES]; /* engine_device() */
    enum { FILLS_UNKNOWN, FILLS, FILLS_NOT } fills;        /* in bfloat16, see train_fills() */
    struct engine **peer; /* (peers) the engines of further devices, which this one owns */
    size_t peers;
};

/* engine_open() for one device. */
err engine_open_one(struct engine **out, const struct model *m, const struct engine_options *o);
void engine_peers_close(struct engine *e);

/* Free memory of the device and what the engine holds of it; UINT64_MAX if that is not known. */
static inline uint64_t engine_capacity(const struct engine *e)
{
    uint64_t available = e->be->memory_free(e->ctx);
    return available == UINT64_MAX ? available : available + e->be->memory_held(e->ctx);
}

struct cache {    /* keys and values of one sequence */
    void *memory; /* (layers, 2, capacity, kv_heads head_dim), of the engine's precision */
    uint32_t capacity;
    uint32_t length; /* positions filled before this pass */
};

/* The tokens whose outputs a pass needs behind the last layer. */
enum batch_outputs {
    BATCH_NONE,
    BATCH_LABELS, /* those before a labelled token, for the loss */
    BATCH_LAST,   /* the last one of each row, for generation */
};
struct batch { /* input and results of one pass */
    size_t tokens, rows, learned;
    size_t positions;   /* the largest position + 1 */
    int32_t *id;        /* (tokens) */
    uint32_t *start;    /* (rows + 1) */
    uint32_t *position; /* (tokens) */
    uint32_t *index;    /* (learned) tokens whose outputs are needed */
    int32_t *target;    /* (learned) the next token; NULL without labels */
    double *nll;        /* (learned) there after check() */
    const struct segment *segment;
    size_t segments;
    struct low_rank_use *use; /* (segments) */
    float dropout;
    uint64_t dropout_key;
    bool backward, checkpoint;
    double scale;         /* of each negative log likelihood in the gradient */
    const float *scales;  /* (learned) one for each of them, instead of `scale`; or NULL */
    struct cache **cache; /* (rows) caches to append to, or NULL */
    bool decode;          /* each row is one new token that attends to its cache */
    struct backend_record **record; /* the pass is recorded there; NULL: it is not */
    uint32_t lowest; /* lowest layer with a module that trains; layers below have no backward */
    struct arena arena;
};

/* Columns of one token's q, k, v. */
static inline size_t engine_qkv_width(const struct arch *a)
{
    return (size_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
}

/* Tokens [first, first + tokens) of a batch use one adapter. */
struct segment {
    const struct factors *factors; /* NULL: the base alone */
    float *gradient;               /* as the trained block, gradients are added; NULL: none */
    size_t first, tokens;
    /* With rows > 0 each of the batch's rows [row, row + rows), which lie within these tokens, has
     * its own gradient, at gradient + i * stride. */
    size_t row, rows, stride;
};

/* Makes a batch of rows; the caller sets the segments. */
err batch_open(struct batch *out, const struct engine_row *row, size_t rows,
               enum batch_outputs outputs);
void batch_close(struct batch *b);
/* Fills a batch for training up to multiples of `bucket` tokens and learned tokens and to rows + 1
 * rows, so that batches of similar sizes have the same sizes and share a record. The last row takes
 * the additional tokens. They are not learned, and all gradients at them are exactly 0. Called
 * before the segments are set; changes nothing if bucket is 1. */
err batch_pad(struct batch *b, size_t bucket, size_t rows);
/* Makes the working memory large enough. */
err pass_reserve(struct engine *e, const struct pass_size *s);
/* The working memory is large enough already. */
bool pass_fits(const struct engine *e, const struct pass_size *s);
size_t pass_bytes(const struct engine *e, const struct pass_size *s); /* that it then takes */
/* Sets the sizes to those with what batch_pad() adds; the learned tokens of one head_loss(). */
size_t pass_filled(struct pass_size *s, const struct engine *e);
void pass_size_widths(struct pass_size *s, const struct factors *f); /* site_width at least f's */
size_t engine_norm_bytes(const struct model *m); /* of all norms on the device */
/* Makes the tables of rotation angles cover `positions` positions of ordinary rows. */
err engine_reserve_positions(struct engine *e, size_t positions);
/* Makes the tables cover the rows of a batch. *out (tokens): the row of each token in the tables,
 * which is its position in ordinary rows; in the batch's arena. */
err engine_place_rows(uint32_t **out, struct engine *e, struct batch *b);
/* The rotation in a layer; the caller sets rows, heads and back. */
struct rope_shape engine_rotation(const struct engine *e, uint32_t layer);
uint64_t engine_angle_bytes(const struct engine *e, const struct pass_size *s);
void engine_close_angles(struct engine *e);
/* Attention of one layer: its shape, the views of q, k and v in `qkv`, and their rotation. */
struct pass_heads {
    struct attention_shape shape;
    struct rope_shape rope; /* of q and k together, which lie side by side */
    struct mat q, k, v;
};
struct pass_heads pass_heads(const struct engine *e, const struct batch *b, uint32_t layer,
                             struct mat qkv);
/* The shape of the norm of q (heads) or k (kv_heads). */
struct norm_shape pass_head_norm(const struct engine *e, const struct batch *b, uint32_t heads);
/* The factor of a block's output before it is added to the stream. */
static inline float pass_residual_scale(const struct engine *e)
{
    float scale = e->model->arch.residual_scale;
    return scale != 0.0f ? scale : 1.0f;
}
/* The low-rank part of one site for the whole batch, with H kept in h; NULL if no segment has a
 * module there. */
const struct low_rank_site *pass_low_rank(struct low_rank_site *out, const struct engine *e,
                                          const struct batch *b, uint32_t layer, enum site site,
                                          struct mat h);
/* Runs one layer from resid to resid and fills `s`. Recomputation (`again`) stops before the last
 * product, unless the backward pass needs its result for a norm. */
void forward_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool again);
void forward_layers(struct engine *e, const struct batch *b); /* from the embedding on */
/* The loss of each learned token; with b->backward also sets dresid. */
void forward_loss(struct engine *e, const struct batch *b);
void backward_layers(struct engine *e, const struct batch *b);
/* Queues the whole pass: embedding, layers, loss and, with b->backward, the backward pass. b->nll
 * is set once the backend's check() has returned, so the batch must stay open until then. */
err pass_run(struct engine *e, struct batch *b);

#endif
