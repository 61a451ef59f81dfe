/* Manual pages and shell completions of all commands, for packages and `cmake --install`:
 *
 *   fedlora --man [COMMAND]        the page of the program or of one command, for man(1)
 *   fedlora --completions SHELL    the script for bash, zsh or fish
 *   fedlora --pages DIR            all of these as files below DIR, at the places of share/
 *
 * They are made from the tables of the options, so that a new option appears by itself. --help does
 * not list these three options, because users meet their results only. */
#ifndef CLIENT_COMMAND_PAGES_H
#define CLIENT_COMMAND_PAGES_H

#include "client/command/command.h"

#include <stdbool.h>
#include <stddef.h>

struct command_list {
    const struct command *const *item;
    size_t count;
};

bool command_pages_asked(const char *argument);
/* argv[0] is the option that command_pages_asked() accepted. */
err command_pages(const struct command_list *list, int argc, char **argv);

#endif
