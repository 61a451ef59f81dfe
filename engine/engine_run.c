#include "engine/pass.h"

struct work {
    struct engine *e;
    const struct batch *b;
};

static void queue(void *user)
{
    const struct work *w = user;
    struct engine *e = w->e;
    forward_layers(e, w->b);
    if (!w->b->target) return;
    forward_loss(e, w->b);
    if (w->b->backward && w->b->learned) backward_layers(e, w->b);
}

/* The mixing function of splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t stir(uint64_t key, uint64_t word)
{
    key = (key ^ word) + 0x9e3779b97f4a7c15u;
    key = (key ^ (key >> 30)) * 0xbf58476d1ce4e5b9u;
    key = (key ^ (key >> 27)) * 0x94d049bb133111ebu;
    return key ^ (key >> 31);
}

/* A hash of all that decides which operations a pass queues: two that differ have the same key with
 * a probability of about 2^-64. The device has the rest in its batch. */
static uint64_t pass_key(const struct batch *b)
{
    uint64_t key = 0;
    const uint64_t word[] = {b->tokens,         b->rows,           b->learned,
                             b->target != NULL, b->backward,       b->lowest,
                             b->checkpoint,     b->dropout > 0.0f, b->segments};
    for (size_t i = 0; i < sizeof word / sizeof word[0]; i++)
        key = stir(key, word[i]);
    for (size_t i = 0; i < b->segments; i++) {
        const struct segment *s = &b->segment[i];
        key = stir(stir(key, (uintptr_t)s->factors), (uintptr_t)s->gradient);
        key = stir(stir(key, s->first), s->tokens);
        key = stir(stir(stir(key, s->row), s->rows), s->stride);
    }
    return key;
}

/* One pass over a batch. The lowest layer with a trained module bounds the work: gradients below it
 * are never computed, and no activations are kept for it. A batch whose rows are all empty is valid
 * and does nothing. */
err pass_run(struct engine *e, struct batch *b)
{
    b->lowest = b->backward ? e->model->arch.layers : 0;
    for (size_t i = 0; i < b->segments; i++)
        for (uint32_t layer = 0; b->segment[i].gradient && layer < b->lowest; layer++)
            if (factors_train_at(b->segment[i].factors, layer, SITE_QKV)) b->lowest = layer;
    TRY(arena_take(&b->use, &b->arena, b->segments, sizeof *b->use));
    struct pass_size size = {.tokens = b->tokens, .rows = b->rows, .learned = b->learned};
    size.positions = b->positions;
    size.backward = b->backward;
    size.checkpoint = b->backward && b->checkpoint;
    for (size_t i = 0; i < b->segments; i++)
        pass_size_widths(&size, b->segment[i].factors);
    TRY(pass_reserve(e, &size));
    if (!b->tokens) return ERR_NONE;
    uint32_t *position;
    TRY(engine_place_rows(&position, e, b));
    struct batch_rows rows = {.tokens = b->tokens, .rows = b->rows, .learned = b->learned};
    rows.id = b->id;
    rows.start = b->start;
    rows.position = position;
    rows.index = b->index;
    rows.target = b->target;
    rows.gradient_scale = (float)b->scale;
    rows.gradient_scales = b->scales;
    rows.dropout = b->dropout;
    rows.dropout_key = b->dropout_key;
    e->be->batch_set(e->ctx, e->pass.batch, &rows);
    struct work work = {e, b};
    if (b->record)
        e->be->repeat(e->ctx, b->record, pass_key(b), queue, &work);
    else
        queue(&work);
    if (b->target) e->be->batch_nll(e->ctx, b->nll, e->pass.batch);
    return ERR_NONE;
}
