/* One simulation on the terminal: its progress, the table of its rounds and where its files are. */
#ifndef CLIENT_COMMAND_SIMULATE_VIEW_H
#define CLIENT_COMMAND_SIMULATE_VIEW_H

#include "client/command/simulate_options.h"

struct simulate_show {
    const struct fleet *fleet;          /* the members, with their rows */
    const struct simulate_command *o;   /* the options of this simulation alone */
    const struct simulate_setup *setup; /* what was made from them */
    const char *dir;                    /* of its files; created if it is not there */
    /* One of several simulations: "cell 7 of 24" and its settings. Only its progress is shown then.
     * NULL: a simulation alone. */
    const char *cell, *label;
};
/* Prints the reports about the rows of all clients and about the test set. */
void simulate_view_data(const struct fleet *fleet, const struct fleet_options *options);
/* Runs the simulation in its folder and prints its result; what a call before this one has done is
 * not done again. */
err simulate_show(const struct simulate_show *show);
/* Trains the reference lines that the options ask for, with files in the folder `dir`. */
err simulate_reference(const struct simulate_show *show, const char *dir);

#endif
