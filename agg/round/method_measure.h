/* The norms of a round's report, of one module, from the state before, the updates, and the state
 * that was published. With D the exact mean change of the round (agg/round/method_change.h; for
 * methods whose small members train without the rest, against the whole pair of the state):
 *
 *     update_norm   ||D||_F
 *     error         ||published - before - D||_F
 *     state_norm    ||published||_F
 *
 * all of carry + scale B A (or B R A). No matrix of the module's size is formed unless the members'
 * ranks together make that the cheaper way (agg/algebra/norms.h), and nothing is decomposed:
 *
 *     A and B train     as differences from the published pair where all have one rank and scale
 *                       and nothing is carried: nothing cancels, float32 Gram matrices, 1e-6 of
 *                       each norm. Else by norms_of() on the members', published and previous
 *                       factors: the error may be off by 1e-8 of the largest norm.
 *     one of A, B       from the mean of that factor less the published one, value by value, and
 *                       the (r, r) Gram matrix of the other factor: nothing cancels.
 *     R                 the same with the Gram matrices of both frozen factors; orthonormal ones
 *                       leave R's own norm.
 *
 * Frozen factors that are not given count as orthonormal. Pure; BLAS on the calling thread. */
#ifndef AGG_METHOD_MEASURE_H
#define AGG_METHOD_MEASURE_H

#include "agg/round/method_round.h"

struct method_measure {
    const struct method *method;
    const struct method_round *round;
    const struct adapter_file_module *made; /* this module as published; its scale is the state's */
    bool orthonormal;                       /* the frozen factors are known to be */
};
/* Sets row's update_norm, error and state_norm. */
err method_measure(struct method_report_row *row, const struct method_measure *measure);

/* Whether B has orthonormal columns and A orthonormal rows, to 1e-5; a factor that the module does
 * not have counts as orthonormal. */
err method_measure_orthonormal(bool *out, const struct adapter_file_module *frozen);

#endif
