/* Progress of long work on standard error. On a terminal it is one line that is redrawn and fits
 * the terminal's width: name, part done, detail, rate, time left. Elsewhere it is a plain line
 * every few seconds, so that a log shows that work continues. A zeroed struct prints nothing,
 * and neither does one that progress_begin() got with `quiet`. For one thread at a time. */
#ifndef CLIENT_PROGRESS_H
#define CLIENT_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { PROGRESS_LINE_BYTES = 400 };

struct progress {
    bool enabled, terminal;      /* terminal: redraw one line */
    bool bytes;                  /* a transfer: print sizes */
    bool drawn;                  /* a line was printed */
    char what[64];               /* name of the work: "training" */
    const char *unit;            /* of the rate: "tokens", "rows"; NULL: no rate */
    uint64_t begun_ms, shown_ms; /* times of the start and of the last line */
};

void progress_begin(struct progress *p, bool quiet, const char *what, const char *unit);
/* Of a transfer: `done`, `total` and `units` are bytes. Elsewhere than on a terminal it has a line
 * every 30 s, so a short transfer prints nothing. */
void progress_begin_bytes(struct progress *p, bool quiet, const char *what);
/* `done` of `total` (0: not known); `units` since the beginning give the rate; `detail`
 * ("loss 2.31") may be NULL. */
void progress_update(struct progress *p, uint64_t done, uint64_t total, uint64_t units,
                     const char *detail);
/* Prints the last line with the time the work took, of a transfer only if it had lines before; call
 * it also after a failure. */
void progress_end(struct progress *p, const char *detail);

/* "3.1 of 9.8 MB": both in the unit of the total; a total of 0 is not known and left out. */
void progress_part(char *out, size_t bytes, uint64_t done, uint64_t total);
/* Prints a line that is not about the progress, between two of its lines. */
void progress_note(struct progress *p, const char *text);

/* The parts of a line, in the order in which they are printed; all but `what` may be NULL. */
struct progress_parts {
    const char *what, *far, *detail, *rate, *left; /* far: part done; left: time left */
};
/* The line in at most `width` columns: rate, time left and detail are left out, in this order,
 * until the rest fits; then the line is cut. */
void progress_fit(char out[PROGRESS_LINE_BYTES], const struct progress_parts *parts, size_t width);

#endif
