/* The readers of the table of metrics: each writes the samples of its row. For metrics_*.c. */
#ifndef COORDINATOR_METRICS_READ_H
#define COORDINATOR_METRICS_READ_H

#include "coordinator/http/metrics.h"

/* One sample of this value, with the values of the row's labels. */
#define METRICS_SAMPLE(out, value, ...)                                                            \
    metrics_sample((out), (double)(value), (const char *const[]){__VA_ARGS__, NULL})

/* ---- metrics_service.c */
err metrics_read_build(struct metrics_out *out, const struct facts *facts);
err metrics_read_start(struct metrics_out *out, const struct facts *facts);
err metrics_read_ready(struct metrics_out *out, const struct facts *facts);
err metrics_read_certificates(struct metrics_out *out, const struct facts *facts);
err metrics_read_seen(struct metrics_out *out, const struct facts *facts);
err metrics_read_members(struct metrics_out *out, const struct facts *facts);
err metrics_read_received(struct metrics_out *out, const struct facts *facts);
err metrics_read_sent(struct metrics_out *out, const struct facts *facts);
err metrics_read_calls(struct metrics_out *out, const struct facts *facts);
err metrics_read_refused(struct metrics_out *out, const struct facts *facts);
err metrics_read_store(struct metrics_out *out, const struct facts *facts);
err metrics_read_free(struct metrics_out *out, const struct facts *facts);
err metrics_read_disk_errors(struct metrics_out *out, const struct facts *facts);
err metrics_read_troubles(struct metrics_out *out, const struct facts *facts);
err metrics_read_backup(struct metrics_out *out, const struct facts *facts);
err metrics_read_aggregate(struct metrics_out *out, const struct facts *facts);

/* ---- metrics_runs.c */
err metrics_read_runs(struct metrics_out *out, const struct facts *facts);
err metrics_read_phase(struct metrics_out *out, const struct facts *facts);
err metrics_read_round(struct metrics_out *out, const struct facts *facts);
err metrics_read_rounds(struct metrics_out *out, const struct facts *facts);
err metrics_read_progress(struct metrics_out *out, const struct facts *facts);
err metrics_read_overdue(struct metrics_out *out, const struct facts *facts);
err metrics_read_awaited(struct metrics_out *out, const struct facts *facts);
err metrics_read_loss(struct metrics_out *out, const struct facts *facts);
err metrics_read_budget(struct metrics_out *out, const struct facts *facts);
err metrics_read_epsilon(struct metrics_out *out, const struct facts *facts);
err metrics_read_rounds_total(struct metrics_out *out, const struct facts *facts);
err metrics_read_updates(struct metrics_out *out, const struct facts *facts);

#endif
