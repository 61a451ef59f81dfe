/* A new run that continues from a published state: of another run of this coordinator, whose
 * configuration it may take over, or of a file that an operator has uploaded.
 *
 *     run_from_find()    before the configuration is checked: finds the files and fills in what the
 *                        operator left out
 *     run_from_check()   after it: the configuration fits the state
 *
 * The numbers of rounds go on, and files and random draws keep the name of the run that the state
 * comes from (its origin). So the new run makes the states that the other would have made. */
#ifndef COORDINATOR_RUN_FROM_H
#define COORDINATOR_RUN_FROM_H

#include "coordinator/run/run.h"

struct run_from { /* all zero: the run makes its own start */
    struct publish_blobs blobs;
    Fedlora__V1__HelloRequest *modules; /* of the state; owned */
    uint32_t rank;
    double alpha;
    bool rslora;
    char options[1024]; /* fedlora.options of the state */
    char says[256];     /* "round 3 of run triage, state 0123456789abcdef" */
};
/* Replaces *config if the whole configuration of the other run is taken over. ERR_INPUT: there is
 * no such run or file, or it is of another method, base or run than the configuration says. */
err run_from_find(struct run_from *out, struct run_shop *shop, Fedlora__V1__RunConfig **config);
err run_from_check(const struct run_from *from, const Fedlora__V1__RunConfig *config);
/* After the run's modules are known: they are those of the state. */
err run_from_check_modules(const struct run_from *from, const struct run *run);
/* The run is at the state's round. Before it is durable. */
void run_from_begin(struct run *run, const struct run_from *from);
void run_from_close(struct run_from *from);

#endif
