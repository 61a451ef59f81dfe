/* Parts that several methods share: starts, checks and means of a pair. */
#ifndef AGG_METHODS_METHODS_H
#define AGG_METHODS_METHODS_H

#include "agg/round/method_round.h"

/* client_refusal of a method whose members send A and B. */
#define METHODS_TWO_FACTORS                                                                        \
    "sends both factors, so their noises multiply and the product is mostly noise"

unsigned methods_both(uint32_t round); /* A and B, in every round */

/* A of the run's rank from the seed, kaiming-uniform; B zero; or what the initial adapter has. */
err methods_start_lora(struct method_result *out, const struct method_beginning *beginning);
/* No adapter; what an initial adapter or state adds is carried from the start, exactly. */
err methods_start_carry(struct method_result *out, const struct method_beginning *beginning);
/* The same beside a fresh adapter. */
err methods_start_carried(struct method_result *out, const struct method_beginning *beginning);

/* Every update of this module has the state's scale, and its rank or (not same_rank) at most that;
 * else ERR_INPUT. */
err methods_check_scale(const struct method_round *round, bool same_rank);
/* A and B become the means of the members', of the same rank and scale. */
err methods_mean_pair(struct method_result *out, const struct method_round *round);

#endif
