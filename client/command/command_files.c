#include "client/command/command_files.h"

#include "base/file.h"
#include "client/identity/identity.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The row of --config; NULL: the command has none. */
static const struct option_row *config_row(const struct command *command)
{
    for (size_t i = 0; i < command->row_count; i++) {
        const struct option_row *row = &command->rows[i];
        if (row->flag && !strcmp(row->flag, "config") && row->kind == OPTION_TEXT) return row;
    }
    return NULL;
}

bool command_files_used(const struct command *command)
{
    return config_row(command) != NULL && !command->reads_file;
}

/* The arena's copy of the path if this user can read the file; NULL otherwise. */
static err take_readable(const char **out, const char *path, struct arena *arena)
{
    *out = NULL;
    return access(path, R_OK) == 0 && !file_is_dir(path)
               ? arena_text(out, arena, path, strlen(path))
               : ERR_NONE;
}

/* The user's own file comes first, as for every program that follows the XDG directories. */
static err find_default(const char **out, struct arena *arena)
{
    const char *config = getenv("XDG_CONFIG_HOME"), *home = getenv("HOME");
    char path[LIMIT_PATH_BYTES];
    int n = 0;
    if (config && *config == '/')
        n = snprintf(path, sizeof path, "%s/fedlora/" IDENTITY_CONFIG, config);
    else if (home && *home == '/')
        n = snprintf(path, sizeof path, "%s/.config/fedlora/" IDENTITY_CONFIG, home);
    if (n > 0 && (size_t)n < sizeof path) TRY(take_readable(out, path, arena));
    return *out ? ERR_NONE : take_readable(out, IDENTITY_DIR "/" IDENTITY_CONFIG, arena);
}

err command_files_find(struct command_files *out, const void *options,
                       const struct command *command, const struct option_list *rest,
                       struct arena *arena)
{
    struct command_files files = {.whole = command->whole_config};
    const struct option_row *row = config_row(command);
    if (command->reads_file)
        files.path = rest->count ? rest->item[0] : NULL;
    else if (row)
        files.path = *(const char *const *)((const char *)options + row->at);
    bool wanted = command_files_used(command) && !(files.whole && files.path);
    if (wanted) TRY(find_default(&files.common, arena));
    *out = files;
    return ERR_NONE;
}

err command_files_read(void *options, const struct option_set *set,
                       const struct command_files *files, struct arena *arena)
{
    struct option_set server = *set;
    if (!files->whole) server.only = "server";
    if (files->common) TRY(option_read_file(options, &server, files->common, arena));
    return files->path ? option_read_file(options, set, files->path, arena) : ERR_NONE;
}
