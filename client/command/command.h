/* The commands of `fedlora`. Each is one constant `struct command` in client/command/command_NAME.c
 * and one entry of the list in client/command/command.c. The frame in command.c reads and checks
 * the options, calls run(), prints its error as one line and turns it into the exit status.
 *
 *   struct train_command {
 *       struct command_common common;    the first member
 *       const char *base;
 *       ...
 *   };
 *   const struct command command_train = {.name = "train", .rows = rows, ..., .run = train_run};
 *
 * Results go to standard output, everything else to standard error. If a command has an option
 * `config` of kind OPTION_TEXT, that file, or the default one (command_files.h), is read before the
 * command line is applied. */
#ifndef CLIENT_COMMAND_H
#define CLIENT_COMMAND_H

#include "base/option.h"
#include "base/stop.h" /* stop_asked is set by SIGINT and SIGTERM */
#include "base/training_options.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The options of every command; must be the first member of each command's options struct, because
 * the frame reads it through a pointer to the whole. */
struct command_source;
struct command_common {
    bool json, quiet, verbose, help;
    int64_t threads; /* 0: all */
    int64_t seed;
    const char *device;                  /* "auto", "cpu", "cuda", "cuda:1", "cuda:0,cuda:1" */
    int precision;                       /* enum training_precision */
    const struct command_source *source; /* of these options */
};

/* A second set of options of the same command: the configuration file, then `file`, then the
 * command line, then `last`, both lists of "section.key=value". */
struct command_again {
    const struct command_source *source;
    const struct option_list *file, *last; /* NULL: none */
    bool no_arguments;                     /* leave the command line out */
};
err command_again(void **out, const struct command_again *again, struct arena *arena);
/* The options as a configuration file, without those that have no key. */
err command_write_options(struct bytes *out, const void *options, struct arena *arena);
/* The value of a key; false: none. */
bool command_text(char *out, size_t bytes, const void *options, const char *key);
/* "section.key=value": true if the options have this value; ERR_INPUT for another key or value. */
err command_has_value(bool *out, const void *options, const char *assignment, struct arena *arena);

/* The option of every command that writes a file or a directory. Without it existing output is
 * never changed. */
#define COMMAND_ROW_FORCE(at_)                                                                     \
    {                                                                                              \
        .flag = "force", .letter = 'f', .kind = OPTION_FLAG, .at = (at_),                          \
        .help = "replace existing output"                                                          \
    }

/* The two options that make an adapter smaller; a command takes at most one of them. */
#define COMMAND_ROWS_CUT(rank_at, error_at)                                                        \
    {.flag = "rank",                                                                               \
     .kind = OPTION_INT,                                                                           \
     .at = (rank_at),                                                                              \
     .fallback = "0",                                                                              \
     .least = 0,                                                                                   \
     .most = LIMIT_RANK,                                                                           \
     .help = "largest rank of a module; 0: no limit, the result is exact"},                        \
    {                                                                                              \
        .flag = "error", .kind = OPTION_NUM, .at = (error_at), .fallback = "0", .least = 0,        \
        .most = 1,                                                                                 \
        .help = "largest relative error of a module, which gets the smallest rank that keeps it; " \
                "0: exact"                                                                         \
    }

/* Everything the frame needs to know about a command. Texts follow the rules of help texts: they
 * are printed alone and must be understood alone. */
struct command {
    const char *name;    /* "train", or two words: "run create" */
    const char *purpose; /* one line for the overview and the head of --help */
    const char *usage;   /* arguments after the name: "--base B --data F -o DIR" */
    const char *example; /* a complete command line */
    const struct option_row *rows;
    size_t row_count;
    bool describes_run; /* options_size is of a struct that begins with struct run_options */
    bool reads_file;    /* the argument, if there is one, is a configuration file */
    const char *const *skipped; /* option_set.skipped */
    bool whole_config;   /* the default configuration file has its options, not only [server] */
    size_t options_size; /* sizeof the options struct */
    size_t least, most;  /* number of arguments that are not options; most 0: none */
    err (*run)(void *options, const struct option_list *arguments, struct arena *arena);
    err (*details)(struct bytes *out); /* appends the text of --help after the options; or NULL */
};

/* All options of a command: its own rows first, so that --help begins with them, then those of a
 * run if it describes one, then the common ones. The set points into `table`. */
enum { COMMAND_TABLES = 3 };
struct option_set command_set(const struct command *command,
                              struct option_table table[COMMAND_TABLES]);

/* The whole program: argv as main() has it; returns the exit status of err_exit_code(). */
int command_main(int argc, char **argv);

/* The configuration file of these options, for people; NULL: none was read. */
const char *command_config(const void *options);

/* One line on standard error unless --quiet was given; not for errors. */
void command_note(const struct command_common *common, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
/* An option and whether the user gave it; for command_check_unused(). */
struct command_given {
    const char *flag;
    bool given;
};
/* ERR_INPUT naming the first option that was given although it has no effect without `with`
 * ("--privacy example"), so that nobody believes it is in force. */
err command_check_unused(const struct command_given *option, size_t count, const char *with);
/* ERR_INPUT if `path` exists and `force` is false, or if its directory is missing; ERR_MACHINE if
 * the directory cannot be written. Call it before long work. */
err command_check_output(const char *path, bool force);

/* One per file command_NAME.c; those of `fedlora run` are declared in command_run.h. The list that
 * makes them known is in command.c. */
extern const struct command command_aggregate;
extern const struct command command_approve;
extern const struct command command_audit_export;
extern const struct command command_audit_verify;
extern const struct command command_basis;
extern const struct command command_budget_epsilon;
extern const struct command command_budget_noise;
extern const struct command command_budget_steps;
extern const struct command command_budget_verify;
extern const struct command command_decline;
extern const struct command command_doctor;
extern const struct command command_enroll;
extern const struct command command_eval;
extern const struct command command_export;
extern const struct command command_generate;
extern const struct command command_inspect;
extern const struct command command_join;
extern const struct command command_runs;
extern const struct command command_sent;
extern const struct command command_simulate;
extern const struct command command_simulate_plan;
extern const struct command command_simulate_report;
extern const struct command command_simulate_split;
extern const struct command command_tokenize;
extern const struct command command_train;
extern const struct command command_verify;

#endif
