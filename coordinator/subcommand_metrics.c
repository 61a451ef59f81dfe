/* `fedlorad metrics`: files for monitoring, made from the table of metrics. */
#include "coordinator/http/metrics.h"
#include "coordinator/subcommand.h"

#include <stdio.h>

struct metrics_command {
    struct subcommand_common common; /* the first member */
    bool table;
};

#define AT(member) .at = offsetof(struct metrics_command, member)
static const struct option_row rows[] = {
    {.flag = "table",
     .kind = OPTION_FLAG,
     AT(table),
     .help = "print all metrics as a table in Markdown"},
};

static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct metrics_command *c = options;
    struct bytes text = {.max = METRICS_BYTES_MAX};
    (void)arguments, (void)arena;
    if (!c->table) return err_make(ERR_INPUT, "expected --table");
    err e = metrics_doc(&text);
    if (!err_is(e)) printf("%s", (const char *)text.data);
    bytes_close(&text);
    return e;
}

const struct subcommand subcommand_metrics = {
    .name = "metrics",
    .purpose = "print files for monitoring",
    .usage = "--table",
    .example = "fedlorad metrics --table",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct metrics_command),
    .run = run,
};
