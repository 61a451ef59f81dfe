/* The backward pass, layer by layer from the last to the lowest trained one. Notation: dx is the
 * gradient of the loss with respect to x; p->dresid (T, d_model) is the gradient of the residual
 * stream, which each block reads and adds to:
 *
 *   dy     = gradient of a block's output = dresid (both addends of the residual sum get it)
 *   dx     = sum over the modules of the site: dy W, and the adapter's part (factors.h)
 *   dresid += norm_back(dx)
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

/* Site down: y = h W_down^T with h = silu(gate) * up. Computes dh = dy W_down and then the
 * gradients of gate and up, which are stored in their places.
 *
 * h itself is not kept after the forward pass, because (T, d_ffn) is the widest tensor. It is
 * recomputed first if checkpointing needs H for the adapter, or if only the adapter's gradient is
 * wanted; otherwise gate_back() recomputes it into p->dwide as a by-product, and the gradient of A
 * is taken after that. */
static void back_down(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                      bool further)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    struct low_rank l = pass_low_rank(e, b, layer, SITE_DOWN);
    struct factors_back back = {.dy = {p->dy}, .h = s->h[SITE_DOWN], .g = p->g, .p = p->p};
    e->be->convert(e->ctx, p->dy, p->dresid, b->tokens, a->d_model, 1.0f);
    if (b->checkpoint || !further) { /* else gate_back() recomputes h */
        e->be->gate(e->ctx, p->wide, s->gate, s->up, b->tokens, a->d_ffn);
        back.x = p->wide;
    }
    if (b->checkpoint)
        factors_shrink(&l, s->h[SITE_DOWN], p->wide); /* recomputation stopped before this */
    if (further) back.dx = p->dwide;
    bool add = factors_backward(&l, &back);
    if (!further) return;
    e->be->linear_back(e->ctx, p->dwide, p->dy, e->layer[layer].down, b->tokens, add);
    e->be->gate_back(e->ctx, s->gate, s->up, p->dwide, s->gate, s->up, b->tokens, a->d_ffn);
    if (back.x.data) return;
    back.x = p->dwide;
    factors_backward_a(&l, &back);
}

/* Site gate and up: s->gate and s->up hold the gradients of both outputs now. dx = dgate W_gate +
 * dup W_up, then through the norm into dresid. The normed input is recomputed from x2 rather than
 * kept: it is one pass over (T, d_model). */
static void back_gate_up(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                         bool further)
{
    const struct arch *a = &e->model->arch;
    const struct engine_layer *w = &e->layer[layer];
    struct pass *p = &e->pass;
    struct low_rank l = pass_low_rank(e, b, layer, SITE_GATE_UP);
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    e->be->norm(e->ctx, p->normed, s->inv2, s->x2, w->mlp_norm, &norm);
    struct factors_back back = {.dy = {s->gate, s->up}, .x = p->normed, .g = p->g};
    back.h = s->h[SITE_GATE_UP];
    back.p = p->p;
    if (further) back.dx = p->dx;
    bool add = factors_backward(&l, &back);
    if (!further) return;
    e->be->linear_back(e->ctx, p->dx, s->gate, w->gate, b->tokens, add);
    e->be->linear_back(e->ctx, p->dx, s->up, w->up, b->tokens, true);
    e->be->norm_back(e->ctx, p->dresid, p->dx, s->x2, s->inv2, w->mlp_norm, &norm, false);
}

/* Site o: y = att W_o^T. datt = dy W_o is the gradient of the attention output; the stream itself
 * passes dresid on unchanged. */
static void back_o(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool further)
{
    struct pass *p = &e->pass;
    struct low_rank l = pass_low_rank(e, b, layer, SITE_O);
    e->be->convert(e->ctx, p->dy, p->dresid, b->tokens, e->model->arch.d_model, 1.0f);
    struct factors_back back = {
        .dy = {p->dy}, .x = s->att, .h = s->h[SITE_O], .g = p->g, .p = p->p};
    if (further) back.dx = p->datt;
    bool add = factors_backward(&l, &back);
    if (further) e->be->linear_back(e->ctx, p->datt, p->dy, e->layer[layer].o, b->tokens, add);
}

/* Attention, rotation and head norms in reverse. A rotation is orthogonal, so its transpose is the
 * rotation by minus the angle. The gradients overwrite p->dqkv in place at each step; norm_back()
 * with `set` replaces dy by dx, and reads the inputs of the norms from s->raw. */
static void back_attend(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    size_t q = (size_t)a->heads * a->head_dim, k = (size_t)a->kv_heads * a->head_dim;
    struct attention_shape shape = {.start = b->start, .rows = (uint32_t)b->rows};
    shape.heads = a->heads;
    shape.kv_heads = a->kv_heads;
    shape.head_dim = a->head_dim;
    shape.window = e->model->layer[layer].window;
    struct attention_tensors t = {.q = s->qkv, .k = mat_at(s->qkv, 0, q), .out = s->att};
    t.v = mat_at(s->qkv, 0, q + k);
    t.lse = s->lse;
    struct attention_tensors grad = {.q = p->dqkv, .k = mat_at(p->dqkv, 0, q), .out = p->datt};
    grad.v = mat_at(p->dqkv, 0, q + k);
    e->be->attention_back(e->ctx, &grad, &t, &shape);
    struct rope_shape rope = {.rows = b->tokens, .heads = a->heads + a->kv_heads, .back = true};
    rope.head_dim = a->head_dim;
    rope.position = b->position;
    rope.cos = e->cosine;
    rope.sin = e->sine;
    e->be->rope(e->ctx, p->dqkv, p->dqkv, &rope);
    if (!a->qk_norm) return;
    struct norm_shape norm = {b->tokens, a->heads, a->head_dim, a->rms_eps};
    e->be->norm_back(e->ctx, p->dqkv, p->dqkv, s->raw, s->inv_q, e->layer[layer].q_norm, &norm,
                     true);
    norm.groups = a->kv_heads;
    struct mat dk = mat_at(p->dqkv, 0, q);
    e->be->norm_back(e->ctx, dk, dk, mat_at(s->raw, 0, q), s->inv_k, e->layer[layer].k_norm, &norm,
                     true);
}

/* Site q, k, v: one product with the stacked weight gives dx = dq W_q + dk W_k + dv W_v. In the
 * lowest trained layer nothing below needs dx, and the pass ends. */
static void back_qkv(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                     bool further)
{
    const struct arch *a = &e->model->arch;
    const struct engine_layer *w = &e->layer[layer];
    struct pass *p = &e->pass;
    struct low_rank l = pass_low_rank(e, b, layer, SITE_QKV);
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    e->be->norm(e->ctx, p->normed, s->inv1, p->x1[layer], w->attn_norm, &norm);
    struct factors_back back = {.dy = {p->dqkv}, .x = p->normed, .h = s->h[SITE_QKV], .g = p->g};
    size_t k = (size_t)a->heads * a->head_dim;
    back.dy[1] = mat_at(p->dqkv, 0, k);
    back.dy[2] = mat_at(p->dqkv, 0, k + (size_t)a->kv_heads * a->head_dim);
    back.p = p->p;
    if (further) back.dx = p->dx;
    bool add = factors_backward(&l, &back);
    if (!further) return;
    e->be->linear_back(e->ctx, p->dx, p->dqkv, w->qkv, b->tokens, add);
    e->be->norm_back(e->ctx, p->dresid, p->dx, p->x1[layer], s->inv1, w->attn_norm, &norm, false);
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
    for (uint32_t i = e->model->arch.layers; i > b->lowest; i--) {
        uint32_t layer = i - 1;
        struct saved *s = &p->layer[b->checkpoint ? 0 : layer];
        if (b->checkpoint) {
            e->be->convert(e->ctx, p->resid, p->x1[layer], b->tokens, e->model->arch.d_model, 1.0f);
            forward_layer(e, b, layer, s, false);
        }
        back_layer(e, b, layer, s);
    }
}
