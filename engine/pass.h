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

struct engine_layer {
    struct backend_weight *qkv, *o, *gate, *up, *down;
    float *attn_norm, *mlp_norm, *q_norm, *k_norm; /* (d_model) twice, (head_dim) twice; device */
};

struct saved {       /* of one layer; T tokens */
    struct mat x1;   /* (T, d_model) input of the layer */
    struct mat x2;   /* (T, d_model) after attention */
    struct mat qkv;  /* (T, (heads + 2 kv_heads) head_dim), q and k rotated */
    struct mat raw;  /* (T, (heads + kv_heads) head_dim) q and k before their norms; qk_norm only */
    struct mat att;  /* (T, heads head_dim) */
    struct mat gate; /* (T, d_ffn) */
    struct mat up;   /* (T, d_ffn) */
    struct mat h[SITES];                      /* (T, width of the site) the low-rank part's H */
    float *inv1, *inv2, *inv_q, *inv_k, *lse; /* (T), (T), (T, heads), (T, kv_heads), (T, heads) */
};

struct pass { /* the engine's working memory */
    size_t tokens_max, learned_max;
    uint32_t site_width[SITES], mask_width; /* the largest that the memory has room for */
    bool backward, checkpoint;
    void *memory;
    struct saved *layer;                 /* (layers); only the first is used if all share it */
    struct mat *x1;                      /* (layers) */
    struct mat resid;                    /* (T, d_model) float32 */
    struct mat dresid;                   /* (T, d_model) float32 */
    struct mat normed;                   /* (T, d_model) */
    struct mat wide;                     /* (T, d_ffn) silu(gate) * up */
    struct mat dwide;                    /* (T, d_ffn) */
    struct mat dqkv;                     /* (T, qkv) */
    struct mat datt;                     /* (T, heads head_dim) */
    struct mat dy;                       /* (T, d_model) gradient of a block's output */
    struct mat dx;                       /* (T, d_model) float32, gradient of a norm's output */
    struct mat g, p;                     /* (T, widest site) */
    struct mat mask[2];                  /* (T, d_in), dropout only */
    struct mat last, last_normed, dlast; /* (learned, d_model) float32, precision, float32 */
    float *inv;                          /* (T) scratch */
};

struct engine {
    const struct model *model;
    const struct backend *be;
    struct backend_context *ctx;
    struct engine_layer *layer; /* (layers) */
    struct backend_weight *head;
    float *final_norm;
    float *norms;         /* the memory of all norms */
    float *cosine, *sine; /* (positions, head_dim / 2) */
    size_t positions;
    struct pass pass;
};

struct cache {    /* keys and values of one sequence */
    void *memory; /* (layers, 2, capacity, kv_heads head_dim), of the engine's precision */
    uint32_t capacity;
    uint32_t length; /* positions filled before this pass */
};

struct batch { /* input and results of one pass */
    size_t tokens, rows, learned;
    uint32_t *start;    /* (rows + 1) */
    uint32_t *position; /* (tokens) */
    uint32_t *index;    /* (learned) positions whose next token is learned */
    int32_t *target;    /* (learned) */
    double *nll;        /* (learned) */
    const struct segment *segment;
    size_t segments;
    float dropout;
    uint64_t dropout_key;
    bool backward, checkpoint;
    double scale;
    struct cache **cache; /* (rows) caches to append to, or NULL */
    bool decode;          /* each row is one new token that attends to its cache */
    size_t outputs;       /* rows of `last` that the caller needs besides the learned ones */
    uint32_t lowest; /* lowest layer with a module that trains; layers below have no backward */
    struct arena arena;
};

/* Columns of one token's q, k, v. */
static inline size_t engine_qkv_width(const struct arch *a)
{
    return (size_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
}

/* Makes a batch of rows; the caller sets the segments. Learned tokens are listed only with
 * `labels`. */
err batch_open(struct batch *out, const struct engine_row *row, size_t rows, bool labels);
void batch_close(struct batch *b);
/* Makes the working memory large enough for the batch. */
err pass_reserve(struct engine *e, const struct batch *b);
/* Makes the tables of rotation angles cover `positions` positions. */
err engine_reserve_positions(struct engine *e, size_t positions);
/* Writes the embeddings of the rows into resid. */
err pass_embed(struct engine *e, const struct engine_row *row, size_t rows);
struct low_rank pass_low_rank(struct engine *e, const struct batch *b, uint32_t layer,
                              enum site site);
/* Runs one layer from resid to resid and fills `s`. With `whole` false it stops before the last
 * product, because recomputation needs nothing after it. */
void forward_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool whole);
void forward_layers(struct engine *e, const struct batch *b);
/* Fills b->nll with the loss of each learned token; with b->backward also sets dresid. */
void forward_loss(struct engine *e, const struct batch *b);
void backward_layers(struct engine *e, const struct batch *b);
/* The whole pass: embedding, layers, loss and, with b->backward, the backward pass. */
err pass_run(struct engine *e, struct batch *b, const struct engine_row *row);

#endif
