/* Terms that are added to the loss: FedProx and HetLoRA. train.h has the formulas. Used only in
 * engine/train. */
#ifndef ENGINE_TRAIN_PENALTY_H
#define ENGINE_TRAIN_PENALTY_H

#include "engine/train/train.h"

static inline bool train_penalty_on(const struct train_options *o)
{
    return o->prox > 0.0 || o->prune_lambda > 0.0;
}
/* Returns the sum of the terms at adapter->value and sets gradient (value_count) to its gradient.
 * prox pulls the values towards start (value_count). */
double train_penalty(float *gradient, const struct adapter *ad, const float *start,
                     const struct train_options *o);
/* Sets order (count) to the rows 0 .. count - 1 in the order of one epoch, counted from 1. */
void train_order(uint32_t *order, size_t count, const struct train_options *o, uint64_t epoch);

#endif
