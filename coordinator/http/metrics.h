/* The metrics of a coordinator: one table, from which the page /metrics, the list in
 * docs/monitoring.md and the panels of the dashboard are made.
 *
 * Labels are bounded: at most METRICS_RUNS runs have series of their own, open ones first and then
 * the newest, and METRICS_MEMBERS members. Counters of all others are added up as "other". Losses
 * of private runs, and everything that shows who was drawn by a secret draw, are left out. */
#ifndef COORDINATOR_METRICS_H
#define COORDINATOR_METRICS_H

#include "coordinator/http/facts.h"

enum {
    METRICS_RUNS = 200,
    METRICS_MEMBERS = 1000,
    METRICS_LABELS = 3,
    METRICS_BYTES_MAX = 4 << 20,
    METRICS_DOC_BYTES_MAX = 65536,
};

enum metrics_kind { METRICS_GAUGE, METRICS_COUNTER, METRICS_HISTOGRAM };
const char *metrics_kind_name(enum metrics_kind kind); /* "gauge", ... */

struct metrics_out;
struct metrics_row {
    const char *name, *help;
    enum metrics_kind kind;
    const char *label[METRICS_LABELS + 1]; /* NULL-terminated */
    err (*read)(struct metrics_out *out, const struct facts *facts);
    /* The panel of the dashboard: its expression, legend and unit (of Grafana). NULL: none. */
    const char *panel, *query, *legend, *unit;
};
extern const struct metrics_row metrics_rows[];
extern const size_t metrics_count;

/* The page /metrics, in the text format of Prometheus. */
err metrics_write(struct bytes *out, const struct facts *facts);
/* A table in Markdown: name, kind, labels, meaning. */
err metrics_doc(struct bytes *out);

/* ---- for metrics_*.c: the output of one row */
struct metrics_out {
    struct bytes *text;
    const struct metrics_row *row;
    const struct run **run; /* (runs) those with series of their own */
    size_t runs;
    const char **member; /* (members) the same, of the members that the federation lists, sorted */
    size_t members;
};
/* One sample: the values of the row's labels in order, NULL-terminated. */
err metrics_sample(struct metrics_out *out, double value, const char *const *label);

#endif
