/* Memory of an engine, counted before it is taken. The sizes of weights and of scratch memory come
 * from the backend, so that the plan follows what the backend really takes. */
#ifndef ENGINE_ENGINE_PLAN_H
#define ENGINE_ENGINE_PLAN_H

#include "engine/pass.h"

/* Bytes of all weights of the engine's model. On the CPU an embedding that is not the head is
 * always read from its file, and is not counted. */
struct engine_plan_weights {
    uint64_t packed, file; /* packed, and as the file has them */
};
void engine_plan_weights(struct engine_plan_weights *out, const struct engine *e);

/* Chooses between packed weights and those of the file, before any are packed. `available` is the
 * free memory. BASE_AUTO takes packed weights if a pass of `s` fits beside them; on a GPU a tenth
 * of the need must stay free. Weights that do not fit even alone are refused. */
err engine_plan_choose(enum base_memory *out, const struct engine *e, enum base_memory asked,
                       const struct pass_size *s, uint64_t available);

struct engine_plan_adapter {
    size_t values;  /* that train */
    uint64_t taken; /* bytes that it has taken on the device; 0: not known */
    bool each_row;  /* each row of a pass has a gradient of its own */
};
/* All bytes that training with passes of `s` needs. */
uint64_t engine_plan_bytes(const struct engine *e, const struct pass_size *s,
                           const struct engine_plan_adapter *adapter);
/* ERR_MACHINE if that is more than `capacity`, the free memory and what the engine holds already.
 * The text counts the bytes and names the options with which it would fit. */
err engine_plan_check(const struct engine *e, const struct pass_size *s,
                      const struct engine_plan_adapter *adapter, uint64_t capacity);

/* A plan for a model whose weights are not on this machine (model_open_shapes()): the bytes that
 * training takes on the CPU, with packed weights. */
struct engine_plan_work {
    size_t rows, positions;     /* of a pass */
    uint32_t site_width[SITES]; /* sums of the ranks at each place, the carry's included */
    size_t values;              /* that train */
    bool checkpoint, each_row;
    enum dtype precision; /* as in engine_options */
};
struct engine_plan_need {
    uint64_t weights, total; /* `total` includes the weights */
};
err engine_plan_model(struct engine_plan_need *out, const struct model *m,
                      const struct engine_plan_work *work);

#endif
