/* What training adds to the loss: FedProx's and HetLoRA's terms (train.h has the formulas), inside
 * train.c. */
#ifndef CLIENT_TRAIN_PENALTY_H
#define CLIENT_TRAIN_PENALTY_H

#include "engine/train/train.h"

static inline bool train_penalty_on(const struct train_options *o)
{
    return o->prox > 0.0 || o->prune_lambda > 0.0;
}
/* The terms at adapter->value; sets gradient (value_count) to their gradient. start (value_count):
 * what prox draws to. */
double train_penalty(float *gradient, const struct adapter *ad, const float *start,
                     const struct train_options *o);
/* Rows 0 .. count - 1 in the order of one epoch (from 1). */
void train_order(uint32_t *order, size_t count, const struct train_options *o, uint64_t epoch);

#endif
