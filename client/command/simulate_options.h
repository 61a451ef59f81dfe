/* Options of `fedlora simulate` and its verbs, from the command line and FILE.ini, and the structs
 * of sim/ that are made from them. */
#ifndef CLIENT_COMMAND_SIMULATE_OPTIONS_H
#define CLIENT_COMMAND_SIMULATE_OPTIONS_H

#include "client/command/run_options.h"
#include "sim/simulate.h"

struct simulate_command {
    struct run_options run;
    const char *train, *test, *by, *ranks, *trace, *attack, *output, *name, *write, *methods,
        *seeds, *early, *held_out;
    int split;
    double split_alpha, size_sigma, jitter, crash, vanish;
    int64_t shards, clients, every, check_rows, workers, cell;
    struct option_list classes, sets;
    bool checkpoint, force, base_line, pooled_line, alone_line;
};

enum simulate_verb { SIMULATE_RUN, SIMULATE_SPLIT, SIMULATE_PLAN };
/* ERR_INPUT for an option of another verb, and if --data is missing where rows are needed. */
err simulate_check_verb(const struct simulate_command *o, enum simulate_verb verb);

/* All that one simulation is made of. */
struct simulate_setup {
    struct fleet_options fleet;
    Fedlora__V1__RunConfig config; /* simulate_setup_close() frees its training */
    struct early early;
    char name[LIMIT_NAME_BYTES]; /* of the run */
};
err simulate_setup(struct simulate_setup *out, const struct simulate_command *o,
                   const struct option_list *arguments, struct arena *arena);
void simulate_setup_close(struct simulate_setup *s); /* accepts a zeroed struct */
/* The members and their machines. ERR_INPUT names the option and what was expected. */
err simulate_fleet_options(struct fleet_options *out, const struct simulate_command *o,
                           struct arena *arena);
enum dtype simulate_precision(const struct simulate_command *o);
struct pool_options simulate_pool_options(const struct simulate_command *o);
/* The faulty members. */
err simulate_attack(struct attack *out, const struct simulate_command *o);
/* ERR_INPUT if neither the run nor the members have a rank. */
err simulate_check_ranks(const struct fleet_options *f, const struct simulate_command *o);
/* The name of the run: --run, or that of the file without its ending. */
err simulate_run_name(char out[LIMIT_NAME_BYTES], const struct simulate_command *o,
                      const struct option_list *arguments);
/* The settings of the run, as the coordinator gets them, and those of the simulation: one JSON
 * object, to be freed. */
err simulate_settings(char **out, const struct simulate_command *o,
                      const Fedlora__V1__RunConfig *config);

#endif
