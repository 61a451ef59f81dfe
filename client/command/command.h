/* The commands of `fedlora`: one const struct each, in client/command_NAME.c, and one row in the
 * table of client/command/command.c. The frame reads the options, checks them, runs the command, prints its
 * error as one line and turns it into the exit status.
 *
 *   struct train_command { struct command_common common; const char *base; ... };   common comes
 * first const struct command command_train = {.name = "train", .rows = rows, ..., .run =
 * train_command_run};
 *
 * Results go to standard output, all else to standard error. A command with a `config` option of
 * kind OPTION_TEXT has that file read before the command line is applied. */
#ifndef CLIENT_COMMAND_H
#define CLIENT_COMMAND_H

#include "base/option.h"
#include "base/stop.h" /* set by SIGINT and SIGTERM; a second one ends the process */

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum command_precision { COMMAND_PRECISION_AUTO, COMMAND_PRECISION_F32, COMMAND_PRECISION_BF16 };

struct command_common { /* the first member of every command's options */
    bool json, quiet, verbose, help;
    int64_t threads; /* 0: all */
    int64_t seed;
    const char *device; /* "auto", "cpu", "cuda", "cuda:1" */
    int precision;      /* enum command_precision */
};

#define COMMAND_ROW_FORCE(at_)                                                                     \
    {                                                                                              \
        .flag = "force", .letter = 'f', .kind = OPTION_FLAG, .at = (at_),                          \
        .help = "replace existing output"                                                          \
    }

struct command {
    const char *name;    /* "train", or two words: "run create" */
    const char *purpose; /* one line */
    const char *usage;   /* what follows the name: "--base B --data F -o DIR" */
    const char *example; /* a whole command line */
    const struct option_row *rows;
    size_t row_count;
    size_t options_size; /* sizeof the options struct */
    size_t least, most;  /* arguments that are no options; most 0: none */
    err (*run)(void *options, const struct option_list *arguments, struct arena *arena);
    err (*details)(struct bytes *out); /* what --help says after the options; or NULL */
};

/* The whole program: argv as main() has it; returns the exit status. */
int command_main(int argc, char **argv);

/* One line on standard error, unless --quiet; not for errors. */
void command_say(const struct command_common *common, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
struct command_given {
    const char *flag;
    bool given;
};
/* ERR_INPUT for the first that was given: it says nothing without `with` ("--privacy example"), and
 * nobody shall think they have what they have not. */
err command_check_unused(const struct command_given *option, size_t count, const char *with);
/* ERR_INPUT "PATH: exists already; --force replaces it" unless force or absent; also told: a folder
 * that is missing or cannot be written. Call it before long work. */
err command_check_output(const char *path, bool force);

extern const struct command command_aggregate;
extern const struct command command_basis;
extern const struct command command_budget_epsilon;
extern const struct command command_budget_noise;
extern const struct command command_budget_steps;
extern const struct command command_budget_verify;
extern const struct command command_doctor;
extern const struct command command_eval;
extern const struct command command_export;
extern const struct command command_generate;
extern const struct command command_inspect;
extern const struct command command_join;
extern const struct command command_tokenize;
extern const struct command command_train;

#endif
