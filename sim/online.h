/* When a device is on: spans of time that repeat with a period. Work counts only while it is on, so
 * a task that is under way when the device goes off is continued when it is on again. Pure. */
#ifndef SIM_ONLINE_H
#define SIM_ONLINE_H

#include <stddef.h>
#include <stdint.h>

struct online_span { /* milliseconds from the start of a period; from < to <= period */
    uint64_t from, to;
};
struct online {
    const struct online_span *span; /* (spans) in ascending order, without overlaps */
    size_t spans;                   /* 0: always on */
    uint64_t period;                /* at least the end of the last span */
    uint64_t shift;                 /* below `period`: the time of the period at time 0 */
};

/* The first time from `at` on at which it is on. */
uint64_t online_start(const struct online *o, uint64_t at);
/* The time at which it has been on for `work` milliseconds since `at`; work > 0. */
uint64_t online_end(const struct online *o, uint64_t at, uint64_t work);
/* Milliseconds between the two times during which it was on. */
uint64_t online_between(const struct online *o, uint64_t from, uint64_t to);
/* The span that holds this time, at which it must be on. */
size_t online_span_at(const struct online *o, uint64_t at);

#endif
