/* How far long work is, on standard error. On a terminal one updating line: what, how far, rate,
 * time left; elsewhere a plain line every few seconds. A zeroed struct, or one begun with `quiet`,
 * prints nothing. One thread. */
#ifndef CLIENT_PROGRESS_H
#define CLIENT_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

struct progress {
    bool enabled, terminal, drawn;
    char what[64];
    const char *unit; /* of the rate: "tokens", "rows" */
    uint64_t begun_ms, shown_ms;
};

void progress_begin(struct progress *p, bool quiet, const char *what, const char *unit);
/* `units` counts the rate; `total` 0: not known; `detail` ("loss 2.31") may be NULL. */
void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t units,
                     const char *detail);
/* The last line, complete, with the time it took; also after a failure. */
void progress_end(struct progress *p, const char *detail);

#endif
