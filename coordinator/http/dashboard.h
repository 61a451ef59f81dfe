/* A dashboard for Grafana, made from the table of metrics: one panel for each row that has one.
 * Pure. */
#ifndef COORDINATOR_DASHBOARD_H
#define COORDINATOR_DASHBOARD_H

#include "base/bytes.h"

err dashboard_json(struct bytes *out);

#endif
