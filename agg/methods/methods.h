/* The methods there are, for the table in method.c, and what several of them share. */
#ifndef AGG_METHODS_METHODS_H
#define AGG_METHODS_METHODS_H

#include "agg/method_round.h"

extern const struct method method_fed_sb, method_fedit, method_flora;

/* A of the run's rank from the seed, kaiming-uniform; B zero; or what the initial adapter has. */
err method_start_lora(struct method_result *out, const struct method_beginning *beginning);

#endif
