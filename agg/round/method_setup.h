/* The rounds that find a basis before any training (basis=gradient): agg/algebra/sketch.h applied
 * to the files of a run.
 *
 *     state 1   A = Omega^T, B = 0    members send dL/dB
 *     state 2   A = 0, B = Q          members send dL/dA
 *     state 3   the method's own start beside the new frozen factors
 *
 * A and B have the width sketch_width(), which is more than the run's rank. Gradients are weighed
 * as updates are, and divided by the scale under which they were taken. Server optimizers and
 * robust rules act only on training. One module at a time, from several threads. */
#ifndef AGG_METHOD_SETUP_H
#define AGG_METHOD_SETUP_H

#include "agg/round/method_round.h"

err method_setup_start(struct method_result *out, const struct method_beginning *beginning);

struct method_setup {
    const struct method *method;
    uint32_t round; /* the round of these gradients: 1 or 2 */
    uint32_t rank;  /* of the run */
};
/* The next state's module, and after round 2 also the module of the frozen factors, which is else
 * untouched. The report row has the norm of the mean gradient (in round 2 of its part in the span
 * of Q), and as error the part of it outside the basis. */
err method_setup_next(struct method_result *out, struct method_result *frozen,
                      const struct method_round *round, const struct method_setup *setup);

#endif
