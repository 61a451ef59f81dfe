#include "engine/pass.h"

/* Is there anything to learn in `layer` before site `site` (or in a lower layer)? */
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

/* Also leaves the gradients of gate and up in their places. */
static void back_down(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                      bool further)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    struct low_rank l = pass_low_rank(e, b, layer, SITE_DOWN);
    struct factors_back back = {.dy = {p->dy}, .h = s->h[SITE_DOWN], .g = p->g, .p = p->p};
    e->be->convert(e->ctx, p->dy, p->dresid, b->tokens, a->d_model, 1.0f);
    if (b->checkpoint || !further) { /* else gate_back() makes x again */
        e->be->gate(e->ctx, p->wide, s->gate, s->up, b->tokens, a->d_ffn);
        back.x = p->wide;
    }
    if (b->checkpoint)
        factors_shrink(&l, s->h[SITE_DOWN], p->wide); /* recomputing stopped before */
    if (further) back.dx = p->dwide;
    bool add = factors_backward(&l, &back);
    if (!further) return;
    e->be->linear_back(e->ctx, p->dwide, p->dy, e->layer[layer].down, b->tokens, add);
    e->be->gate_back(e->ctx, s->gate, s->up, p->dwide, s->gate, s->up, b->tokens, a->d_ffn);
    if (back.x.data) return;
    back.x = p->dwide;
    factors_backward_a(&l, &back);
}

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
