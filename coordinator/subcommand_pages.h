/* Manual pages and shell completions of fedlorad, and the page of its configuration file, from the
 * same tables as --help and --sample (base/program.h). */
#ifndef COORDINATOR_SUBCOMMAND_PAGES_H
#define COORDINATOR_SUBCOMMAND_PAGES_H

#include "coordinator/subcommand.h"

#include <stdbool.h>
#include <stddef.h>

struct subcommand_names {
    const struct subcommand *const *item;
    size_t count;
};

bool subcommand_pages_asked(const char *argument);
/* argv[0] is the option that subcommand_pages_asked() accepted. */
err subcommand_pages(const struct subcommand_names *list, int argc, char **argv);

#endif
