#include "coordinator/http/dashboard.h"

#include "base/json.h"
#include "coordinator/http/metrics.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Grafana's grid has 24 columns. */
enum { COLUMNS = 3, WIDTH = 24 / COLUMNS, HEIGHT = 8, SCHEMA = 38 };

/* A new object for each use, because an object that is put into another one belongs to it. */
static json_t *source(void)
{
    return json_pack("{s:s, s:s}", "type", "prometheus", "uid", "${source}");
}

/* Three panels in a row, in the order of the table. */
static json_t *panel_of(const struct metrics_row *row, int n)
{
    json_t *target = json_pack("{s:s, s:s, s:s, s:o}", "expr", row->query, "legendFormat",
                               row->legend, "refId", "A", "datasource", source());
    json_t *place = json_pack("{s:i, s:i, s:i, s:i}", "x", n % COLUMNS * WIDTH, "y",
                              n / COLUMNS * HEIGHT, "w", WIDTH, "h", HEIGHT);
    return json_pack("{s:i, s:s, s:s, s:s, s:o, s:[o], s:o, s:{s:{s:s}, s:[]}}", "id", n + 1,
                     "type", "timeseries", "title", row->panel, "description", row->help, "gridPos",
                     place, "targets", target, "datasource", source(), "fieldConfig", "defaults",
                     "unit", row->unit, "overrides");
}

/* The reader chooses among its Prometheus servers by the variable `source`. */
static json_t *document(void)
{
    json_t *panels = json_array();
    int n = 0;
    for (size_t i = 0; i < metrics_count; i++)
        if (metrics_rows[i].panel) json_array_append_new(panels, panel_of(&metrics_rows[i], n++));
    json_t *variable = json_pack("{s:s, s:s, s:s, s:s}", "name", "source", "type", "datasource",
                                 "query", "prometheus", "label", "Prometheus");
    return json_pack("{s:s, s:s, s:s, s:i, s:{s:s, s:s}, s:{s:[o]}, s:o, s:b}", "title", "Fedlora",
                     "uid", "fedlora", "refresh", "30s", "schemaVersion", SCHEMA, "time", "from",
                     "now-6h", "to", "now", "templating", "list", variable, "panels", panels,
                     "editable", 1);
}

/* With line ends, so that a change of one panel is a change of few lines of the file. */
err dashboard_json(struct bytes *out)
{
    json_t *all = document();
    char *text = all ? json_dumps(all, JSON_INDENT(1) | JSON_SORT_KEYS) : NULL;
    err e = text ? bytes_printf(out, "%s\n", text) : err_sys(ENOMEM, "the dashboard");
    free(text);
    json_decref(all);
    return e;
}
