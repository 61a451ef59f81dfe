/* When a device is on, against a walk through every millisecond. */
#include "sim/online.h"

#include "base/rng.h"

#include <criterion/criterion.h>
#include <stdbool.h>

enum { LONG = 400 };

static bool is_on(const struct online *o, uint64_t at)
{
    uint64_t local = o->spans ? (at + o->shift) % o->period : 0;
    for (size_t i = 0; i < o->spans; i++)
        if (local >= o->span[i].from && local < o->span[i].to) return true;
    return o->spans == 0;
}

static void check(const struct online *o, uint64_t at, uint64_t work)
{
    uint64_t start = at, end = at, sum = 0;
    while (!is_on(o, start))
        start++;
    for (; sum < work; end++)
        sum += is_on(o, end);
    cr_assert_eq(online_start(o, at), start);
    cr_assert_eq(online_end(o, at, work), end, "%zu of work from %zu: %zu, expected %zu",
                 (size_t)work, (size_t)at, (size_t)online_end(o, at, work), (size_t)end);
    cr_assert_eq(online_between(o, at, end), work);
    cr_assert_eq(online_between(o, at, start), 0);
    if (o->spans) {
        const struct online_span *s = &o->span[online_span_at(o, start)];
        uint64_t local = (start + o->shift) % o->period;
        cr_assert(local >= s->from && local < s->to);
    }
}

Test(online, agrees_with_a_walk_through_every_millisecond)
{
    struct rng rng;
    rng_init(&rng, "online test", 3, "", 0);
    for (int i = 0; i < 3000; i++) {
        struct online_span span[4];
        uint64_t at = rng_below(&rng, 3);
        size_t spans = 1 + rng_below(&rng, 4);
        for (size_t k = 0; k < spans; k++) {
            span[k].from = at;
            at += 1 + rng_below(&rng, 9);
            span[k].to = at;
            at += rng_below(&rng, 9);
        }
        struct online o = {.span = span, .spans = spans, .period = at};
        o.shift = rng_below(&rng, o.period);
        check(&o, rng_below(&rng, LONG), 1 + rng_below(&rng, LONG));
    }
}

Test(online, without_spans_it_is_always_on)
{
    const struct online o = {0};
    check(&o, 7, 5);
    cr_expect_eq(online_span_at(&o, 7), 0);
    cr_expect_eq(online_between(&o, 9, 4), 0);
}
