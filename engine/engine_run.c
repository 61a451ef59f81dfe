#include "engine/pass.h"

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
    struct batch_rows rows = {.tokens = b->tokens, .rows = b->rows, .learned = b->learned};
    rows.id = b->id;
    rows.start = b->start;
    rows.position = b->position;
    rows.index = b->index;
    rows.target = b->target;
    rows.gradient_scale = (float)b->scale;
    rows.dropout = b->dropout;
    rows.dropout_key = b->dropout_key;
    e->be->batch_set(e->ctx, e->pass.batch, &rows);
    e->be->embed(e->ctx, e->pass.resid, e->embed, e->pass.batch);
    forward_layers(e, b);
    if (!b->target) return ERR_NONE;
    forward_loss(e, b);
    if (b->backward && b->learned) backward_layers(e, b);
    e->be->batch_nll(e->ctx, b->nll, e->pass.batch);
    return ERR_NONE;
}
