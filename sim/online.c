#include "sim/online.h"

#include "base/err.h"

static uint64_t length(const struct online_span *s)
{
    return s->to - s->from;
}

static uint64_t on_per_period(const struct online *o)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < o->spans; i++)
        sum += length(&o->span[i]);
    return sum;
}

/* Milliseconds on in the first `at` of the shifted time, in which periods begin at 0. */
static uint64_t on_before(const struct online *o, uint64_t at)
{
    uint64_t sum = at / o->period * on_per_period(o);
    at %= o->period;
    for (size_t i = 0; i < o->spans && o->span[i].from < at; i++)
        sum += (at < o->span[i].to ? at : o->span[i].to) - o->span[i].from;
    return sum;
}

uint64_t online_between(const struct online *o, uint64_t from, uint64_t to)
{
    if (to <= from) return 0;
    if (!o->spans) return to - from;
    return on_before(o, to + o->shift) - on_before(o, from + o->shift);
}

/* The inverse of on_before(), at the end of a millisecond that is on. */
uint64_t online_end(const struct online *o, uint64_t at, uint64_t work)
{
    if (!o->spans) return at + work;
    uint64_t sum = on_before(o, at + o->shift) + work, each = on_per_period(o);
    uint64_t end = (sum - 1) / each * o->period;
    uint64_t rest = (sum - 1) % each + 1;
    size_t i = 0;
    for (; rest > length(&o->span[i]); i++)
        rest -= length(&o->span[i]);
    return end + o->span[i].from + rest - o->shift;
}

uint64_t online_start(const struct online *o, uint64_t at)
{
    return o->spans ? online_end(o, at, 1) - 1 : at;
}

size_t online_span_at(const struct online *o, uint64_t at)
{
    uint64_t local = o->spans ? (at + o->shift) % o->period : 0;
    size_t i = 0;
    while (i + 1 < o->spans && o->span[i].to <= local)
        i++;
    return i;
}
