/* Rounds whose members are drawn secretly. */
#include "tests/support/round_fixture.h"

#include <string.h>

static unsigned tick(struct round *r, uint64_t now)
{
    return tell(r, ROUND_ON_TICK, now, 0);
}

/* Sorted: er 0, icu 1, lab 2, ward 3. */
Test(round_drawn, hands_a_drawn_round_only_to_who_was_drawn)
{
    struct round_rules rules = all_of_three;
    rules.drawn = rules.secret = true;
    struct round r = open_run(&rules, 4);
    struct round_place place;
    struct digest digest = digest_number(1);
    char text[256];
    for (size_t m = 0; m < 4; m++)
        cr_expect_eq(round_task(&r, m), ROUND_TASK_WAIT, "not before the draw");
    cr_expect(err_is(round_judge(&place, &r, 1, 1, &digest)));
    round_draw(&r, (bool[]){false, true, true, false}, true);
    expect_counts(&r);
    cr_expect_eq(round_task(&r, 0), ROUND_TASK_WAIT);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_TRAIN);
    err e = round_judge(&place, &r, 3, 1, &digest);
    cr_expect_eq(e.kind, ERR_STATE);
    cr_expect_str_eq(e.text, "ward is not drawn for round 1; ask for the next task");
    round_waiting_for(text, sizeof text, &r, 4);
    cr_expect(strstr(text, "2 of 2 members: icu") && !strstr(text, "ward"), "%s", text);
    cr_assert(!err_is(submit(&r, 5, 2, 1, 22)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING);
    cr_assert(!err_is(submit(&r, 6, 1, 1, 23)));
    cr_expect_eq(round_phase(&r), ROUND_TRAINING, "when all were in would tell who was drawn");
    cr_expect(tick(&r, 60006) & ROUND_DO_AGGREGATE);
    cr_expect(tell(&r, ROUND_ON_PUBLISHED, 60007, 0) & ROUND_DO_OPEN);
    cr_expect_eq(round_task(&r, 1), ROUND_TASK_WAIT, "the next round has its own draw");
    round_close(&r);
}

Test(round_drawn, closes_a_drawn_round_at_its_deadline_with_whoever_is_in_or_nobody)
{
    struct round_rules rules = all_of_three;
    rules.drawn = rules.secret = true;
    struct round r = open_run(&rules, 3);
    cr_expect_eq(tick(&r, 1000000), 0, "not before the draw");
    round_draw(&r, (bool[]){true, true, true}, true);
    cr_expect_eq(tick(&r, 60001), 0);
    cr_expect(tick(&r, 60002) & ROUND_DO_AGGREGATE, "nobody was in; it opened without waiting");
    tell(&r, ROUND_ON_PUBLISHED, 70000, 0);
    round_draw(&r, (bool[]){false, false, false}, true);
    cr_expect_eq(tick(&r, 70001), 0, "that nobody was drawn is not to be seen either");
    cr_expect(tick(&r, 130000) & ROUND_DO_AGGREGATE);
    tell(&r, ROUND_ON_PUBLISHED, 130002, 0);
    struct round again = open_run(&rules, 3);
    round_restore(&again, &(struct round_restored){
                              .shapes_known = true, .started = true, .published = 2, .opened = 3});
    cr_expect(tell(&again, ROUND_ON_BEGIN, 5, 0) & ROUND_DO_OPEN, "asks for the draw again");
    round_close(&again);
    round_close(&r);
}

/* With rate 1 there is nothing to hide. */
Test(round_drawn, closes_a_round_of_everyone_as_soon_as_all_are_in)
{
    struct round_rules rules = all_of_three;
    rules.drawn = rules.secret = true;
    struct round r = open_run(&rules, 3);
    round_draw(&r, (bool[]){true, true, true}, false);
    for (size_t m = 0; m < 3; m++) {
        cr_expect_eq(round_phase(&r), ROUND_TRAINING);
        cr_assert(!err_is(submit(&r, 5, m, 1, 21 + (int)m)));
    }
    cr_expect_eq(round_phase(&r), ROUND_AGGREGATING);
    round_close(&r);
}
