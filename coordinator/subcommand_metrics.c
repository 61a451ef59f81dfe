/* `fedlorad metrics`: files for monitoring, made from the tables of metrics and alerts. */
#include "coordinator/http/alerts.h"
#include "coordinator/http/dashboard.h"
#include "coordinator/http/metrics.h"
#include "coordinator/subcommand.h"

#include <stdio.h>

struct metrics_command {
    struct subcommand_common common; /* the first member */
    bool rules, dashboard, table, alerts;
};

#undef AT
#define AT(member) .at = offsetof(struct metrics_command, member)
static const struct option_row rows[] = {
    {.flag = "rules",
     .kind = OPTION_FLAG,
     AT(rules),
     .help = "print a file of alert rules for Prometheus (YAML)"},
    {.flag = "dashboard",
     .kind = OPTION_FLAG,
     AT(dashboard),
     .help = "print a dashboard for Grafana (JSON)"},
    {.flag = "table",
     .kind = OPTION_FLAG,
     AT(table),
     .help = "print all metrics as a table in Markdown"},
    {.flag = "alerts",
     .kind = OPTION_FLAG,
     AT(alerts),
     .help = "print all alerts as a table in Markdown"},
};

static err run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct metrics_command *c = options;
    const struct {
        bool asked;
        err (*make)(struct bytes *out);
    } file[] = {{c->rules, alerts_rules},
                {c->dashboard, dashboard_json},
                {c->table, metrics_doc},
                {c->alerts, alerts_doc}};
    enum { FILES = sizeof file / sizeof *file };
    struct bytes text = {.max = METRICS_BYTES_MAX};
    size_t asked = 0;
    err e = ERR_NONE;
    (void)arguments, (void)arena;
    for (size_t i = 0; i < FILES; i++)
        asked += file[i].asked;
    if (asked != 1)
        return err_make(ERR_INPUT, "expected one of --rules, --dashboard, --table and --alerts");
    for (size_t i = 0; i < FILES && !err_is(e); i++)
        if (file[i].asked) e = file[i].make(&text);
    if (!err_is(e)) printf("%s", (const char *)text.data);
    bytes_close(&text);
    return e;
}

const struct subcommand subcommand_metrics = {
    .name = "metrics",
    .purpose = "print alert rules and a dashboard for monitoring",
    .usage = "--rules | --dashboard | --table | --alerts",
    .example = "fedlorad metrics --rules >fedlora.rules.yml",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct metrics_command),
    .run = run,
};
