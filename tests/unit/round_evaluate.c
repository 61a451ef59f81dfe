/* When the state machine hands out an evaluation. */
#include "coordinator/run/round.h"

#include <criterion/criterion.h>

static struct round r;

static void tell(enum round_event_kind kind, size_t member, uint32_t round)
{
    round_apply(
        &r, &(struct round_event){.kind = kind, .now_ms = 10, .member = member, .round = round});
}

/* Of two members, m1 has held-out rows. */
static void begin(uint32_t rounds, uint32_t every)
{
    static const char *const ids[] = {"m0", "m1"};
    const struct round_rules rules = {.rounds = rounds, .evaluate_every = every, .absent_ms = 1000};
    cr_assert(!err_is(round_init(&r, &rules, ids, 2)));
    r.member[1].evaluates = true;
    tell(ROUND_ON_BEGIN, 0, 0);
    tell(ROUND_ON_SHAPES, 0, 0);
    tell(ROUND_ON_STARTED, 0, 0);
    tell(ROUND_ON_HELLO, 0, 0);
    tell(ROUND_ON_HELLO, 1, 0);
}

static void publish(uint32_t round)
{
    for (size_t m = 0; m < 2; m++) {
        struct round_place place;
        struct digest digest = digest_of(&round, sizeof round);
        cr_assert(!err_is(round_judge(&place, &r, m, round, &digest)));
        round_apply(&r, &(struct round_event){.kind = ROUND_ON_ADMIT,
                                              .now_ms = 10,
                                              .member = m,
                                              .round = round,
                                              .digest = digest});
        tell(ROUND_ON_RECEIPT, m, 0);
    }
    tell(ROUND_ON_PUBLISHED, 0, 0);
}

Test(round_evaluate, comes_before_the_next_training_and_before_the_end_for_those_with_rows)
{
    begin(2, 1);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_TRAIN, "the start is not evaluated");
    publish(1);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_TRAIN);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_EVALUATE);
    tell(ROUND_ON_EVALUATED, 1, 1);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_TRAIN);
    publish(2);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_FINISHED);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_EVALUATE);
    tell(ROUND_ON_EVALUATED, 1, 2);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_FINISHED);
    round_close(&r);
}

Test(round_evaluate, is_asked_for_every_so_many_rounds_and_after_the_last)
{
    static const enum round_task wanted[] = {ROUND_TASK_TRAIN, ROUND_TASK_EVALUATE,
                                             ROUND_TASK_TRAIN, ROUND_TASK_EVALUATE,
                                             ROUND_TASK_EVALUATE};
    begin(5, 2);
    for (uint32_t round = 1; round <= 5; round++) {
        publish(round);
        cr_expect_eq(round_task(&r, 1), wanted[round - 1], "round %u", round);
        tell(ROUND_ON_EVALUATED, 1, round);
    }
    round_close(&r);
}

Test(round_evaluate, never_comes_where_the_run_does_not_want_it_or_is_held)
{
    begin(2, 0);
    publish(1);
    publish(2);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_FINISHED);
    round_close(&r);
    begin(2, 1);
    publish(1);
    tell(ROUND_ON_PAUSE, 0, 0);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_WAIT);
    tell(ROUND_ON_RESUME, 0, 0);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_EVALUATE);
    tell(ROUND_ON_STOP, 0, 0);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_FINISHED);
    round_close(&r);
}

Test(round_evaluate, an_evaluation_that_comes_late_is_not_asked_for_again)
{
    begin(3, 1);
    publish(1);
    publish(2);
    tell(ROUND_ON_EVALUATED, 1, 1);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_EVALUATE, "of the newest");
    tell(ROUND_ON_EVALUATED, 1, 2);
    tell(ROUND_ON_EVALUATED, 1, 1);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_TRAIN);
    round_close(&r);
}
