#include "coordinator/serve/rate.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

err rate_open(struct rate *out, const struct rate_rules *rules)
{
    REQUIRE(rules->names_max > 0 && rules->burst >= 1 && rules->per_second >= 0);
    struct rate rate = {.rules = *rules};
    rate.bucket = calloc(rules->names_max, sizeof *rate.bucket);
    if (!rate.bucket) return err_sys(ENOMEM, "the rates of %zu peers", rules->names_max);
    *out = rate;
    return ERR_NONE;
}

void rate_close(struct rate *rate)
{
    free(rate->bucket);
    *rate = (struct rate){0};
}

/* Computed from the time since the last call, so an idle bucket costs nothing. */
static double tokens_at(const struct rate *r, const struct rate_bucket *b, uint64_t now_ms)
{
    double since = now_ms > b->at_ms ? (double)(now_ms - b->at_ms) / 1000 : 0;
    return fmin(r->rules.burst, b->tokens + since * r->rules.per_second);
}

/* A full bucket carries no information, because a name that is not in the table has a full bucket
 * too. Removing them keeps the table within its bound. */
static void forget_full(struct rate *r, uint64_t now_ms)
{
    size_t kept = 0;
    for (size_t i = 0; i < r->count; i++)
        if (tokens_at(r, &r->bucket[i], now_ms) < r->rules.burst) r->bucket[kept++] = r->bucket[i];
    r->count = kept;
}

/* The index of the name, or the index at which to insert it. */
static size_t place_of(const struct rate *r, const char *name)
{
    size_t low = 0, high = r->count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (strcmp(r->bucket[middle].name, name) < 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* A new name gets a full bucket. If the table is full of names that called recently, a new name is
 * refused rather than an old one forgotten, because a forgotten peer would get a new burst. */
static err find(struct rate_bucket **out, struct rate *r, const char *name, uint64_t now_ms)
{
    REQUIRE(strlen(name) < sizeof r->bucket->name);
    size_t at = place_of(r, name);
    if (at == r->count || strcmp(r->bucket[at].name, name) != 0) {
        if (r->count == r->rules.names_max) forget_full(r, now_ms);
        if (r->count == r->rules.names_max)
            return err_make(ERR_LIMIT,
                            "%zu peers call at the same time, the largest number that is served",
                            r->count);
        at = place_of(r, name);
        memmove(&r->bucket[at + 1], &r->bucket[at], (r->count - at) * sizeof *r->bucket);
        r->bucket[at] = (struct rate_bucket){.tokens = r->rules.burst, .at_ms = now_ms};
        memcpy(r->bucket[at].name, name, strlen(name) + 1);
        r->count++;
    }
    *out = &r->bucket[at];
    return ERR_NONE;
}

err rate_take(struct rate *r, const char *name, uint64_t now_ms)
{
    struct rate_bucket *b = NULL;
    if (r->rules.per_second == 0) return ERR_NONE;
    TRY(find(&b, r, name, now_ms));
    double tokens = tokens_at(r, b, now_ms);
    if (tokens < 1)
        return err_make(ERR_LIMIT, "more than %g calls a second; wait %.0f ms", r->rules.per_second,
                        ceil(1000 * (1 - tokens) / r->rules.per_second));
    b->tokens = tokens - 1;
    b->at_ms = now_ms;
    return ERR_NONE;
}
