/* The commands of `fedlorad` besides serving: `fedlorad ca init`, for example. Each is one constant
 * `struct subcommand` in coordinator/subcommand_NAME.c and one entry of the list in subcommand.c,
 * which reads and checks the options, calls run() and turns its error into the exit status.
 *
 *   struct store_command {
 *       struct subcommand_common common;    the first member
 *       bool dry_run;
 *   };
 *   const struct subcommand subcommand_store = {.name = "store", .rows = rows, ..., .run = run};
 *
 * Results go to standard output, everything else to standard error. */
#ifndef COORDINATOR_SUBCOMMAND_H
#define COORDINATOR_SUBCOMMAND_H

#include "coordinator/config.h"

/* The options of every subcommand; must be the first member of its options struct. */
struct subcommand_common {
    bool json, help;
    const char *file;       /* --config */
    struct option_list set; /* --set */
    struct config *config;  /* read from --config; NULL if `configured` is false */
};

/* Texts follow the rules of help texts: they are printed alone and must be understood alone. */
struct subcommand {
    const char *name;    /* "store", or two words: "ca init" */
    const char *purpose; /* one line */
    const char *usage;   /* arguments after the name */
    const char *example; /* a complete command line */
    const struct option_row *rows;
    size_t row_count;
    size_t options_size; /* sizeof the options struct */
    size_t least, most;  /* number of arguments that are not options */
    bool configured;     /* needs --config FILE, which may be that of a running service */
    err (*run)(void *options, const struct option_list *arguments, struct arena *arena);
};

/* True if argv (as main() has it) names a subcommand and not options of the service. */
bool subcommand_asked(int argc, char **argv);
/* ERR_INPUT for an unknown name, with the nearest known one. */
err subcommand_main(int argc, char **argv);
/* All options of a subcommand, its own first. The set points into `table`. */
enum { SUBCOMMAND_TABLES = 3 };
struct option_set subcommand_set(const struct subcommand *command,
                                 struct option_table table[SUBCOMMAND_TABLES]);
/* Appends one line for each subcommand, for `fedlorad --help`. */
err subcommand_list(struct bytes *out);

extern const struct subcommand subcommand_ca_init, subcommand_ca_renew, subcommand_token,
    subcommand_metrics;
extern const struct subcommand subcommand_backup, subcommand_verify, subcommand_restore,
    subcommand_store;

#endif
