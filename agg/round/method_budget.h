/* A budget of bytes over all modules of a round (florist's bytes=): a pass over every module before
 * the one that makes the next state, for a rank can only be given when all singular values are
 * known. Singular values are all that is held between the two. */
#ifndef AGG_METHOD_BUDGET_H
#define AGG_METHOD_BUDGET_H

#include "agg/round/method_cohort.h"

/* *rank (state modules), in the cohort's arena: what may be kept of each, by agg/algebra/budget.h. NULL
 * where the method or the run has no budget. */
err method_budget(uint32_t **rank, const struct method *method, struct method_cohort *c,
                  const struct method_round *common, int threads);

#endif
