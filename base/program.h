/* A program as its commands and options, for its manual pages and shell completions. Both programs
 * answer three options with it, which packages and `cmake --install` use and --help does not list:
 *
 *   --man [COMMAND]        prints the page of the program or of one command, for man(1)
 *   --completions SHELL    prints the script for bash, zsh or fish
 *   --pages DIR            writes all of these as files below DIR, at the places of share/ */
#ifndef BASE_PROGRAM_H
#define BASE_PROGRAM_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/man.h"
#include "base/option.h"

#include <stdbool.h>
#include <stddef.h>

struct program_command {
    const char *name;    /* one word or two, "run create"; "": the program without a command */
    const char *purpose; /* one line */
    const char *usage;   /* the arguments after the name */
    const char *example; /* a complete command line; NULL: none */
    struct option_set set;
    err (*details)(struct bytes *out); /* more text for --help; or NULL */
};

struct program {
    const char *name, *purpose;
    int section; /* of the manual: 1 for users, 8 for administrators */
    const struct program_command *command;
    size_t count;
    const struct man_section *before, *after; /* of the program's own page; or NULL */
    const struct man_section *common;         /* at the end of every page; or NULL */
    const struct man_page *file;              /* page of the configuration file; or NULL */
    const char *see;                          /* pages that belong to this program */
};

bool program_asked(const char *argument);
/* argv[0] is the argument that program_asked() accepted. */
err program_answer(const struct program *program, int argc, char **argv);

#endif
