/* The configuration file of a command. One file serves all commands: keys of other commands are
 * skipped, keys that no command knows are errors. Without --config the default file is used, the
 * first of these that this user can read:
 *
 *     $XDG_CONFIG_HOME/fedlora/client.ini, or ~/.config/fedlora/client.ini without the variable
 *     /etc/fedlora/client.ini
 *
 * Commands with `whole_config` (join, doctor) read all of it. The others, which are an operator's,
 * read only how to reach the coordinator, also if --config names another file, which then comes
 * over it: a run must not get options from a machine's own settings. */
#ifndef CLIENT_COMMAND_FILES_H
#define CLIENT_COMMAND_FILES_H

#include "client/command/command.h"

struct command_files {
    const char *common; /* the default file; NULL: none, or not read */
    const char *path;   /* the argument, or the value of --config; NULL: none */
    bool whole;         /* all of `common` is read */
};
/* True if the command takes options from a configuration file. */
bool command_files_used(const struct command *command);
/* `options` after a first reading of the command line; `rest`: its arguments. */
err command_files_find(struct command_files *out, const void *options,
                       const struct command *command, const struct option_list *rest,
                       struct arena *arena);
err command_files_read(void *options, const struct option_set *set,
                       const struct command_files *files, struct arena *arena);

#endif
