/* The forward pass. Row vectors x of a token go through each layer as
 *
 *   n1 = norm(x)            q, k, v = n1 W_qkv^T + b       q, k normed (Qwen3), then rotated
 *   x  = x + attention(q, k, v) W_o^T + b
 *   n2 = norm(x)            x = x + (silu(n2 W_gate^T) * (n2 W_up^T)) W_down^T
 *
 * with the low-rank part of the adapter added to each product. */
#include "engine/pass.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* All lists of a batch are in its arena; the rows and segments belong to the caller. */
void batch_close(struct batch *b)
{
    arena_close(&b->arena);
    *b = (struct batch){0};
}

/* The first token is never learned, because no token before it predicts it. */
static size_t learned_of(const struct engine_row *row)
{
    size_t n = 0;
    for (uint32_t i = 1; i < row->count; i++)
        n += row->label[i] != DATA_IGNORE;
    return n;
}

err batch_open(struct batch *out, const struct engine_row *row, size_t rows, bool labels)
{
    struct batch b = {.rows = rows};
    err e;
    for (size_t i = 0; i < rows; i++) {
        b.tokens += row[i].count;
        if (labels) b.learned += learned_of(&row[i]);
    }
    if (b.tokens > UINT32_MAX / 2) return err_make(ERR_LIMIT, "batch of %zu tokens", b.tokens);
    TRY_OUT(e, arena_take(&b.start, &b.arena, rows + 1, sizeof *b.start));
    TRY_OUT(e, arena_take(&b.position, &b.arena, b.tokens, sizeof *b.position));
    TRY_OUT(e, arena_take(&b.index, &b.arena, b.learned, sizeof *b.index));
    TRY_OUT(e, arena_take(&b.target, &b.arena, b.learned, sizeof *b.target));
    TRY_OUT(e, arena_take(&b.nll, &b.arena, b.learned, sizeof *b.nll));
    size_t at = 0, learned = 0;
    for (size_t i = 0; i < rows; i++) {
        b.start[i] = (uint32_t)at;
        for (uint32_t t = 0; t < row[i].count; t++, at++) {
            b.position[at] = t;
            if (!labels || t == 0 || row[i].label[t] == DATA_IGNORE) continue;
            b.index[learned] = (uint32_t)at - 1;
            b.target[learned++] = row[i].label[t];
        }
    }
    b.start[rows] = (uint32_t)at;
    *out = b;
out:
    if (err_is(e)) batch_close(&b);
    return e;
}

struct low_rank pass_low_rank(struct engine *e, const struct batch *b, uint32_t layer,
                              enum site site)
{
    return (struct low_rank){.be = e->be,
                             .ctx = e->ctx,
                             .segment = b->segment,
                             .segments = b->segments,
                             .layer = layer,
                             .site = site,
                             .dropout = b->dropout,
                             .dropout_key = b->dropout_key,
                             .wide = e->pass.mask[0],
                             .wide2 = e->pass.mask[1]};
}

/* Norms over each head, before rotation (Qwen3). The values before the norm are copied to s->raw,
 * because the backward pass needs the input of the norm. q has `heads` groups and k `kv_heads`. */
static void qk_norms(struct engine *e, const struct batch *b, const struct engine_layer *w,
                     struct saved *s)
{
    const struct arch *a = &e->model->arch;
    size_t q = (size_t)a->heads * a->head_dim, k = (size_t)a->kv_heads * a->head_dim;
    e->be->convert(e->ctx, s->raw, s->qkv, b->tokens, q + k, 1.0f);
    struct norm_shape shape = {b->tokens, a->heads, a->head_dim, a->rms_eps};
    e->be->norm(e->ctx, s->qkv, s->inv_q, s->raw, w->q_norm, &shape);
    shape.groups = a->kv_heads;
    e->be->norm(e->ctx, mat_at(s->qkv, 0, q), s->inv_k, mat_at(s->raw, 0, q), w->k_norm, &shape);
}

/* Keys (value 0) or values (value 1) of one layer, (capacity, kv_heads head_dim). Layers lie one
 * after the other in one block. */
static struct mat cache_at(const struct engine *e, const struct cache *c, uint32_t layer, int value)
{
    size_t width = (size_t)e->model->arch.kv_heads * e->model->arch.head_dim;
    struct mat all = {c->memory, engine_precision(e), width};
    return mat_at(all, ((size_t)layer * 2 + (size_t)value) * c->capacity, 0);
}

/* Appends the rotated keys and the values of this pass. Capacity was reserved for prompt and new
 * tokens together, so a full cache is a mistake of the caller. */
static void fill_caches(struct engine *e, const struct batch *b, uint32_t layer,
                        const struct attention_tensors *t)
{
    size_t width = (size_t)e->model->arch.kv_heads * e->model->arch.head_dim;
    for (size_t i = 0; i < b->rows; i++) {
        const struct cache *c = b->cache[i];
        size_t n = b->start[i + 1] - b->start[i];
        REQUIRE(c->length + n <= c->capacity);
        e->be->convert(e->ctx, mat_at(cache_at(e, c, layer, 0), c->length, 0),
                       mat_at(t->k, b->start[i], 0), n, width, 1.0f);
        e->be->convert(e->ctx, mat_at(cache_at(e, c, layer, 1), c->length, 0),
                       mat_at(t->v, b->start[i], 0), n, width, 1.0f);
    }
}

/* One new token per sequence attends to its own cache. Sequences have different lengths, so
 * attention goes through a list of rows, at most 64 at once because the list is on the stack. */
static void attend_caches(struct engine *e, const struct batch *b, uint32_t layer,
                          const struct attention_tensors *t, const struct attention_shape *shape)
{
    struct decode_row row[64];
    for (size_t first = 0; first < b->rows; first += 64) {
        struct attention_shape part = *shape;
        part.rows = (uint32_t)(b->rows - first < 64 ? b->rows - first : 64);
        for (size_t i = 0; i < part.rows; i++) {
            const struct cache *c = b->cache[first + i];
            row[i] = (struct decode_row){cache_at(e, c, layer, 0), cache_at(e, c, layer, 1),
                                         c->length + 1};
        }
        e->be->attention_decode(e->ctx, mat_at(t->out, first, 0), mat_at(t->q, first, 0), row,
                                &part);
    }
}

/* q, k and v are views of the same rows of s->qkv. Rotation works on q and k together: they lie
 * side by side and have the same head dimension, so they are heads + kv_heads heads. */
static void attend(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s)
{
    const struct arch *a = &e->model->arch;
    size_t q = (size_t)a->heads * a->head_dim, k = (size_t)a->kv_heads * a->head_dim;
    if (a->qk_norm) qk_norms(e, b, &e->layer[layer], s);
    struct rope_shape rope = {.rows = b->tokens, .heads = a->heads + a->kv_heads};
    rope.head_dim = a->head_dim;
    rope.position = b->position;
    rope.cos = e->cosine;
    rope.sin = e->sine;
    e->be->rope(e->ctx, s->qkv, s->qkv, &rope);
    struct attention_shape shape = {.start = b->start, .rows = (uint32_t)b->rows};
    shape.heads = a->heads;
    shape.kv_heads = a->kv_heads;
    shape.head_dim = a->head_dim;
    shape.window = e->model->layer[layer].window;
    struct attention_tensors t = {.q = s->qkv, .k = mat_at(s->qkv, 0, q), .out = s->att};
    t.v = mat_at(s->qkv, 0, q + k);
    t.lse = s->lse;
    if (b->cache) fill_caches(e, b, layer, &t);
    if (b->decode)
        attend_caches(e, b, layer, &t, &shape);
    else
        e->be->attention(e->ctx, &t, &shape);
}

/* For q, k, v, gate and up the low-rank part is written first (fresh) and the large product is
 * added to it inside the kernel, in float32 before rounding. For o and down the result is the
 * float32 residual stream, so the order does not matter and the low-rank part is added afterwards.
 *
 * In training very short batches are padded to BACKEND_FEW rows: below that the backend may sum in
 * another order, and the gradient of a record would depend on the other records. */
void forward_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool whole)
{
    const struct arch *a = &e->model->arch;
    const struct engine_layer *w = &e->layer[layer];
    const struct backend *be = e->be;
    struct pass *p = &e->pass;
    size_t t = b->tokens, d = a->d_model;
    size_t rows =
        b->backward && t < BACKEND_FEW ? BACKEND_FEW : t; /* results independent of other rows */
    struct norm_shape norm = {t, 1, d, a->rms_eps};
    struct low_rank l = pass_low_rank(e, b, layer, SITE_QKV);
    be->norm(e->ctx, p->normed, s->inv1, p->resid, w->attn_norm, &norm);
    size_t k = (size_t)a->heads * a->head_dim, v = k + (size_t)a->kv_heads * a->head_dim;
    struct mat qkv[] = {s->qkv, mat_at(s->qkv, 0, k), mat_at(s->qkv, 0, v)};
    bool add = factors_forward(&l, qkv, s->h[SITE_QKV], p->normed, true);
    be->linear(e->ctx, s->qkv, p->normed, w->qkv, rows, add);
    attend(e, b, layer, s);
    be->linear(e->ctx, p->resid, s->att, w->o, rows, true);
    l.site = SITE_O;
    factors_forward(&l, &p->resid, s->h[SITE_O], s->att, false);
    if (b->backward) be->convert(e->ctx, s->x2, p->resid, t, d, 1.0f);
    be->norm(e->ctx, p->normed, s->inv2, p->resid, w->mlp_norm, &norm);
    l.site = SITE_GATE_UP;
    struct mat gate_up[] = {s->gate, s->up};
    add = factors_forward(&l, gate_up, s->h[SITE_GATE_UP], p->normed, true);
    be->linear(e->ctx, s->gate, p->normed, w->gate, rows, add);
    be->linear(e->ctx, s->up, p->normed, w->up, rows, add);
    if (!whole) return;
    be->gate(e->ctx, p->wide, s->gate, s->up, t, a->d_ffn);
    be->linear(e->ctx, p->resid, p->wide, w->down, rows, true);
    l.site = SITE_DOWN;
    factors_forward(&l, &p->resid, s->h[SITE_DOWN], p->wide, false);
}

/* The input x1 of a layer is kept only from the lowest trained layer on. */
void forward_layers(struct engine *e, const struct batch *b)
{
    struct pass *p = &e->pass;
    for (uint32_t layer = 0; layer < e->model->arch.layers; layer++) {
        bool shared = !b->backward || b->checkpoint;
        struct saved *s = &p->layer[shared ? 0 : layer];
        if (b->backward && layer >= b->lowest)
            e->be->convert(e->ctx, p->x1[layer], p->resid, b->tokens, e->model->arch.d_model, 1.0f);
        forward_layer(e, b, layer, s, true);
    }
}

/* Loss of the learned tokens in blocks of learned_max: gather their rows, final norm, head. With a
 * backward pass the gradient goes back through the norm and is added to dresid at the same rows.
 * Rows without a learned token keep the gradient 0 that dresid starts with. */
void forward_loss(struct engine *e, const struct batch *b)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    if (b->backward) e->be->zero(e->ctx, p->dresid, b->tokens, a->d_model);
    struct norm_shape norm = {0, 1, a->d_model, a->rms_eps};
    for (size_t at = 0; at < b->learned; at += p->learned_max) {
        size_t n = b->learned - at < p->learned_max ? b->learned - at : p->learned_max;
        norm.rows = n;
        e->be->gather(e->ctx, p->last, p->resid, b->index + at, n, a->d_model);
        e->be->norm(e->ctx, p->last_normed, p->inv, p->last, e->final_norm, &norm);
        struct head_loss loss = {.rows = n, .target = b->target + at, .nll = b->nll + at};
        loss.gradient_scale = (float)b->scale;
        struct mat none = {0};
        e->be->head_loss(e->ctx, b->backward ? p->dlast : none, p->last_normed, e->head, &loss);
        if (!b->backward) continue;
        e->be->norm_back(e->ctx, p->dlast, p->dlast, p->last, p->inv, e->final_norm, &norm, true);
        e->be->scatter_add(e->ctx, p->dresid, p->dlast, b->index + at, n, a->d_model);
    }
}

/* The embedding is read from the file row by row, because only the rows of this batch are needed
 * and a packed copy would cost vocab * d_model floats. */
err pass_embed(struct engine *e, const struct engine_row *row, size_t rows)
{
    const struct arch *a = &e->model->arch;
    size_t d = a->d_model, at = 0;
    float *one = malloc(d * sizeof(float));
    if (!one) return err_sys(ENOMEM, "engine");
    for (size_t i = 0; i < rows; i++)
        for (uint32_t t = 0; t < row[i].count; t++, at++) {
            REQUIRE(row[i].id[t] >= 0 && (uint32_t)row[i].id[t] < a->vocab);
            weight_rows_f32(one, &e->model->embed, (uint32_t)row[i].id[t], 1);
            e->be->copy_in(e->ctx, mat_at(e->pass.resid, at, 0).data, one, d * sizeof(float));
        }
    free(one);
    return ERR_NONE;
}
