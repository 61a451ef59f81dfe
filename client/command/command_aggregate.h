/* Options of `fedlora aggregate` and the printing of its results; the command is in
 * client/command/command_aggregate.c. */
#ifndef CLIENT_COMMAND_AGGREGATE_H
#define CLIENT_COMMAND_AGGREGATE_H

#include "agg/combine/combine.h"
#include "client/command/command.h"
#include "client/output/progress.h"

struct aggregate_command {
    struct command_common common;
    const char *method, *weights, *output; /* weights: as given, NULL: equal weights */
    const char *base;                      /* NULL: none */
    int64_t rank;                          /* 0: no limit, as for the next three */
    double error, energy;                  /* relative to each module */
    uint64_t bytes;                        /* of all modules together */
    struct option_list options;            /* KEY=VALUE of the method */
    bool stack, compare, verify, force;
};

/* Results of --verify: distances between the written result and the dense recomputation, in the
 * Frobenius norm. */
struct aggregate_checked {
    double *error; /* one per module */
    double total;  /* over all modules */
    double norm;   /* of the recomputed change of all modules */
    double saved;  /* largest relative error of the tensors saved whole */
};

/* One JSON document with adapters, modules and totals. */
err aggregate_print_json(const struct aggregate_command *o, const struct combine *c,
                         const struct aggregate_checked *v);
/* Tables of adapters and of modules, grouped by kind unless --verbose is given, and a summary
 * line. */
err aggregate_print_text(const struct aggregate_command *o, const struct combine *c,
                         const struct aggregate_checked *v);

#endif
