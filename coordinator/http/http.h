/* Read-only pages over HTTP, for probes, Prometheus and browsers: /healthz, /readyz, /metrics,
 * /status.json and /. Without encryption and without a password, so `listen` is an address of this
 * machine or of a private network.
 *
 * The threads of the HTTP server never touch the coordinator's state. They ask the loop thread,
 * which makes a page at most once a second and hands it over as finished text; a request waits for
 * that a few seconds at most. Connections, their lives and the sizes of requests are bounded, so
 * no client can hold the loop.
 *
 * Order: http_open(), http_turn() in each turn of the loop, http_drain() before serve_close(),
 * http_close(). All on the loop thread; a NULL `h` is accepted everywhere. */
#ifndef COORDINATOR_HTTP_H
#define COORDINATOR_HTTP_H

#include "coordinator/serve/serve.h"

struct http;

/* Listens and answers that the coordinator starts. *out stays NULL if http.listen is not set. */
err http_open(struct http **out, const struct config *config);
int http_port(const struct http *h); /* 0: it is off */
/* The loop is alive; makes the pages that were asked for. The first call says that the start is
 * done. `s` must live until http_drain(). */
void http_turn(struct http *h, struct serve *s);
/* From now on: not ready. `s` is not used any more. */
void http_drain(struct http *h);
void http_close(struct http *h);

#endif
