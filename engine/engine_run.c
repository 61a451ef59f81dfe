#include "engine/pass.h"

/* One pass over a batch. The lowest layer with a trained module bounds the work: gradients below it
 * are never computed, and no activations are kept for it. A batch whose rows are all empty is valid
 * and does nothing. */
err pass_run(struct engine *e, struct batch *b, const struct engine_row *row)
{
    b->lowest = b->backward ? e->model->arch.layers : 0;
    for (size_t i = 0; i < b->segments; i++)
        for (uint32_t layer = 0; b->segment[i].gradient && layer < b->lowest; layer++)
            if (factors_train_at(b->segment[i].factors, layer, SITE_QKV)) b->lowest = layer;
    TRY(pass_reserve(e, b));
    TRY(pass_embed(e, row, b->rows));
    if (!b->tokens) return ERR_NONE;
    forward_layers(e, b);
    forward_loss(e, b);
    if (b->backward && b->learned) backward_layers(e, b);
    return e->be->check(e->ctx);
}
