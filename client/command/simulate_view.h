/* One simulation on the terminal: its progress, the table of its rounds and where its files are. */
#ifndef CLIENT_COMMAND_SIMULATE_VIEW_H
#define CLIENT_COMMAND_SIMULATE_VIEW_H

#include "client/command/simulate_options.h"

/* Runs the simulation in the folder `dir` and prints its result. */
err simulate_show(const struct fleet *fleet, const struct simulate_command *o,
                  const Fedlora__V1__RunConfig *config, const char *dir);

#endif
