/* fedlora simulate plan: the cost of a federation (sim/cost.h), as a table or as JSON. */
#ifndef CLIENT_COMMAND_SIMULATE_PLAN_H
#define CLIENT_COMMAND_SIMULATE_PLAN_H

#include "client/command/simulate_options.h"

/* A row for each method. A method that the coordinator would refuse is an error if it is the only
 * one, else a line with the reason. */
err simulate_plan(const struct simulate_command *o, const struct option_list *arguments,
                  struct arena *arena);

#endif
