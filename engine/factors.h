/* Adapters prepared for products, and the low-rank part of a layer over segments of tokens. Used
 * only inside the engine.
 *
 * A site is a place where adapted modules share one input x (tokens, d_in): q, k, v; o; gate, up;
 * down. The factors A of a site are stacked, so that one product gives H = x A^T (tokens, width)
 * for all modules; then each module m adds H_m B_m^T to its own columns of y. All forms of an
 * adapter become such a pair: the scale and R are multiplied into B, and the carry adds rows to A
 * and columns to B.
 *
 *   forward    H = x A^T                y_m += H_m B_m^T
 *   backward   G_m = dy_m B_m           dx += G A
 *              dA_m = G_m^T x           dB_m = s dy_m^T H_m R^T        dR_m = s (dy_m B)^T H_m */
#ifndef ENGINE_FACTORS_H
#define ENGINE_FACTORS_H

#include "engine/adapter.h"
#include "kernels/backend.h"

enum site { SITE_QKV, SITE_O, SITE_GATE_UP, SITE_DOWN, SITES };
enum { SITE_MODULES = 3 };

struct factor { /* one module of a site */
    const struct adapter_module *module;
    const float *carry_a, *carry_b; /* the carry packed here if it is borrowed, else NULL */
    uint32_t rank, width;           /* width: rank + carry rank */
    uint32_t col;                   /* its first column of H */
    uint32_t slot;                  /* index of the output within the site: q, k, v are 0, 1, 2 */
    uint32_t d_out;
    struct mat b;            /* (d_out, width): s B or s B R, then carry_b */
    struct mat plain_b;      /* (d_out, rank), only with R */
    struct mat r;            /* (rank, rank), only with R */
    size_t a_at, b_at, r_at; /* offsets of its gradients in the trained block */
};
struct site_factors {
    uint32_t d_in, width, count;
    uint32_t slots, d_out[SITE_MODULES]; /* outputs of the site, adapted or not */
    struct mat a;                        /* (width, d_in) */
    struct factor factor[SITE_MODULES];
};
struct factors {
    const struct backend *be;
    struct backend_context *ctx;
    const struct adapter *adapter;
    struct site_factors *site; /* (sites) */
    size_t sites;              /* layers * SITES */
    uint32_t width_max, d_in_max;
    void *memory; /* all packed factors */
    float *stage; /* one module's tensors as float32, on the device */
};

err factors_open(struct factors **out, const struct backend *be, struct backend_context *ctx,
                 const struct adapter *ad, const struct arch *arch);
/* Packs another adapter in the memory of `f`. Its carry is not packed again: it must be the
 * borrowed carry that `f` holds already. False: the modules, ranks or carry differ, and f is
 * unchanged. The adapter that f was opened for may be closed. */
bool factors_adopt(struct factors *f, const struct adapter *ad, const struct arch *arch);
/* Reads A, B and R of the adapter again, after they have changed. The carry never changes. */
void factors_refresh(struct factors *f);
void factors_close(struct factors *f); /* accepts NULL */
/* Whether a module of `layer` trains at `site` or at a later site of the same layer. */
bool factors_train_at(const struct factors *f, uint32_t layer, enum site site);

struct segment { /* tokens [first, first + tokens) of a batch, which use one adapter */
    const struct factors *factors; /* NULL: the base alone */
    float *gradient;               /* as the trained block, gradients are added; NULL: none */
    size_t first, tokens;
    /* With `start` each row has its own gradient, at gradient + i * stride, for the tokens
     * start[i] .. start[i + 1] - 1 of the batch. */
    const uint32_t *start; /* (rows + 1), from first to first + tokens; NULL: one for all */
    size_t rows, stride;
};
struct low_rank { /* one site of one layer over a whole batch */
    const struct backend *be;
    struct backend_context *ctx;
    const struct segment *segment;
    size_t segments;
    uint32_t layer;
    enum site site;
    float dropout;
    uint64_t dropout_key;
    struct mat wide, wide2; /* (tokens, d_in) scratch; dropout only */
};
/* y: the outputs of the site, each (tokens, d_out). h (tokens, width) is kept for the backward
 * pass. Adds to y. With `fresh` it sets y instead, and outputs that are not adapted become zero;
 * the caller then adds the large product afterwards, because in bfloat16 a small term added to a
 * large rounded one would mostly be lost. Returns false, with y untouched, when no segment has a
 * module at this site. */
bool factors_forward(const struct low_rank *l, const struct mat *y, struct mat h, struct mat x,
                     bool fresh);
/* Computes only h. */
void factors_shrink(const struct low_rank *l, struct mat h, struct mat x);
/* Operands of the backward pass; g (tokens, width) and p (tokens, rank) are scratch. With dx.data
 * NULL no gradient of the input is computed. With x.data NULL the gradients of A are left to
 * factors_backward_a(), which needs x and the unchanged g. */
struct factors_back {
    struct mat dy[SITE_MODULES], x, h, g, p, dx;
};
/* Adds the gradients. Returns whether dx was set. */
bool factors_backward(const struct low_rank *l, const struct factors_back *b);
void factors_backward_a(const struct low_rank *l, const struct factors_back *b);

#endif
