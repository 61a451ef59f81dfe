/* The rounds that find a basis before any training (basis=gradient): agg/algebra/sketch.h over a run's
 * files.
 *
 *     state 1   A = Omega^T, B = 0    members send dL/dB
 *     state 2   A = 0, B = Q          members send dL/dA
 *     state 3   the method's own start beside the new frozen factors
 *
 * A and B are sketch_width() wide, more than the run's rank. Gradients are weighed as updates are,
 * divided by the scale under which they were taken; server optimizers and robust rules are for
 * training only. One module at a time, from several threads. */
#ifndef AGG_METHOD_SETUP_H
#define AGG_METHOD_SETUP_H

#include "agg/round/method_round.h"

err method_setup_start(struct method_result *out, const struct method_beginning *beginning);

struct method_setup {
    const struct method *method;
    uint32_t round; /* whose gradients these are: 1 or 2 */
    uint32_t rank;  /* the run's */
};
/* The next state's module; after round 2 also that of the frozen factors, else left alone. The
 * report: norm of the mean gradient (of what Q spans of it), error what the basis leaves out. */
err method_setup_next(struct method_result *out, struct method_result *frozen,
                      const struct method_round *round, const struct method_setup *setup);

#endif
