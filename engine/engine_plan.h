/* Memory of an engine, counted before it is taken. For the CPU; other devices report a failed
 * allocation. */
#ifndef ENGINE_ENGINE_PLAN_H
#define ENGINE_ENGINE_PLAN_H

#include "engine/pass.h"

/* Bytes of the weights, as packed copies and as parts of the mapped files. An embedding that is not
 * the head is always read from its file. */
struct engine_plan_weights {
    uint64_t packed; /* what packing takes; in the mapped files only the embedding remains */
    uint64_t file;   /* all matrices as the file has them */
};
void engine_plan_weights(struct engine_plan_weights *out, const struct model *m,
                         enum dtype precision);

/* Chooses between packed weights and those of the file. `available` is the free memory. BASE_AUTO
 * takes packed weights if a pass of `s` fits beside them; BASE_PACKED is refused if they do not fit
 * even alone. */
err engine_plan_choose(enum base_memory *out, const struct engine *e, enum base_memory asked,
                       const struct pass_size *s, uint64_t available);

struct engine_plan_adapter {
    size_t values; /* that train */
    bool each_row; /* each row of a pass has a gradient of its own */
};
/* ERR_MACHINE if training with passes of `s` would need more than `available` bytes beside the
 * weights that are packed already. The text counts the bytes and names the options with which it
 * would fit. */
err engine_plan_check(const struct engine *e, const struct pass_size *s,
                      const struct engine_plan_adapter *adapter, uint64_t available);

#endif
