/* The forward pass. Row vectors x of a token go through each layer as
 *
 *   n1 = norm(x)            q, k, v = n1 W_qkv^T + b       q, k normed and rotated
 *   x  = x + attention(q, k, v) W_o^T + b
 *   n2 = norm(x)            x = x + (activation(n2 W_gate^T) * (n2 W_up^T)) W_down^T
 *
 * with the low-rank part of the adapter added to each product. Families differ by the switches of
 * struct arch: norms before, after or around a block, norms of q and k, layers without rotation,
 * and factors and caps. */
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

err batch_open(struct batch *out, const struct engine_row *row, size_t rows,
               enum batch_outputs outputs)
{
    struct batch b = {.rows = rows};
    bool labels = outputs == BATCH_LABELS;
    err e;
    for (size_t i = 0; i < rows; i++) {
        b.tokens += row[i].count;
        if (labels) b.learned += engine_learned(row[i].label, row[i].count);
    }
    if (outputs == BATCH_LAST) b.learned = rows;
    if (b.tokens > UINT32_MAX / 2) return err_make(ERR_LIMIT, "batch of %zu tokens", b.tokens);
    TRY_OUT(e, arena_take(&b.id, &b.arena, b.tokens, sizeof *b.id));
    TRY_OUT(e, arena_take(&b.start, &b.arena, rows + 1, sizeof *b.start));
    TRY_OUT(e, arena_take(&b.position, &b.arena, b.tokens, sizeof *b.position));
    TRY_OUT(e, arena_take(&b.index, &b.arena, b.learned, sizeof *b.index));
    if (labels) TRY_OUT(e, arena_take(&b.target, &b.arena, b.learned, sizeof *b.target));
    if (labels) TRY_OUT(e, arena_take(&b.nll, &b.arena, b.learned, sizeof *b.nll));
    size_t at = 0, learned = 0;
    for (size_t i = 0; i < rows; i++) {
        b.start[i] = (uint32_t)at;
        if (row[i].count > b.positions) b.positions = row[i].count;
        for (uint32_t t = 0; t < row[i].count; t++, at++) {
            b.id[at] = row[i].id[t];
            b.position[at] = t;
            if (!labels || t == 0 || row[i].label[t] == DATA_IGNORE) continue;
            b.index[learned] = (uint32_t)at - 1;
            b.target[learned++] = row[i].label[t];
        }
        if (outputs == BATCH_LAST) b.index[i] = (uint32_t)at - 1;
    }
    b.start[rows] = (uint32_t)at;
    *out = b;
out:
    if (err_is(e)) batch_close(&b);
    return e;
}

/* The index stays ascending and without repetition, as learned_add() needs it, so the entries with
 * target -1 take the last tokens that are not learned. There are enough, because learned tokens are
 * not more than tokens and both are rounded up in the same way. */
static void pad_index(struct batch *to, const struct batch *from)
{
    size_t left = to->learned, old = from->learned, more = left - old;
    for (size_t t = to->tokens; t-- > 0 && left > 0;) {
        bool learned = old > 0 && from->index[old - 1] == t;
        if (!learned && more == 0) continue;
        to->index[--left] = (uint32_t)t;
        to->target[left] = learned ? from->target[old - 1] : -1;
        if (learned)
            old--;
        else
            more--;
    }
}

/* The additional row repeats the tokens of the longest row, so that its values are as ordinary as
 * theirs: 0 times infinity would not be 0. */
static void pad_row(struct batch *to, const struct batch *from)
{
    size_t longest = 0;
    for (size_t i = 1; i < from->rows; i++)
        if (from->start[i + 1] - from->start[i] > from->start[longest + 1] - from->start[longest])
            longest = i;
    uint32_t first = from->start[longest], length = from->start[longest + 1] - first;
    for (size_t t = from->tokens; t < to->tokens; t++) {
        to->position[t] = (uint32_t)(t - from->tokens);
        to->id[t] = from->id[first + to->position[t] % length];
        if (to->positions <= to->position[t]) to->positions = to->position[t] + 1;
    }
    for (size_t i = from->rows + 1; i <= to->rows; i++)
        to->start[i] = (uint32_t)(i < to->rows ? from->tokens : to->tokens);
}

static void *copy(void *to, const void *from, size_t n, size_t size)
{
    return n ? memcpy(to, from, n * size) : to;
}

err batch_pad(struct batch *b, size_t bucket, size_t rows)
{
    struct batch p = *b;
    REQUIRE(b->target && rows >= b->rows);
    if (bucket <= 1 || !b->tokens) return ERR_NONE;
    p.tokens = (b->tokens + bucket - 1) / bucket * bucket;
    p.learned = (b->learned + bucket - 1) / bucket * bucket;
    p.rows = rows + 1;
    TRY(arena_take(&p.id, &b->arena, p.tokens, sizeof *p.id));
    TRY(arena_take(&p.position, &b->arena, p.tokens, sizeof *p.position));
    TRY(arena_take(&p.start, &b->arena, p.rows + 1, sizeof *p.start));
    TRY(arena_take(&p.index, &b->arena, p.learned, sizeof *p.index));
    TRY(arena_take(&p.target, &b->arena, p.learned, sizeof *p.target));
    TRY(arena_take(&p.nll, &b->arena, p.learned, sizeof *p.nll));
    copy(p.id, b->id, b->tokens, sizeof *p.id);
    copy(p.position, b->position, b->tokens, sizeof *p.position);
    copy(p.start, b->start, b->rows + 1, sizeof *p.start);
    pad_row(&p, b);
    pad_index(&p, b);
    p.arena = b->arena;
    *b = p;
    return ERR_NONE;
}

const struct low_rank_site *pass_low_rank(struct low_rank_site *out, const struct engine *e,
                                          const struct batch *b, uint32_t layer, enum site site,
                                          struct mat h)
{
    bool any = false;
    *out = (struct low_rank_site){b->use, b->segments, h, e->pass.g, e->pass.p};
    for (size_t i = 0; i < b->segments; i++) {
        const struct segment *s = &b->segment[i];
        b->use[i] = (struct low_rank_use){.first = s->first,
                                          .tokens = s->tokens,
                                          .gradient = s->gradient,
                                          .row = s->row,
                                          .rows = s->rows,
                                          .stride = s->stride};
        if (s->factors) b->use[i].factors = s->factors->site[layer * SITES + site].low_rank;
        any = any || (b->use[i].factors && s->tokens);
    }
    return any ? out : NULL;
}

struct norm_shape pass_head_norm(const struct engine *e, const struct batch *b, uint32_t heads)
{
    const struct arch *a = &e->model->arch;
    bool whole = a->qk_norm == QK_NORM_WHOLE;
    return (struct norm_shape){.rows = b->tokens,
                               .groups = whole ? 1 : heads,
                               .width = (size_t)a->head_dim * (whole ? heads : 1),
                               .eps = a->rms_eps};
}

/* The values before the norm are copied to s->raw, because the backward pass needs the input of the
 * norm. */
static void qk_norms(struct engine *e, const struct batch *b, const struct engine_layer *w,
                     struct saved *s)
{
    const struct arch *a = &e->model->arch;
    size_t q = (size_t)a->heads * a->head_dim, k = (size_t)a->kv_heads * a->head_dim;
    struct mat none = {0};
    e->be->convert(e->ctx, s->raw, s->qkv, b->tokens, q + k, 1.0f);
    struct norm_shape shape = pass_head_norm(e, b, a->heads);
    e->be->norm(e->ctx, s->qkv, s->inv_q, none, s->raw, w->q_norm, &shape);
    shape = pass_head_norm(e, b, a->kv_heads);
    e->be->norm(e->ctx, mat_at(s->qkv, 0, q), s->inv_k, none, mat_at(s->raw, 0, q), w->k_norm,
                &shape);
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

/* One new token per sequence is appended to its own cache and attends to it. Sequences have
 * different lengths, so attention goes through a list of rows, at most 64 at once because the list
 * is on the stack. */
static void attend_caches(struct engine *e, const struct batch *b, uint32_t layer,
                          const struct attention_tensors *t, const struct attention_shape *shape)
{
    struct decode_row row[64];
    for (size_t first = 0; first < b->rows; first += 64) {
        size_t rows = b->rows - first < 64 ? b->rows - first : 64;
        for (size_t i = 0; i < rows; i++) {
            const struct cache *c = b->cache[first + i];
            REQUIRE(c->length < c->capacity);
            row[i] =
                (struct decode_row){cache_at(e, c, layer, 0), cache_at(e, c, layer, 1), c->length};
        }
        struct attention_tensors part = {.q = mat_at(t->q, first, 0), .k = mat_at(t->k, first, 0)};
        part.v = mat_at(t->v, first, 0);
        part.out = mat_at(t->out, first, 0);
        e->be->attention_decode(e->ctx, &part, row, rows, shape);
    }
}

/* q and k have the same head dimension, so for the rotation they are heads + kv_heads heads. */
struct pass_heads pass_heads(const struct engine *e, const struct batch *b, uint32_t layer,
                             struct mat qkv)
{
    const struct arch *a = &e->model->arch;
    size_t q = (size_t)a->heads * a->head_dim, k = (size_t)a->kv_heads * a->head_dim;
    struct pass_heads h = {.q = qkv, .k = mat_at(qkv, 0, q), .v = mat_at(qkv, 0, q + k)};
    h.shape = (struct attention_shape){.heads = a->heads,
                                       .kv_heads = a->kv_heads,
                                       .head_dim = a->head_dim,
                                       .window = e->model->layer[layer].window,
                                       .scale = a->attention_scale,
                                       .cap = a->attention_cap};
    h.rope = engine_rotation(e, layer);
    h.rope.rows = b->tokens;
    h.rope.heads = a->heads + a->kv_heads;
    return h;
}

static void attend(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s)
{
    struct pass_heads h = pass_heads(e, b, layer, s->qkv);
    struct attention_tensors t = {h.q, h.k, h.v, s->att, s->lse};
    if (e->model->arch.qk_norm) qk_norms(e, b, &e->layer[layer], s);
    if (!e->model->layer[layer].unrotated)
        e->be->rope(e->ctx, s->qkv, s->qkv, &h.rope, e->pass.batch);
    if (b->decode) {
        attend_caches(e, b, layer, &t, &h.shape);
        return;
    }
    if (b->cache) fill_caches(e, b, layer, &t);
    e->be->attention(e->ctx, &t, &h.shape, e->pass.batch);
}

/* p->normed = the input of a block: the norm of the stream, or without such a norm the stream
 * itself in the precision of the engine. `copy` = the stream unless its data is NULL. */
static void block_input(struct engine *e, const struct batch *b, const float *weight, float *inv,
                        struct mat copy)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    if (weight) {
        e->be->norm(e->ctx, p->normed, inv, copy, p->resid, weight, &norm);
        return;
    }
    e->be->convert(e->ctx, p->normed, p->resid, b->tokens, a->d_model, 1.0f);
    if (copy.data) e->be->convert(e->ctx, copy, p->resid, b->tokens, a->d_model, 1.0f);
}

/* The last product of a block, y = x W^T. */
struct block_output {
    enum block block;
    enum site site;
    struct mat x;
    const struct backend_weight *w;
    size_t rows;
};

/* resid += y, or scale y, or scale norm(y). Only the first of them is one operation. */
static void add_block(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                      const struct block_output *o)
{
    const struct arch *a = &e->model->arch;
    struct pass *p = &e->pass;
    const float *weight = e->layer[layer].out_norm[o->block];
    struct low_rank_site l;
    const struct low_rank_site *low = pass_low_rank(&l, e, b, layer, o->site, s->h[o->site]);
    float scale = pass_residual_scale(e);
    if (!weight && scale == 1.0f) {
        e->be->linear(e->ctx, p->resid, o->x, o->w, low, p->batch, o->rows, true);
        return;
    }
    struct norm_shape norm = {b->tokens, 1, a->d_model, a->rms_eps};
    struct mat y = weight ? s->out[o->block] : p->normed, none = {0};
    e->be->linear(e->ctx, y, o->x, o->w, low, p->batch, o->rows, false);
    if (weight) e->be->norm(e->ctx, p->normed, s->inv_out[o->block], none, y, weight, &norm);
    e->be->add(e->ctx, p->resid, p->normed, b->tokens, a->d_model, scale);
}

/* In training very short batches are padded to BACKEND_FEW rows: below that the backend may sum in
 * another order, and the gradient of a record would depend on the other records. The input x1 of a
 * layer is kept only from the lowest trained layer on. */
void forward_layer(struct engine *e, const struct batch *b, uint32_t layer, struct saved *s,
                   bool again)
{
    const struct arch *a = &e->model->arch;
    const struct engine_layer *w = &e->layer[layer];
    const struct backend *be = e->be;
    struct pass *p = &e->pass;
    struct low_rank_site l;
    const struct low_rank_site *low = pass_low_rank(&l, e, b, layer, SITE_QKV, s->h[SITE_QKV]);
    size_t t = b->tokens, rows = b->backward && t < BACKEND_FEW ? BACKEND_FEW : t;
    struct mat none = {0}, x1 = b->backward && !again && layer >= b->lowest ? p->x1[layer] : none;
    block_input(e, b, w->norm[BLOCK_ATTENTION], s->inv1, x1);
    be->linear(e->ctx, s->qkv, p->normed, w->qkv, low, p->batch, rows, false);
    attend(e, b, layer, s);
    struct block_output attention = {BLOCK_ATTENTION, SITE_O, s->att, w->o, rows};
    add_block(e, b, layer, s, &attention);
    block_input(e, b, w->norm[BLOCK_MLP], s->inv2, b->backward ? s->x2 : none);
    low = pass_low_rank(&l, e, b, layer, SITE_GATE_UP, s->h[SITE_GATE_UP]);
    be->linear(e->ctx, s->gate_up, p->normed, w->gate_up, low, p->batch, rows, false);
    if (again && !w->out_norm[BLOCK_MLP]) return;
    struct gate_shape gate = {t, a->d_ffn, a->activation};
    be->gate(e->ctx, p->wide, s->gate_up, mat_at(s->gate_up, 0, a->d_ffn), &gate);
    struct block_output mlp = {BLOCK_MLP, SITE_DOWN, p->wide, w->down, rows};
    add_block(e, b, layer, s, &mlp);
}

/* Gemma and Granite scale the embedded tokens. In bfloat16 the scale is rounded, as such models
 * were trained with a scale of the type of the embedding. */
static void embed(struct engine *e, const struct batch *b)
{
    const struct arch *a = &e->model->arch;
    float scale = a->embed_scale;
    struct mat x = e->pass.resid;
    e->be->embed(e->ctx, x, e->embed, e->pass.batch);
    if (engine_precision(e) == DTYPE_BF16) scale = f32_from_bf16(bf16_from_f32(scale));
    if (scale != 0.0f && scale != 1.0f) e->be->convert(e->ctx, x, x, b->tokens, a->d_model, scale);
}

void forward_layers(struct engine *e, const struct batch *b)
{
    embed(e, b);
    bool shared = !b->backward || b->checkpoint;
    for (uint32_t layer = 0; layer < e->model->arch.layers; layer++)
        forward_layer(e, b, layer, &e->pass.layer[shared ? 0 : layer], false);
}

/* Loss of the learned tokens in blocks of learned_max: take their rows, final norm, head. With a
 * backward pass the gradient goes back through the norm and is added to dresid at the same rows.
 * Rows without a learned token keep the gradient 0 that dresid starts with. */
void forward_loss(struct engine *e, const struct batch *b)
{
    const struct arch *a = &e->model->arch;
    const struct backend *be = e->be;
    struct pass *p = &e->pass;
    struct mat none = {0};
    struct norm_shape norm = {0, 1, a->d_model, a->rms_eps};
    if (b->backward) be->zero(e->ctx, p->dresid, b->tokens, a->d_model);
    for (size_t at = 0; at < b->learned; at += p->learned_max) {
        size_t n = b->learned - at < p->learned_max ? b->learned - at : p->learned_max;
        norm.rows = n;
        be->learned_take(e->ctx, p->last, p->resid, p->batch, at, n, a->d_model);
        be->norm(e->ctx, p->last_normed, p->inv, none, p->last, e->final_norm, &norm);
        be->head_loss(e->ctx, b->backward ? p->dlast : none, p->last_normed, e->head, p->batch, at,
                      n);
        if (!b->backward) continue;
        be->norm_back(e->ctx, p->dlast, none, p->dlast, p->last, p->inv, e->final_norm, &norm,
                      true);
        be->learned_add(e->ctx, p->dresid, p->dlast, p->batch, at, n, a->d_model);
    }
}
