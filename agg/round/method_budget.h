/* A budget of bytes over all modules of a round (florist's bytes=). It takes a pass over every
 * module before the one that makes the next state, because ranks can be shared out only when all
 * singular values are known. Only singular values are held between the two passes. */
#ifndef AGG_METHOD_BUDGET_H
#define AGG_METHOD_BUDGET_H

#include "agg/round/method_cohort.h"

/* *rank (state modules), in the cohort's arena: the rank that each may keep, by
 * agg/algebra/budget.h. NULL where the method or the run has no budget. */
err method_budget(uint32_t **rank, const struct method *method, struct method_cohort *c,
                  const struct method_round *common, int threads);

#endif
