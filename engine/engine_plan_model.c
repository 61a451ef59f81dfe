/* The plan for a model without its weights: engine/engine_plan.h. The engine is a zeroed struct
 * with a model and a backend, because the functions of the plan read nothing else. */
#include "engine/engine_plan.h"

static void sizes_of(struct pass_size *out, const struct engine_plan_work *w)
{
    *out = (struct pass_size){.tokens = w->rows * w->positions,
                              .rows = w->rows,
                              .learned = w->rows * w->positions,
                              .positions = w->positions,
                              .backward = true,
                              .checkpoint = w->checkpoint};
    for (int i = 0; i < SITES; i++)
        out->site_width[i] = w->site_width[i];
}

err engine_plan_model(struct engine_plan_need *out, const struct model *m,
                      const struct engine_plan_work *w)
{
    const struct backend_options options = {.precision = w->precision, .threads = 1};
    struct engine e = {.model = m, .base_memory = BASE_PACKED};
    struct engine_plan_weights weights;
    struct pass_size size;
    char why[BACKEND_WHY_BYTES];
    TRY(backend_open(&e.be, &e.ctx, "cpu", &options, why));
    sizes_of(&size, w);
    engine_plan_weights(&weights, &e);
    const struct engine_plan_adapter adapter = {.values = w->values, .each_row = w->each_row};
    *out = (struct engine_plan_need){.weights = weights.packed,
                                     .total = engine_plan_bytes(&e, &size, &adapter)};
    e.be->close(e.ctx);
    return ERR_NONE;
}
