/* Members that leave, come, are excused or refused, and rules that change, in a run that is
 * open. */
#include "tests/support/round_fixture.h"

static struct round training(uint32_t quorum, uint64_t deadline_ms, size_t members)
{
    struct round_rules rules = all_of_three;
    rules.quorum = quorum;
    rules.deadline_ms = deadline_ms;
    struct round r = open_run(&rules, members);
    cr_assert_eq(round_phase(&r), ROUND_TRAINING);
    return r;
}

static unsigned refuse(struct round *r, uint64_t now, size_t member, uint64_t number)
{
    round_apply(r, &(struct round_event){.kind = ROUND_ON_UNFIT,
                                         .now_ms = now,
                                         .member = member,
                                         .digest = digest_number(number),
                                         .reason = "too large"});
    return tell(r, ROUND_ON_RECOUNT, now, 0);
}

Test(round_change, a_member_that_is_gone_is_not_waited_for)
{
    struct round r = training(0, 0, 3);
    cr_assert(!err_is(submit(&r, 3, 0, 1, 1)));
    cr_assert(!err_is(submit(&r, 3, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_expect(tell(&r, ROUND_ON_LEAVE, 4, 2) & ROUND_DO_AGGREGATE);
    cr_expect_eq(round_quorum(&r), 2);
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_WAIT);
    tell(&r, ROUND_ON_PUBLISHED, 5, 0);
    cr_assert(!err_is(submit(&r, 6, 0, 2, 3)));
    tell(&r, ROUND_ON_RETURN, 7, 2);
    cr_assert(!err_is(submit(&r, 8, 1, 2, 4)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING, "it is waited for again");
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_TRAIN);
    round_close(&r);
}

/* Its update is in before it leaves. */
Test(round_change, the_update_of_a_member_that_is_gone_counts)
{
    struct round r = training(0, 0, 3);
    cr_assert(!err_is(submit(&r, 3, 2, 1, 1)));
    tell(&r, ROUND_ON_LEAVE, 4, 2);
    cr_expect_eq(round_quorum(&r), 3);
    cr_assert(!err_is(submit(&r, 5, 0, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_assert(!err_is(submit(&r, 5, 1, 1, 3)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_change, a_quorum_of_all_waits_for_an_operator_if_an_update_is_refused)
{
    char text[1024];
    struct round r = training(0, 60000, 3);
    for (size_t i = 0; i < 3; i++)
        cr_assert(!err_is(submit(&r, 3, i, 1, i + 1)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    cr_expect(!(refuse(&r, 4, 1, 2) & ROUND_DO_AGGREGATE));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_WAIT, "it is not asked again");
    cr_expect(err_is(submit(&r, 5, 1, 1, 9)), "nor may it send another one");
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 70000, 0) & ROUND_DO_AGGREGATE, 0, "past the deadline");
    round_waiting_for(text, sizeof text, &r, 70000);
    cr_expect(strstr(text, "update refused: too large"), "%s", text);
    cr_expect(strstr(text, "the quorum of 3 cannot be reached"), "%s", text);
    cr_expect_str_eq(round_activity(&r, 1, 70000), "refused");
    cr_expect(tell(&r, ROUND_ON_EXCUSE, 70001, 1) & ROUND_DO_AGGREGATE);
    tell(&r, ROUND_ON_PUBLISHED, 70002, 0);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_TRAIN, "the next round has it again");
    cr_expect_eq(round_quorum(&r), 3);
    round_close(&r);
}

/* Two of three are refused at once; the third is not enough. */
Test(round_change, a_quorum_below_all_goes_on_without_the_refused_update)
{
    struct round r = training(2, 60000, 3);
    for (size_t i = 0; i < 3; i++)
        cr_assert(!err_is(submit(&r, 3, i, 1, i + 1)));
    cr_expect(refuse(&r, 4, 1, 2) & ROUND_DO_AGGREGATE, "two of two are in");
    cr_expect(!(refuse(&r, 5, 0, 1) & ROUND_DO_AGGREGATE));
    struct round_rules rules = r.rules;
    rules.quorum = 1;
    round_set_rules(&r, &rules);
    cr_expect(tell(&r, ROUND_ON_TICK, 6, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

Test(round_change, a_forgiven_member_is_asked_again)
{
    struct round r = training(0, 0, 2);
    for (size_t i = 0; i < 2; i++)
        cr_assert(!err_is(submit(&r, 3, i, 1, i + 1)));
    refuse(&r, 4, 0, 1);
    round_forgive(&r);
    expect_counts(&r);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_TRAIN);
    cr_assert(!err_is(submit(&r, 5, 0, 1, 1)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

/* A restart after everything that is durable. */
Test(round_change, a_restart_remembers_who_was_refused_excused_and_gone)
{
    struct round r = training(0, 0, 4), again = open_run(&r.rules, 4);
    tell(&r, ROUND_ON_LEAVE, 3, 0);
    cr_assert(!err_is(submit(&r, 3, 1, 1, 1)));
    cr_assert(!err_is(submit(&r, 3, 2, 1, 2)));
    refuse(&r, 4, 1, 1);
    tell(&r, ROUND_ON_EXCUSE, 4, 3);
    for (size_t i = 0; i < 4; i++)
        round_restore_member(&again, i, &r.member[i]);
    round_restore(&again,
                  &(struct round_restored){.shapes_known = true, .started = true, .opened = 1});
    expect_counts(&again);
    cr_expect_eq(round_quorum(&again), round_quorum(&r));
    cr_expect_eq(again.counts.refused, 1);
    for (size_t i = 0; i < 4; i++)
        cr_expect_eq(round_task(&again, i), round_task(&r, i), "member %zu", i);
    cr_expect(tell(&again, ROUND_ON_EXCUSE, 5, 1) & ROUND_DO_AGGREGATE);
    round_close(&again);
    round_close(&r);
}

/* Indices of the others stay, and all are found by name. */
Test(round_change, a_member_that_is_added_takes_part)
{
    struct round r = training(0, 0, 2);
    size_t m = 9;
    cr_assert(!err_is(submit(&r, 3, 0, 1, 1)));
    cr_assert(!err_is(round_add(&r, "a")));
    cr_assert(!err_is(round_add(&r, "z")));
    cr_expect(err_is(round_add(&r, "a")));
    expect_counts(&r);
    const char *const all[] = {"icu", "ward", "a", "z"};
    for (size_t i = 0; i < 4; i++) {
        cr_expect(round_find(&m, &r, all[i]));
        cr_expect_eq(m, i, "%s", all[i]);
    }
    cr_expect(!round_find(&m, &r, "b"));
    cr_assert(!err_is(submit(&r, 3, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING, "two more are waited for");
    tell(&r, ROUND_ON_HELLO, 4, 2);
    cr_assert(!err_is(submit(&r, 4, 2, 1, 3)));
    cr_assert(!err_is(submit(&r, 4, 3, 1, 4)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_change, a_new_deadline_counts_from_the_opening_of_the_round)
{
    struct round r = training(1, 60000, 2);
    struct round_rules rules = r.rules;
    uint64_t opened = r.opened_ms;
    rules.deadline_ms = 5000;
    cr_assert(!err_is(submit(&r, 3, 0, 1, 1)));
    round_set_rules(&r, &rules);
    cr_expect_eq(r.deadline_at_ms, opened + 5000);
    cr_expect(!(tell(&r, ROUND_ON_TICK, opened + 4999, 0) & ROUND_DO_AGGREGATE));
    cr_expect(tell(&r, ROUND_ON_TICK, opened + 5000, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}
