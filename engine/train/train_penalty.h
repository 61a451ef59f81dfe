/* The term that HetLoRA adds to the loss; train.h has its formula, and that of FedProx, which the
 * optimizer adds. Used only in engine/train. */
#ifndef ENGINE_TRAIN_PENALTY_H
#define ENGINE_TRAIN_PENALTY_H

#include "engine/train/train.h"

/* Returns lambda * sum over modules |B tail| |A tail| at adapter->value and sets gradient
 * (value_count) to its gradient. */
double train_penalty(float *gradient, const struct adapter *ad, const struct train_options *o);
/* Sets order (count) to the rows 0 .. count - 1 in the order of one epoch, counted from 1. */
void train_order(uint32_t *order, size_t count, const struct train_options *o, uint64_t epoch);

#endif
