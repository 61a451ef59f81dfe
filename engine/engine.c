/* Opens an engine: packs the weights of a base model for a backend, and places the working memory
 * of a pass. The tensors of a pass are one block of memory, laid out twice by the same functions:
 * first to count its size, then to set the pointers. */
#include "engine/engine_plan.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The loss is computed for at most this many learned tokens at once, which bounds the memory behind
 * the last layer for rows of any length. */
enum { LEARNED_BLOCK = 1024 };

static size_t round_up(size_t n, size_t to)
{
    return (n + to - 1) / to * to;
}

/* Weights with the same input are stacked, so that one product computes them all and x is read
 * once: q, k and v; gate and up. */
struct stack {
    const struct weight *part[WEIGHT_PARTS_MAX], *bias[WEIGHT_PARTS_MAX];
    size_t parts;
    float cap; /* of the head */
};

/* If any part has a bias, the bias of the stack is zero for the parts without one. */
static err pack(struct backend_weight **out, struct engine *e, const struct stack *s,
                unsigned products)
{
    struct weight_source source = {
        .k = s->part[0]->cols, .parts = s->parts, .cap = s->cap, .products = products};
    bool any = false;
    for (size_t i = 0; i < s->parts; i++) {
        source.part[i] = weight_part(s->part[i]);
        source.n += s->part[i]->rows;
        any = any || (s->bias[i] && s->bias[i]->data);
    }
    float *values = NULL;
    if (any) {
        if (!(values = calloc(source.n, sizeof(float)))) return err_sys(ENOMEM, "engine");
        size_t at = 0;
        for (size_t i = 0; i < s->parts; at += s->part[i++]->rows)
            if (s->bias[i]->data) weight_rows_f32(values + at, s->bias[i], 0, s->bias[i]->rows);
        source.bias = values;
    }
    err er = e->be->weight_pack(out, e->ctx, &source);
    free(values);
    /* At once, so that the pages of the whole file are never in memory beside the packed copy. */
    for (size_t i = 0; i < s->parts && !(products & BACKEND_KEEP); i++)
        model_drop_weight(e->model, s->part[i]);
    return er;
}

/* The modules [first, first + count) of a layer as one weight. */
static err pack_modules(struct backend_weight **out, struct engine *e, uint32_t layer,
                        enum module_kind first, size_t count, unsigned products)
{
    const struct layer *m = &e->model->layer[layer];
    struct stack s = {.parts = count};
    for (size_t i = 0; i < count; i++) {
        s.part[i] = &m->linear[first + i];
        s.bias[i] = &m->bias[first + i];
    }
    return pack(out, e, &s, products);
}

static err pack_layer(struct engine *e, uint32_t layer, unsigned products)
{
    struct engine_layer *w = &e->layer[layer];
    bool fused = e->model->arch.fused;
    TRY(pack_modules(&w->qkv, e, layer, fused ? MODULE_QKV : MODULE_Q, fused ? 1 : 3, products));
    TRY(pack_modules(&w->o, e, layer, MODULE_O, 1, products));
    TRY(pack_modules(&w->gate_up, e, layer, fused ? MODULE_GATE_UP : MODULE_GATE, fused ? 1 : 2,
                     products));
    return pack_modules(&w->down, e, layer, MODULE_DOWN, 1, products);
}

/* A tied embedding is one weight with both uses. */
static err pack_vocabulary(struct engine *e, unsigned products)
{
    const struct model *m = e->model;
    struct stack head = {.part = {&m->head}, .parts = 1, .cap = m->arch.logit_cap};
    struct stack embed = {.part = {&m->embed}, .parts = 1};
    bool tied = m->head.data == m->embed.data;
    TRY(pack(&e->head, e, &head, products | BACKEND_HEAD | (tied ? BACKEND_EMBED : 0)));
    if (tied) e->embed = e->head;
    return tied ? ERR_NONE : pack(&e->embed, e, &embed, BACKEND_EMBED);
}

/* Norm weights stay float32 in every precision: they are few, and a rounded factor would change
 * every value of a row in the same direction. Each starts at a multiple of 64 bytes. */
static float *place_norm(struct engine *e, float **at, const struct weight *w, float scale)
{
    if (!w->data) return NULL;
    float *mine = *at, *host = malloc(w->rows * sizeof(float));
    REQUIRE(host);
    weight_rows_f32(host, w, 0, w->rows);
    for (uint32_t i = 0; i < w->rows; i++)
        host[i] *= scale;
    e->be->copy_in(e->ctx, mine, host, w->rows * sizeof(float));
    free(host);
    *at += (w->rows + 15) / 16 * 16;
    return mine;
}

enum { LAYER_NORMS = 6 };
static void layer_norms(const struct weight *out[LAYER_NORMS], const struct layer *m)
{
    const struct weight *all[LAYER_NORMS] = {&m->attn_norm,    &m->mlp_norm, &m->attn_out_norm,
                                             &m->mlp_out_norm, &m->q_norm,   &m->k_norm};
    memcpy(out, all, sizeof all);
}

size_t engine_norm_bytes(const struct model *m)
{
    size_t floats = round_up(m->final_norm.rows, 16);
    for (uint32_t i = 0; i < m->arch.layers; i++) {
        const struct weight *norm[LAYER_NORMS];
        layer_norms(norm, &m->layer[i]);
        for (int k = 0; k < LAYER_NORMS; k++)
            floats += round_up(norm[k]->rows, 16);
    }
    return floats * sizeof(float);
}

/* All norm weights are one block, each rounded up to 16 floats. The scale of the logits is in the
 * weight of the final norm, where it costs nothing. */
static err place_norms(struct engine *e)
{
    const struct model *m = e->model;
    float scale = m->arch.logit_scale != 0.0f ? m->arch.logit_scale : 1.0f;
    TRY(e->be->memory_take(&e->norms, e->ctx, engine_norm_bytes(m)));
    float *at = e->norms;
    e->final_norm = place_norm(e, &at, &m->final_norm, scale);
    for (uint32_t i = 0; i < m->arch.layers; i++) {
        const struct weight *norm[LAYER_NORMS];
        struct engine_layer *w = &e->layer[i];
        float **to[LAYER_NORMS] = {
            &w->norm[BLOCK_ATTENTION], &w->norm[BLOCK_MLP], &w->out_norm[BLOCK_ATTENTION],
            &w->out_norm[BLOCK_MLP],   &w->q_norm,          &w->k_norm};
        layer_norms(norm, &m->layer[i]);
        for (int k = 0; k < LAYER_NORMS; k++)
            *to[k] = place_norm(e, &at, norm[k], 1.0f);
    }
    return ERR_NONE;
}

/* `layer` and `x1` are arrays of views; the tensors are in `memory`. */
static void pass_close(struct engine *e)
{
    struct pass *p = &e->pass;
    if (p->memory) e->be->memory_give(e->ctx, p->memory);
    e->be->batch_close(p->batch);
    free(p->layer);
    free(p->x1);
    *p = (struct pass){0};
}

static void weights_close(struct engine *e)
{
    for (uint32_t i = 0; e->layer && i < e->model->arch.layers; i++) {
        e->be->weight_close(e->layer[i].qkv);
        e->be->weight_close(e->layer[i].o);
        e->be->weight_close(e->layer[i].gate_up);
        e->be->weight_close(e->layer[i].down);
    }
    if (e->embed != e->head) e->be->weight_close(e->embed);
    e->be->weight_close(e->head);
    if (e->norms) e->be->memory_give(e->ctx, e->norms);
}

/* Accepts an engine that engine_open() could open only in part. The context is closed last, because
 * all memory belongs to it. */
void engine_close(struct engine *e)
{
    if (!e) return;
    engine_peers_close(e);
    if (e->ctx) {
        pass_close(e);
        if (!e->shared) weights_close(e);
        engine_close_angles(e);
        e->be->close(e->ctx);
    }
    if (!e->shared) free(e->layer);
    free(e);
}

const char *const base_memories[] = {"auto", "packed", "file", NULL};

enum { TOKENS = 2048, WIDTH = 64 }; /* of a pass and an adapter that are not known yet */

static err choose_memory(struct engine *e, const struct engine_options *o)
{
    struct pass_size s = {.tokens = o->tokens ? o->tokens : TOKENS,
                          .backward = !o->inference,
                          .checkpoint = o->checkpoint};
    s.rows = s.learned = s.positions = s.tokens;
    for (int i = 0; i < SITES; i++)
        s.site_width[i] = WIDTH;
    return engine_plan_choose(&e->base_memory, e, o->base_memory, &s, e->be->memory_free(e->ctx));
}

/* Packing reads every weight once and is the slow part of opening: each layer is converted from its
 * file format to float32 and then to the layout of the backend. */
err engine_open_one(struct engine **out, const struct model *m, const struct engine_options *o)
{
    if (m->arch.head_dim > LIMIT_HEAD_DIM)
        return err_make(ERR_INPUT, "%s: head dimension is %u, expected 1 to %u", m->path,
                        m->arch.head_dim, LIMIT_HEAD_DIM);
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return err_sys(ENOMEM, "engine");
    struct backend_options options = {
        .precision = o->precision, .threads = o->threads, .profile = o->profile};
    unsigned products = BACKEND_FORWARD | (o->inference ? 0 : BACKEND_BACKWARD);
    err er = err_sys(ENOMEM, "engine");
    e->model = m;
    e->inference = o->inference;
    if (!(e->layer = calloc(m->arch.layers, sizeof *e->layer))) goto out;
    TRY_OUT(er, backend_open(&e->be, &e->ctx, o->device, &options, e->why));
    snprintf(e->device, sizeof e->device, "%s", e->be->name);
    TRY_OUT(er, choose_memory(e, o));
    if (e->base_memory == BASE_FILE) products |= BACKEND_KEEP;
    TRY_OUT(er, place_norms(e));
    for (uint32_t i = 0; i < m->arch.layers; i++)
        TRY_OUT(er, pack_layer(e, i, products));
    TRY_OUT(er, pack_vocabulary(e, products));
out:
    if (err_is(er))
        engine_close(e);
    else
        *out = e;
    return er;
}

/* Only the CPU: two contexts on one GPU would have to take turns. */
err engine_share(struct engine **out, const struct engine *from, int threads)
{
    if (from->be != &backend_cpu)
        return err_make(ERR_INPUT, "%s: an engine can be shared on the CPU only", from->be->name);
    struct engine *e = calloc(1, sizeof *e);
    if (!e) return err_sys(ENOMEM, "engine");
    const struct backend_options options = {.precision = engine_precision(from),
                                            .threads = threads};
    *e = (struct engine){.model = from->model,
                         .shared = from->shared ? from->shared : from,
                         .be = from->be,
                         .layer = from->layer,
                         .head = from->head,
                         .embed = from->embed,
                         .final_norm = from->final_norm,
                         .norms = from->norms,
                         .inference = from->inference,
                         .base_memory = from->base_memory};
    snprintf(e->device, sizeof e->device, "%s", from->device);
    err er = e->be->open(&e->ctx, &options);
    if (err_is(er))
        engine_close(e);
    else
        *out = e;
    return er;
}

const char *engine_device(const struct engine *e)
{
    return e->device;
}
const char *engine_no_gpu(const struct engine *e)
{
    return e->why;
}
enum dtype engine_precision(const struct engine *e)
{
    return e->be->precision(e->ctx);
}
enum base_memory engine_base_memory(const struct engine *e)
{
    return e->base_memory;
}
const struct model *engine_model(const struct engine *e)
{
    return e->model;
}
void engine_profile(struct backend_profile *out, const struct engine *e)
{
    e->be->profile(out, e->ctx);
}

static float *take_floats(char *memory, size_t *at, size_t count)
{
    return mat_take(memory, at, DTYPE_F32, 1, count).data;
}

/* Takes (rows, cols) with the columns to the right that a linear operation with these sites needs
 * for its low-rank part. */
static struct mat take_wide(char *memory, size_t *at, const struct engine *e, size_t rows,
                            size_t cols, uint32_t width)
{
    size_t ld = cols + (width ? e->be->low_rank_room(e->ctx, width) : 0);
    return mat_take(memory, at, engine_precision(e), rows, ld);
}

/* Tensors of one layer that backward reads. x2 (the stream after attention) is needed only there;
 * without a backward pass it has no rows. q and k before their norms are kept because the gradient
 * of a norm needs its input. */
static void place_saved(struct saved *s, const struct engine *e, const struct pass *p, char *memory,
                        size_t *at)
{
    const struct arch *a = &e->model->arch;
    enum dtype type = engine_precision(e);
    size_t t = p->tokens_max, q = (size_t)a->heads * a->head_dim;
    size_t k = (size_t)a->kv_heads * a->head_dim;
    s->x2 = mat_take(memory, at, type, p->size.backward ? t : 0, a->d_model);
    s->qkv = mat_take(memory, at, type, t, q + 2 * k);
    s->raw = mat_take(memory, at, type, a->qk_norm ? t : 0, q + k);
    s->att = take_wide(memory, at, e, t, q, p->size.site_width[SITE_O]);
    s->gate_up =
        take_wide(memory, at, e, t, 2 * (size_t)a->d_ffn, p->size.site_width[SITE_GATE_UP]);
    for (int i = 0; i < SITES; i++)
        s->h[i] = mat_take(memory, at, type, t, p->size.site_width[i]);
    s->inv1 = take_floats(memory, at, t);
    s->inv2 = take_floats(memory, at, t);
    s->inv_q = take_floats(memory, at, a->qk_norm ? t * a->heads : 0);
    s->inv_k = take_floats(memory, at, a->qk_norm ? t * a->kv_heads : 0);
    s->lse = take_floats(memory, at, t * a->heads);
    for (int i = 0; i < BLOCKS; i++) {
        size_t rows = a->norms != NORMS_BEFORE ? t : 0;
        s->out[i] = mat_take(memory, at, type, rows, a->d_model);
        s->inv_out[i] = take_floats(memory, at, rows);
    }
}

static uint32_t wider(uint32_t a, uint32_t b)
{
    return a > b ? a : b;
}

/* Places all working memory at `memory`, or only counts its size. Without a backward pass, or with
 * checkpointing, all layers share one struct saved. Checkpointing keeps (layers, T, d_model) for x1
 * and recomputes the rest, about a third more time for a fraction of the memory. */
static size_t place_pass(struct pass *p, const struct engine *e, char *memory)
{
    const struct arch *a = &e->model->arch;
    enum dtype type = engine_precision(e);
    const uint32_t *width = p->size.site_width;
    size_t at = 0, t = p->tokens_max, back = p->size.backward ? t : 0, d = a->d_model;
    size_t last = p->learned_max, last_back = p->size.backward ? last : 0;
    uint32_t out = wider(width[SITE_O], width[SITE_DOWN]);
    uint32_t in = wider(width[SITE_QKV], width[SITE_GATE_UP]), widest = wider(in, out);
    bool shared = !p->size.backward || p->size.checkpoint;
    for (uint32_t i = 0; i < (shared ? 1 : a->layers); i++)
        place_saved(&p->layer[i], e, p, memory, &at);
    for (uint32_t i = 0; i < a->layers; i++)
        p->x1[i] = mat_take(memory, &at, type, back, d);
    p->resid = mat_take(memory, &at, DTYPE_F32, t, d);
    p->normed = take_wide(memory, &at, e, t, d, in);
    p->wide = take_wide(memory, &at, e, t, a->d_ffn, width[SITE_DOWN]);
    p->dresid = mat_take(memory, &at, DTYPE_F32, back, d);
    p->dwide = mat_take(memory, &at, type, back, a->d_ffn);
    p->dqkv = take_wide(memory, &at, e, back, engine_qkv_width(a), width[SITE_QKV]);
    p->datt = mat_take(memory, &at, type, back, (size_t)a->heads * a->head_dim);
    p->dy = take_wide(memory, &at, e, back, d, out);
    p->dx = mat_take(memory, &at, type, back, d);
    p->g = mat_take(memory, &at, type, back, widest);
    p->p = mat_take(memory, &at, type, back, widest);
    p->last = mat_take(memory, &at, DTYPE_F32, last, d);
    p->last_normed = mat_take(memory, &at, type, last, d);
    p->dlast = mat_take(memory, &at, DTYPE_F32, last_back, d);
    p->inv = take_floats(memory, &at, last);
    return at;
}

/* Memory for more rows, wider adapters or a backward pass also serves smaller passes. With a
 * backward pass the kind of checkpointing must be equal, because it decides which layers share
 * memory. */
bool pass_fits(const struct engine *e, const struct pass_size *want)
{
    const struct pass_size *have = &e->pass.size;
    bool fits = e->pass.memory && have->tokens >= want->tokens && have->rows >= want->rows &&
                have->learned >= want->learned && have->backward >= want->backward &&
                (!want->backward || have->checkpoint == want->checkpoint);
    for (int i = 0; i < SITES; i++)
        fits = fits && have->site_width[i] >= want->site_width[i];
    return fits;
}

/* Tokens and learned tokens are rounded up to BACKEND_ROWS, as linear() requires of its buffers.
 * There is room for what batch_pad() adds. */
static void pass_plan(struct pass *p, const struct engine *e, const struct pass_size *s)
{
    p->size = *s;
    p->size.tokens = round_up(s->tokens, e->be->bucket);
    p->size.learned = round_up(s->learned, e->be->bucket);
    p->size.rows += e->be->bucket > 1;
    size_t learned = p->size.learned < LEARNED_BLOCK ? p->size.learned : LEARNED_BLOCK;
    p->tokens_max = round_up(p->size.tokens, BACKEND_ROWS);
    p->learned_max = round_up(learned, BACKEND_ROWS);
}

size_t pass_filled(struct pass_size *s, const struct engine *e)
{
    struct pass p = {0};
    pass_plan(&p, e, s);
    *s = p.size;
    return s->learned < p.learned_max ? s->learned : p.learned_max;
}

void pass_size_widths(struct pass_size *s, const struct factors *f)
{
    for (size_t i = 0; f && i < f->sites; i++)
        s->site_width[i % SITES] = wider(s->site_width[i % SITES], f->site[i].width);
}

static err pass_lists(struct pass *p, const struct engine *e)
{
    p->layer = calloc(e->model->arch.layers, sizeof *p->layer);
    p->x1 = calloc(e->model->arch.layers, sizeof *p->x1);
    return p->layer && p->x1 ? ERR_NONE : err_sys(ENOMEM, "engine");
}

size_t pass_bytes(const struct engine *e, const struct pass_size *s)
{
    struct pass p = {0};
    pass_plan(&p, e, s);
    size_t bytes = err_is(pass_lists(&p, e)) ? 0 : place_pass(&p, e, NULL);
    free(p.layer);
    free(p.x1);
    return bytes;
}

/* Old memory is given back before new memory is taken, so that growing never holds both; after a
 * failure the engine has no working memory and the next pass takes it again. */
err pass_reserve(struct engine *e, const struct pass_size *s)
{
    struct pass want = {0};
    TRY(engine_reserve_positions(e, s->positions));
    if (pass_fits(e, s)) return ERR_NONE;
    pass_close(e);
    pass_plan(&want, e, s);
    err er = pass_lists(&want, e);
    size_t bytes = err_is(er) ? 0 : place_pass(&want, e, NULL);
    if (!err_is(er)) er = e->be->memory_take(&want.memory, e->ctx, bytes + 64);
    if (!err_is(er)) place_pass(&want, e, want.memory);
    struct batch_rows most = {.tokens = want.size.tokens, .rows = want.size.rows};
    most.learned = want.size.learned;
    if (!err_is(er)) er = e->be->batch_open(&want.batch, e->ctx, &most);
    e->pass = want;
    if (err_is(er)) pass_close(e);
    return er;
}
