/* Limits how often each peer may call, with one token bucket for each name. A bucket holds `burst`
 * calls and refills at `per_second`. Pure: the time is an argument. One owner. */
#ifndef COORDINATOR_RATE_H
#define COORDINATOR_RATE_H

#include "base/err.h"
#include "base/limits.h"

#include <stddef.h>
#include <stdint.h>

struct rate_rules {
    double per_second; /* 0: no limit */
    double burst;      /* at least 1 */
    size_t names_max;
};

struct rate_bucket {
    char name[2 * LIMIT_NAME_BYTES];
    double tokens; /* at at_ms */
    uint64_t at_ms;
};

struct rate {
    struct rate_rules rules;
    struct rate_bucket *bucket; /* (names_max), `count` of them in use, sorted by name; owned */
    size_t count;
};

err rate_open(struct rate *out, const struct rate_rules *rules);
/* Takes one call of `name`. ERR_LIMIT says how long to wait; a refused call takes nothing. */
err rate_take(struct rate *rate, const char *name, uint64_t now_ms);
void rate_close(struct rate *rate);

#endif
