/* The backward pass, layer by layer from the last to the lowest trained one. Notation: dx is the
 * gradient of the loss with respect to x; p->dresid (T, d_model) is the gradient of the residual
 * stream, which each block reads and adds to:
 *
 *   dy     = gradient of a block's output = dresid (both addends of the residual sum get it),
 *            then back through the norm and the factor of the output, if there are any
 *   dx     = dy W, and the adapter's part
 *   dresid += norm_back(dx), which also writes the dy of the block before
 *
 * Frozen weights get no gradient. `further` is true if a module before the site still trains; if
 * not, the pass stops there, so layers and sites below the lowest trained module cost nothing. */
#include "engine/pass.h"

/* Whether a module before `site` in this layer, or any lower layer, trains. */
static bool wanted_below(const struct batch *b, uint32_t layer, enum site site)
{
    if (layer > b->lowest) return true;
    for (size_t i = 0; i < b->segments; i++) {
        if (!b->segment[i].gradient) continue;
        const struct factors *f = b->segment[i].factors;
        for (int s = 0; s < (int)site; s++)
            if (f->site[layer * SITES + (uint32_t)s].count) return true;
    }
    return false;
}

/* p->dy has the gradient of the stream and gets that of the product whose norm or multiple was
 * added to the stream. */
static void back_block_output(struct engine *e, const struct batch *b, uint32_t layer,
                              struct saved *s, enum block block)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    const float *weight = e->layer[layer].out_norm[block];
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    struct mat none = {0};
    float scale = pass_residual_scale(e);
    if (weight)
        e->be->norm_back(e->ctx, p->dy, none, p->dy, s->out[block], s->inv_out[block], weight,
                         &norm, true);
    if (scale != 1.0f) e->be->convert(e->ctx, p->dy, p->dy, b->tokens, a->d_model, scale);
}

/* Site down: y = h W_down^T with h = activation(gate) * up. Computes dh = dy W_down and then the
 * gradients of gate and up, which are stored in their places.
 *
 * h itself is not kept after the forward pass, because (T, d_ffn) is the widest tensor. gate_back()
 * recomputes it into p->dwide as a by-product. It is recomputed before that only if checkpointing
 * needs H for the adapter, or if only the adapter's gradient is wanted. With a norm of the output
 * checkpointing has computed H already. */
static void back_down(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                      bool further)
{
    const struct arch *a = &e->model->arch;
    const struct backend *be = e->be;
    struct pass *p = &e->pass;
    struct low_rank_site l;
    const struct low_rank_site *low = pass_low_rank(&l, e, b, layer, SITE_DOWN, s->h[SITE_DOWN]);
    struct mat none = {0}, up = mat_at(s->gate_up, 0, a->d_ffn);
    struct gate_shape gate = {b->tokens, a->d_ffn, a->activation};
    bool again = b->checkpoint && !e->layer[layer].out_norm[BLOCK_MLP];
    if (low || further) back_block_output(e, b, layer, s, BLOCK_MLP);
    if (low && (again || !further)) be->gate(e->ctx, p->wide, s->gate_up, up, &gate);
    if (low && again) be->low_rank_shrink(e->ctx, low, p->wide, p->batch);
    if (low || further)
        be->linear_back(e->ctx, further ? p->dwide : none, p->dy, e->layer[layer].down, low,
                        p->batch, b->tokens);
    if (further) be->gate_back(e->ctx, s->gate_up, up, p->dwide, s->gate_up, up, &gate);
    if (low) be->low_rank_gradient(e->ctx, low, p->dy, further ? p->dwide : p->wide, p->batch);
}

/* A site whose input is a norm of x, or x itself: q, k, v or gate, up. The normed input is computed
 * again and not kept, since it is one pass over (T, d_model). */
struct normed_site {
    enum site site;
    const struct backend_weight *w;
    const float *norm; /* its weight; NULL: x itself */
    struct mat dy, x;
    float *inv;
};
static void back_normed(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                        const struct normed_site *n, bool further)
{
    const struct arch *a = &e->model->arch;
    const struct backend *be = e->be;
    struct pass *p = &e->pass;
    struct low_rank_site l;
    const struct low_rank_site *low = pass_low_rank(&l, e, b, layer, n->site, s->h[n->site]);
    struct mat none = {0};
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    if (low || further)
        be->linear_back(e->ctx, further ? p->dx : none, n->dy, n->w, low, p->batch, b->tokens);
    if (low) {
        if (n->norm)
            be->norm(e->ctx, p->normed, n->inv, none, n->x, n->norm, &norm);
        else /* p->normed has room for the low-rank part, n->x does not */
            be->convert(e->ctx, p->normed, n->x, b->tokens, a->d_model, 1.0f);
        be->low_rank_gradient(e->ctx, low, n->dy, p->normed, p->batch);
    }
    if (!further) return;
    if (n->norm) {
        be->norm_back(e->ctx, p->dresid, p->dy, p->dx, n->x, n->inv, n->norm, &norm, false);
    } else {
        be->add(e->ctx, p->dresid, p->dx, b->tokens, a->d_model, 1.0f);
        be->convert(e->ctx, p->dy, p->dresid, b->tokens, a->d_model, 1.0f);
    }
}

/* Site gate and up: s->gate_up holds the gradients of both outputs now. */
static void back_gate_up(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                         bool further)
{
    const struct engine_layer *w = &e->layer[layer];
    struct normed_site n = {SITE_GATE_UP, w->gate_up, w->norm[BLOCK_MLP],
                            s->gate_up,   s->x2,      s->inv2};
    back_normed(e, b, layer, s, &n, further);
}

/* Site o: y = att W_o^T. datt = dy W_o is the gradient of the attention output; the stream itself
 * passes dresid on unchanged. */
static void back_o(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool further)
{
    struct pass *p = &e->pass;
    struct low_rank_site l;
    const struct low_rank_site *low = pass_low_rank(&l, e, b, layer, SITE_O, s->h[SITE_O]);
    struct mat none = {0};
    if (low || further) back_block_output(e, b, layer, s, BLOCK_ATTENTION);
    if (low || further)
        e->be->linear_back(e->ctx, further ? p->datt : none, p->dy, e->layer[layer].o, low,
                           p->batch, b->tokens);
    if (low) e->be->low_rank_gradient(e->ctx, low, p->dy, s->att, p->batch);
}

/* Attention, rotation and head norms in reverse. A rotation is orthogonal, so its transpose is the
 * rotation by minus the angle. The gradients overwrite p->dqkv in place at each step; norm_back()
 * with `set` replaces dy by dx, and reads the inputs of the norms from s->raw. */
static void back_attend(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    struct pass_heads h = pass_heads(e, b, layer, s->qkv), dh = pass_heads(e, b, layer, p->dqkv);
    struct attention_tensors t = {h.q, h.k, h.v, s->att, s->lse};
    struct attention_tensors grad = {dh.q, dh.k, dh.v, p->datt, NULL};
    e->be->attention_back(e->ctx, &grad, &t, &h.shape, p->batch);
    h.rope.back = true;
    if (!e->model->layer[layer].unrotated) e->be->rope(e->ctx, p->dqkv, p->dqkv, &h.rope, p->batch);
    if (!a->qk_norm) return;
    struct mat none = {0};
    struct norm_shape norm = pass_head_norm(e, b, a->heads);
    e->be->norm_back(e->ctx, p->dqkv, none, p->dqkv, s->raw, s->inv_q, e->layer[layer].q_norm,
                     &norm, true);
    norm = pass_head_norm(e, b, a->kv_heads);
    size_t q = (size_t)a->heads * a->head_dim;
    e->be->norm_back(e->ctx, dh.k, none, dh.k, mat_at(s->raw, 0, q), s->inv_k,
                     e->layer[layer].k_norm, &norm, true);
}

/* Site q, k, v: one product with the stacked weight gives dx = dq W_q + dk W_k + dv W_v. In the
 * lowest trained layer nothing below needs dx, and the pass ends. */
static void back_qkv(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                     bool further)
{
    const struct engine_layer *w = &e->layer[layer];
    struct normed_site n = {SITE_QKV,          w->qkv, w->norm[BLOCK_ATTENTION], e->pass.dqkv,
                            e->pass.x1[layer], s->inv1};
    back_normed(e, b, layer, s, &n, further);
}

/* Sites in reverse order of the forward pass. Each stops the layer if no earlier site trains. */
static void back_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s)
{
    bool further = wanted_below(b, layer, SITE_DOWN);
    back_down(e, b, layer, s, further);
    if (!further) return;
    further = wanted_below(b, layer, SITE_GATE_UP);
    back_gate_up(e, b, layer, s, further);
    if (!further) return;
    further = wanted_below(b, layer, SITE_O);
    back_o(e, b, layer, s, further);
    if (!further) return;
    back_attend(e, b, layer, s);
    back_qkv(e, b, layer, s, layer > b->lowest);
}

/* With checkpointing each layer is first run forward again from its kept input. forward_layer()
 * repeats the same operations on the same values, so the gradients have the same bits as without
 * checkpointing, except where x1 was rounded to bfloat16. */
void backward_layers(struct engine *e, const struct batch *b)
{
    struct pass *p = &e->pass;
    size_t d = e->model->arch.d_model;
    e->be->convert(e->ctx, p->dy, p->dresid, b->tokens, d, 1.0f);
    for (uint32_t i = e->model->arch.layers; i > b->lowest; i--) {
        uint32_t layer = i - 1;
        struct saved *s = &p->layer[b->checkpoint ? 0 : layer];
        if (b->checkpoint) {
            e->be->convert(e->ctx, p->resid, p->x1[layer], b->tokens, d, 1.0f);
            forward_layer(e, b, layer, s, true);
        }
        back_layer(e, b, layer, s);
    }
}
