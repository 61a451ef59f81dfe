/* `fedlora simulate` with the lists of a sweep: one simulation for each combination of their
 * values, and tables of all of them. Without lists it is a single simulation. */
#ifndef CLIENT_COMMAND_SIMULATE_SWEEP_H
#define CLIENT_COMMAND_SIMULATE_SWEEP_H

#include "client/command/simulate_options.h"
#include "sim/outcome.h"

err simulate_sweep(const struct simulate_command *o, const struct option_list *arguments,
                   struct arena *arena);
/* The options of one cell, --cell N or the first: those of a single simulation if there is no list.
 * For verbs that do not run the cells. */
err simulate_cell(const struct simulate_command **out, const struct simulate_command *o,
                  const struct option_list *arguments, struct arena *arena);
/* The settings with their means and standard deviations over seeds, then the cells that are not
 * finished, or one JSON document. */
err simulate_outcomes_print(const struct outcomes *o, bool json);

#endif
