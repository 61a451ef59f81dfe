#include "coordinator/serve/rate.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct rate rate;

static void open_rate(double per_second, double burst, size_t names)
{
    ok(rate_open(&rate, &(struct rate_rules){per_second, burst, names}));
}

/* How many calls go through, one each `every_ms`. */
static int taken(const char *name, int calls, uint64_t from_ms, uint64_t every_ms)
{
    int n = 0;
    for (int i = 0; i < calls; i++)
        n += !err_is(rate_take(&rate, name, from_ms + (uint64_t)i * every_ms));
    return n;
}

Test(rate, lets_a_burst_through_and_then_the_rate)
{
    open_rate(10, 20, 4);
    cr_expect_eq(taken("a", 30, 1000, 0), 20);
    cr_expect_eq(taken("a", 100, 2000, 10), 19, "1 s saved and 0.99 s of calling");
    cr_expect_eq(taken("a", 50, 60000, 0), 20, "no more than a burst is saved");
    rate_close(&rate);
}

Test(rate, says_how_long_to_wait)
{
    open_rate(4, 1, 4);
    ok(rate_take(&rate, "a", 1000));
    err e = rate_take(&rate, "a", 1050);
    cr_expect_eq(e.kind, ERR_LIMIT);
    cr_expect_str_eq(e.text, "more than 4 calls a second; wait 200 ms");
    ok(rate_take(&rate, "a", 1250));
    rate_close(&rate);
}

Test(rate, keeps_peers_apart)
{
    open_rate(1, 3, 4);
    cr_expect_eq(taken("client/b", 9, 1000, 0), 3);
    cr_expect_eq(taken("client/a", 9, 1000, 0), 3);
    cr_expect_eq(taken("admin/a", 9, 1000, 0), 3);
    cr_expect_eq(taken("client/b", 9, 1000, 0), 0);
    rate_close(&rate);
}

Test(rate, forgets_those_who_have_been_quiet_and_refuses_more_names_than_it_can_hold)
{
    char name[16];
    open_rate(1, 2, 8);
    for (int i = 0; i < 8; i++) {
        snprintf(name, sizeof name, "m%d", i);
        ok(rate_take(&rate, name, 1000));
    }
    err e = rate_take(&rate, "late", 1000);
    cr_expect_eq(e.kind, ERR_LIMIT);
    cr_expect(strstr(e.text, "8 peers") != NULL, "%s", e.text);
    ok(rate_take(&rate, "late", 9000));
    cr_expect_eq(rate.count, 1);
    rate_close(&rate);
}

Test(rate, of_zero_is_no_bound)
{
    open_rate(0, 1, 1);
    cr_expect_eq(taken("a", 1000, 1, 0) + taken("b", 1000, 1, 0), 2000);
    rate_close(&rate);
}
