/* Rounds with a cohort: members drawn publicly, some of them beyond the number that is needed. */
#include "coordinator/run/run_draw.h"
#include "tests/support/round_fixture.h"

#include <math.h>
#include <string.h>

/* Sorted: er 0, icu 1, lab 2, ward 3. Two updates close a round; three members are drawn. */
static struct round open_cohort(uint32_t quorum, uint32_t late_rounds)
{
    struct round_rules rules = all_of_three;
    rules.drawn = true;
    rules.cohort = 2;
    rules.quorum = quorum;
    rules.late_rounds = late_rounds;
    struct round r = open_run(&rules, 4);
    round_draw(&r, (bool[]){true, true, false, true}, true);
    expect_counts(&r);
    return r;
}

Test(round_cohort, closes_when_the_cohort_is_in_and_not_before)
{
    struct round r = open_cohort(0, 0);
    char text[256];
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_WAIT, "lab is not drawn");
    cr_expect_str_eq(round_activity(&r, 2, 4), "not drawn");
    cr_expect_str_eq(round_activity(&r, 1, 4), "waiting");
    err e = submit(&r, 4, 2, 1, 1);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect_str_eq(e.text, "lab is not drawn for round 1; ask for the next task");
    cr_assert(!err_is(submit(&r, 5, 3, 1, 2)));
    round_waiting_for(text, sizeof text, &r, 4);
    cr_expect(strstr(text, "1 more of 2 updates, from 3 drawn members: er ("), "%s", text);
    cr_expect(!strstr(text, "lab") && !strstr(text, "quorum"), "%s", text);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 70000, 0), 0, "past the deadline one is no quorum");
    cr_assert(!err_is(submit(&r, 70001, 0, 1, 3)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    cr_expect_eq(submit(&r, 70002, 1, 1, 4).kind, ERR_STATE, "the slowest is not waited for");
    cr_expect(tell(&r, ROUND_ON_PUBLISHED, 70003, 0) & ROUND_DO_OPEN);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT, "the next round has its own draw");
    round_draw(&r, (bool[]){false, true, true, true}, true);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT);
    cr_expect_eq(round_task(&r, 2), ROUND_TASK_TRAIN);
    round_close(&r);
}

Test(round_cohort, closes_at_the_deadline_with_a_quorum)
{
    struct round r = open_cohort(1, 0);
    char text[256];
    cr_assert(!err_is(submit(&r, 5, 3, 1, 1)));
    round_waiting_for(text, sizeof text, &r, 4);
    cr_expect(strstr(text, "; quorum 1, 1 in"), "%s", text);
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_expect(tell(&r, ROUND_ON_TICK, 60003, 0) & ROUND_DO_AGGREGATE);
    round_close(&r);
}

/* FedBuff: the quorum is the buffer, and every update counts when it comes. */
Test(round_cohort, late_updates_fill_the_next_rounds_up_to_a_number_of_rounds)
{
    struct round_rules rules = all_of_three;
    rules.rounds = 5;
    rules.quorum = 1;
    rules.deadline_ms = 0;
    rules.late_rounds = 2;
    struct round r = open_run(&rules, 4);
    cr_assert(!err_is(submit(&r, 10, 0, 1, 1)));
    tell(&r, ROUND_ON_PUBLISHED, 11, 0);
    cr_assert(!err_is(submit(&r, 12, 0, 2, 2)));
    tell(&r, ROUND_ON_PUBLISHED, 13, 0);
    cr_assert(!err_is(submit(&r, 14, 1, 1, 3)), "two rounds late");
    cr_expect_eq(r.member[1].counted_in, 3);
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING, "it was the quorum");
    err e = submit(&r, 15, 2, 1, 4);
    cr_expect_eq(e.kind, ERR_STATE, "while round 3 is combined, it would count in round 4");
    cr_expect(strstr(e.text, "too late even for a later round"), "%s", e.text);
    cr_assert(!err_is(submit(&r, 15, 2, 2, 5)));
    cr_expect_eq(r.member[2].counted_in, 4);
    cr_expect(tell(&r, ROUND_ON_PUBLISHED, 16, 0) & ROUND_DO_AGGREGATE, "round 4 is full at once");
    round_close(&r);
}

/* The update of a member that is not drawn any more is enough for the new round. */
Test(round_cohort, late_updates_close_a_round_when_its_members_are_drawn)
{
    struct round r = open_cohort(0, 1);
    cr_assert(!err_is(submit(&r, 5, 0, 1, 1)));
    cr_assert(!err_is(submit(&r, 5, 1, 1, 2)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    cr_assert(!err_is(submit(&r, 6, 3, 1, 3)));
    cr_expect_eq(r.member[3].counted_in, 2);
    tell(&r, ROUND_ON_PUBLISHED, 7, 0);
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    round_draw(&r, (bool[]){true, true, true, false}, true);
    cr_expect_eq(tell(&r, ROUND_ON_TICK, 8, 0), 0, "one of two");
    cr_assert(!err_is(submit(&r, 9, 2, 2, 4)));
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}

Test(round_cohort, refuses_a_cohort_that_is_larger_than_the_run)
{
    struct round r;
    struct round_rules rules = all_of_three;
    rules.cohort = 4;
    cr_expect_eq(round_init(&r, &rules, ids, 3).kind, ERR_INPUT);
}

/* ---- draws ---- */

enum { N = 20, DRAWN = 6, ROUNDS = 6000 };

/* Each member is drawn with probability DRAWN / N, each pair with DRAWN (DRAWN - 1) / (N (N - 1)):
 * a count over all rounds has a standard deviation of at most sqrt(ROUNDS p (1 - p)). */
Test(round_cohort, draws_a_fixed_number_of_members_evenly)
{
    static size_t one[N], two[N][N];
    bool drawn[N], again[N];
    for (uint32_t round = 1; round <= ROUNDS; round++) {
        const struct run_draw_cohort of = {N, DRAWN, 7, round};
        size_t count = 0;
        run_draw_cohort(drawn, &of);
        run_draw_cohort(again, &of);
        cr_assert_arr_eq(drawn, again, sizeof drawn);
        for (size_t i = 0; i < N; i++) {
            count += drawn[i];
            one[i] += drawn[i];
            for (size_t k = 0; k < i; k++)
                two[i][k] += drawn[i] && drawn[k];
        }
        cr_assert_eq(count, DRAWN);
    }
    double p = (double)DRAWN / N, q = p * (DRAWN - 1) / (N - 1);
    for (size_t i = 0; i < N; i++) {
        cr_expect_lt(fabs((double)one[i] - ROUNDS * p), 5 * sqrt(ROUNDS * p * (1 - p)));
        for (size_t k = 0; k < i; k++)
            cr_expect_lt(fabs((double)two[i][k] - ROUNDS * q), 5 * sqrt(ROUNDS * q * (1 - q)));
    }
}

Test(round_cohort, draws_differ_by_seed_and_may_take_everyone_or_nobody)
{
    bool a[N], b[N];
    run_draw_cohort(a, &(struct run_draw_cohort){N, DRAWN, 7, 1});
    run_draw_cohort(b, &(struct run_draw_cohort){N, DRAWN, 8, 1});
    cr_expect_arr_neq(a, b, sizeof a);
    run_draw_cohort(a, &(struct run_draw_cohort){N, N, 7, 1});
    run_draw_cohort(b, &(struct run_draw_cohort){N, 0, 7, 1});
    for (size_t i = 0; i < N; i++)
        cr_expect(a[i] && !b[i]);
}
