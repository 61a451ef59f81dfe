/* Counters for metrics: bounded, and silent about secret draws. */
#include "coordinator/run/tally.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static struct tally t;

Test(tally, finds_each_of_many_members_whatever_their_order)
{
    char id[32];
    enum { MEMBERS = 500 };
    for (int i = 0; i < MEMBERS; i++) {
        snprintf(id, sizeof id, "m%d", i * 7919 % MEMBERS);
        tally_received(&t, id, (uint64_t)i);
        tally_sent(&t, id, 1);
    }
    cr_assert_eq(t.members, MEMBERS);
    for (int i = 0; i < MEMBERS; i++) {
        snprintf(id, sizeof id, "m%d", i * 7919 % MEMBERS);
        const struct tally_member *row = tally_find(&t, id);
        cr_assert_not_null(row, "%s", id);
        cr_expect_eq(row->received, (uint64_t)i);
        cr_expect_eq(row->sent, 1);
    }
    cr_expect_null(tally_find(&t, "nobody"));
    tally_close(&t);
}

Test(tally, counts_no_more_members_than_it_has_places_for)
{
    char id[32];
    for (int i = 0; i < TALLY_MEMBERS_MAX + 10; i++) {
        snprintf(id, sizeof id, "m%d", i);
        tally_received(&t, id, 3);
    }
    cr_expect_eq(t.members, TALLY_MEMBERS_MAX);
    tally_received(&t, "m0", 4);
    cr_expect_eq(tally_find(&t, "m0")->received, 7);
    tally_close(&t);
}

Test(tally, hides_successful_calls_while_a_draw_is_secret)
{
    tally_call(&t, "Submit", "OK");
    tally_hide(&t, true);
    tally_call(&t, "Submit", "OK");
    tally_call(&t, "Submit", "UNAVAILABLE");
    tally_hide(&t, false);
    tally_call(&t, "Submit", "OK");
    cr_assert_eq(t.calls, 2);
    cr_expect_eq(t.call[0].count, 2);
    cr_expect_str_eq(t.call[1].code, "UNAVAILABLE");
    cr_expect_eq(t.call[1].count, 1);
}

Test(tally, puts_a_time_on_the_bound_of_a_bucket_into_that_bucket)
{
    tally_aggregate(&t, 10);
    tally_aggregate(&t, 11);
    tally_aggregate(&t, 3600 * 1000);
    cr_expect_eq(t.bucket[0], 1);
    cr_expect_eq(t.bucket[1], 1);
    cr_expect_eq(t.bucket[TALLY_BUCKETS - 1], 1);
    cr_expect_eq(t.aggregated, 3);
    cr_expect_float_eq(t.aggregate_s, 3600.021, 1e-9);
}

Test(tally, accepts_that_there_is_none)
{
    tally_received(NULL, "a", 1);
    tally_sent(NULL, "a", 1);
    tally_call(NULL, "Submit", "OK");
    tally_aggregate(NULL, 1);
    tally_refused(NULL, RPC_REFUSAL_LIMIT);
    tally_close(NULL);
    cr_expect_null(tally_find(NULL, "a"));
}
