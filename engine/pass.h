/* One forward and backward pass: inside the engine (engine.c, forward.c, backward.c, train.c,
 * generate.c).
 *
 * Rows of a batch lie one after the other, T tokens in all. What backward needs is kept a layer at
 * a time in struct saved; with checkpointing only x1 of each layer is, and the rest is recomputed
 * into one shared struct saved. The residual stream and its gradient are float32; what is kept of
 * them, and all that goes through products, is of the engine's precision. */
#ifndef CLIENT_PASS_H
#define CLIENT_PASS_H

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
    uint32_t site_width[SITES], mask_width; /* what the memory was made for */
    bool backward, checkpoint;
    void *memory;
    struct saved *layer;                 /* (layers), or one shared by all, whose x1 is in x1[] */
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

struct batch { /* what one pass runs over */
    size_t tokens, rows, learned;
    uint32_t *start;    /* (rows + 1) */
    uint32_t *position; /* (tokens) */
    uint32_t *index;    /* (learned) token whose next one is learned */
    int32_t *target;    /* (learned) */
    double *nll;        /* (learned) */
    const struct segment *segment;
    size_t segments;
    float dropout;
    uint64_t dropout_key;
    bool backward, checkpoint;
    double scale;
    struct cache **cache; /* (rows) to fill, or NULL */
    bool decode;          /* rows are one new token each, seeing their caches */
    size_t outputs;       /* rows of `last` the caller needs besides the learned ones */
    uint32_t lowest;      /* the lowest layer with something to train */
    struct arena arena;
};

/* Columns of one token's q, k, v. */
static inline size_t engine_qkv_width(const struct arch *a)
{
    return (size_t)(a->heads + 2 * a->kv_heads) * a->head_dim;
}

/* Rows to a batch; segments are set by the caller. Learned tokens are found when `labels`. */
err batch_open(struct batch *out, const struct engine_row *row, size_t rows, bool labels);
void batch_close(struct batch *b);
err pass_reserve(struct engine *e, const struct batch *b); /* memory for it */
err engine_reserve_positions(struct engine *e, size_t positions);
/* Embeds the rows into resid. */
err pass_embed(struct engine *e, const struct engine_row *row, size_t rows);
struct low_rank pass_low_rank(struct engine *e, const struct batch *b, uint32_t layer,
                              enum site site);
/* From resid to resid through one layer, filling `s`; `whole` false stops before the last product.
 */
void forward_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool whole);
void forward_layers(struct engine *e, const struct batch *b);
/* The loss of the learned tokens; with b->backward also dresid. Fills b->nll. */
void forward_loss(struct engine *e, const struct batch *b);
void backward_layers(struct engine *e, const struct batch *b);
/* All of it: embed, layers, loss, and backward if the batch says so. */
err pass_run(struct engine *e, struct batch *b, const struct engine_row *row);

#endif
