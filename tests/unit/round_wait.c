/* When a round closes and opens: grace after the quorum, absent members, and turns. */
#include "tests/support/round_fixture.h"

static struct round with(uint32_t quorum, uint64_t deadline_ms, uint64_t grace_ms, bool skips)
{
    struct round_rules rules = all_of_three;
    rules.quorum = quorum;
    rules.deadline_ms = deadline_ms;
    rules.grace_ms = grace_ms;
    rules.skips_absent = skips;
    return open_run(&rules, 3);
}

Test(round_wait, the_grace_begins_with_the_quorum_and_ends_the_round)
{
    struct round r = with(2, 60000, 5000, false);
    cr_assert(!err_is(submit(&r, 100, 0, 1, 1)));
    cr_expect_eq(round_wake_ms(&r), 60003);
    cr_assert(!err_is(submit(&r, 200, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_expect_eq(round_wake_ms(&r), 5200);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 5199, 0), 0);
    cr_expect(tell(&r, ROUND_ON_TICK, 5200, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

Test(round_wait, the_deadline_comes_before_a_longer_grace)
{
    struct round r = with(2, 60000, 50000, false);
    cr_assert(!err_is(submit(&r, 100, 0, 1, 1)));
    cr_assert(!err_is(submit(&r, 30000, 1, 1, 2)));
    cr_expect_eq(round_wake_ms(&r), 60003);
    cr_expect(tell(&r, ROUND_ON_TICK, 60003, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

Test(round_wait, all_updates_close_the_round_within_the_grace)
{
    struct round r = with(2, 0, 5000, false);
    for (size_t m = 0; m < 3; m++) {
        cr_expect_eq(round_phase(&r), ROUND_TRAINING);
        cr_assert(!err_is(submit(&r, 100 + m, m, 1, m)));
    }
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_wait, an_update_that_is_taken_out_ends_the_grace)
{
    struct round r = with(2, 0, 5000, false);
    cr_assert(!err_is(submit(&r, 100, 0, 1, 1)));
    cr_assert(!err_is(submit(&r, 100, 1, 1, 2)));
    tell(&r, ROUND_ON_EXCUSE, 200, 1);
    cr_expect_eq(round_wake_ms(&r), 0);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 9000, 0), 0);
    cr_assert(!err_is(submit(&r, 9100, 2, 1, 3)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING, "no other member is left");
    round_close(&r);
}

/* Members that never called before the round opens have had no chance, so they get absent_ms. */
Test(round_wait, skips_members_that_are_absent_when_the_round_opens)
{
    char text[512];
    struct round r = with(0, 0, 0, true);
    for (size_t m = 0; m < 3; m++)
        cr_assert(!err_is(submit(&r, 10, m, 1, m)));
    tell(&r, ROUND_ON_SEEN, 100000, 0);
    tell(&r, ROUND_ON_SEEN, 100000, 1);
    cr_expect(tell(&r, ROUND_ON_PUBLISHED, 100001, 0) & ROUND_DO_OPEN);
    cr_expect_eq(round_awaited(&r), 2);
    round_waiting_for(text, sizeof text, &r, 100001);
    cr_expect(strstr(text, "; not waited for: ward (absent when the round opened)"), "%s", text);
    cr_assert(!err_is(submit(&r, 100002, 0, 2, 10)));
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_TRAIN, "it may still take part");
    cr_assert(!err_is(submit(&r, 100003, 2, 2, 12)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_expect_eq(round_updates(&r), 2);
    cr_assert(!err_is(submit(&r, 100004, 1, 2, 11)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_wait, a_round_of_absent_members_waits_for_one_of_them)
{
    struct round r = with(0, 0, 0, true);
    for (size_t m = 0; m < 3; m++)
        cr_assert(!err_is(submit(&r, 10, m, 1, m)));
    tell(&r, ROUND_ON_PUBLISHED, 200000, 0);
    cr_expect_eq(round_awaited(&r), 0);
    cr_expect_eq(round_phase(&r), ROUND_TRAINING, "a round never closes without an update");
    cr_assert(!err_is(submit(&r, 200001, 1, 2, 10)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_wait, after_a_restart_members_have_time_to_call)
{
    struct round r;
    struct round_rules rules = all_of_three;
    rules.skips_absent = true;
    rules.deadline_ms = 0;
    cr_assert(!err_is(round_init(&r, &rules, ids, 3)));
    for (size_t m = 0; m < 3; m++)
        round_restore_member(&r, m, &(struct round_member){.joined = true});
    round_restore(&r, &(struct round_restored){
                          .shapes_known = true, .started = true, .published = 1, .opened = 2});
    tell(&r, ROUND_ON_BEGIN, 1000, 0);
    cr_expect_eq(round_awaited(&r), 3);
    cr_expect_eq(round_wake_ms(&r), 91000);
    tell(&r, ROUND_ON_SEEN, 60000, 1);
    cr_assert(!err_is(submit(&r, 60001, 1, 2, 1)));
    cr_expect(tell(&r, ROUND_ON_TICK, 91000, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

Test(round_wait, a_change_to_wait_is_in_force_at_once)
{
    struct round r = with(0, 0, 0, true);
    for (size_t m = 0; m < 3; m++)
        cr_assert(!err_is(submit(&r, 10, m, 1, m)));
    tell(&r, ROUND_ON_SEEN, 100000, 0);
    tell(&r, ROUND_ON_PUBLISHED, 100001, 0);
    cr_expect_eq(round_awaited(&r), 1);
    struct round_rules rules = r.rules;
    rules.skips_absent = false;
    round_set_rules(&r, &rules);
    expect_counts(&r);
    cr_expect_eq(round_awaited(&r), 3);
    round_close(&r);
}

/* ---- turns */

Test(round_wait, begins_and_opens_each_round_when_it_is_told_to)
{
    char text[128];
    struct round r;
    struct round_rules rules = all_of_three;
    rules.queues = true;
    cr_assert(!err_is(round_init(&r, &rules, ids, 3)));
    tell(&r, ROUND_ON_BEGIN, 1, 0);
    cr_expect_eq(tell(&r, ROUND_ON_SHAPES, 1, 0), 0);
    for (size_t m = 0; m < 3; m++)
        tell(&r, ROUND_ON_HELLO, 2, m);
    cr_expect_eq(round_phase(&r), ROUND_QUEUED);
    r.ahead = 2;
    round_waiting_for(text, sizeof text, &r, 2);
    cr_expect_str_eq(text, "its turn (queued: 2 runs are ahead of it)");
    cr_expect_eq(tell(&r, ROUND_ON_ENTER, 3, 0), ROUND_DO_START);
    cr_expect_not(round_wants_turn(&r));
    tell(&r, ROUND_ON_STARTED, 4, 0);
    for (uint32_t round = 1; round <= 3; round++) {
        cr_expect(round_wants_turn(&r));
        cr_expect_eq(round_phase(&r), ROUND_QUEUED);
        cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT);
        cr_expect(tell(&r, ROUND_ON_TURN, 5, 0) & ROUND_DO_OPEN);
        for (size_t m = 0; m < 3; m++)
            cr_assert(!err_is(submit(&r, 6, m, round, round * 10 + m)));
        cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
        tell(&r, ROUND_ON_PUBLISHED, 7, 0);
    }
    cr_expect_eq(round_phase(&r), ROUND_FINISHED);
    round_close(&r);
}

Test(round_wait, wants_no_turn_while_members_are_missing_or_it_is_held)
{
    struct round r;
    struct round_rules rules = all_of_three;
    rules.queues = true;
    cr_assert(!err_is(round_init(&r, &rules, ids, 3)));
    tell(&r, ROUND_ON_BEGIN, 1, 0);
    tell(&r, ROUND_ON_ENTER, 1, 0);
    tell(&r, ROUND_ON_SHAPES, 1, 0);
    tell(&r, ROUND_ON_STARTED, 1, 0);
    cr_expect_not(round_wants_turn(&r));
    cr_expect_eq(round_phase(&r), ROUND_WAITING);
    for (size_t m = 0; m < 3; m++)
        tell(&r, ROUND_ON_HELLO, 2, m);
    cr_expect(round_wants_turn(&r));
    tell(&r, ROUND_ON_PAUSE, 3, 0);
    cr_expect_not(round_wants_turn(&r));
    cr_expect_eq(round_phase(&r), ROUND_PAUSED);
    round_close(&r);
}
