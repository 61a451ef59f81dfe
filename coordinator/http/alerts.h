/* Alerts for Prometheus on the metrics of a coordinator: one table, from which the file of rules
 * and the list in docs/monitoring.md are made. Pure. */
#ifndef COORDINATOR_ALERTS_H
#define COORDINATOR_ALERTS_H

#include "base/bytes.h"

struct alerts_row {
    const char *name, *expression;
    const char *lasts;    /* for so long before it fires; NULL: at once */
    const char *severity; /* "page": somebody must act now; "warn": within a day */
    const char *summary;  /* with Prometheus' templates */
    const char *todo;     /* for the operator */
};
extern const struct alerts_row alerts_rows[];
extern const size_t alerts_count;

err alerts_rules(struct bytes *out); /* YAML, a file of rules */
err alerts_doc(struct bytes *out);   /* a table in Markdown */

#endif
