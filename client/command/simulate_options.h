/* Options of `fedlora simulate` and its verbs, from the command line and FILE.ini, and the structs
 * of sim/ that are made from them. */
#ifndef CLIENT_COMMAND_SIMULATE_OPTIONS_H
#define CLIENT_COMMAND_SIMULATE_OPTIONS_H

#include "client/command/run_options.h"
#include "sim/simulate.h"

/* Values of the options; command_simulate.c has their flags, keys, ranges and help. Texts are NULL
 * if they are not given. */
struct simulate_command {
    struct run_options run; /* the run and the training, as for `fedlora run create` */

    /* ---- [data]: rows and how they are dealt ---- */
    const char *train;    /* a file whose rows are dealt, or a folder with a file for each member */
    const char *test;     /* held-out rows of nobody */
    const char *held_out; /* rows of each member that it does not train on: a number or a part */
    const char *by;       /* the field of a row with its label */
    const char *template; /* chat template: a built-in name or a file */
    int split;            /* enum deal_kind */
    int64_t shards;       /* of each member */
    double split_alpha;   /* Dirichlet */
    double size_sigma;    /* log-normal numbers of rows; 0: equal */

    /* ---- [fleet], [devices], [faults]: members, their machines, what goes wrong ---- */
    int64_t clients;
    const char *ranks;          /* "64,16,4", in turn */
    struct option_list classes; /* devices_parse() */
    const char *trace;          /* a CSV file with machines of single members */
    double jitter;              /* log-normal, of the times of tasks */
    const char *attack;         /* attack_parse() */
    double vanish;              /* share of the members that leave for good */
    double crash;               /* probability of a coordinator crash after an update */

    /* ---- [evaluate], [reference] ---- */
    int64_t every, check_rows; /* rounds; rows of `test` before the last round, 0: all */
    const char *early;         /* early_parse() */
    bool base_line, pooled_line, alone_line;
    double reference_lr; /* of the lines that train; 0: the run's */

    /* ---- this call, which the results do not depend on ---- */
    const char *name;        /* of the run */
    const char *output;      /* the folder */
    int64_t workers;         /* 0: chosen */
    bool checkpoint;         /* recompute activations */
    bool force;              /* begin anew */
    int64_t cell;            /* of the sweep, from 1; 0: all */
    const char *seeds;       /* a list for run.seed */
    struct option_list sets; /* KEY=VALUE */
    const char *write;       /* simulate split: a folder for the members' rows */
    const char *methods;     /* simulate plan: a list, or "all" */
};

enum simulate_verb { SIMULATE_RUN, SIMULATE_SPLIT, SIMULATE_PLAN };
/* ERR_INPUT for an option of another verb, and if --data is missing where rows are needed. */
err simulate_check_verb(const struct simulate_command *o, enum simulate_verb verb);

/* All that one simulation is made of, from the options of one cell. */
struct simulate_setup {
    struct fleet_options fleet;
    Fedlora__V1__RunConfig config; /* simulate_setup_close() frees its training */
    struct early early;            /* when it ends before its last round */
    char name[LIMIT_NAME_BYTES];   /* of the run */
};
/* ERR_INPUT for options that contradict each other. Opens no model and no data. */
err simulate_setup(struct simulate_setup *out, const struct simulate_command *o,
                   const struct option_list *arguments, struct arena *arena);
void simulate_setup_close(struct simulate_setup *s); /* accepts a zeroed struct */
/* The members and their machines. ERR_INPUT names the option and what was expected. */
err simulate_fleet_options(struct fleet_options *out, const struct simulate_command *o,
                           struct arena *arena);
/* Of the members' engines: --precision, or what the run asks for. */
enum dtype simulate_precision(const struct simulate_command *o);
/* The workers and their engines. A GPU has one worker. */
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
