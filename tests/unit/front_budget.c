#include "proto/front_budget.h"

#include <criterion/criterion.h>

Test(front_budget, a_bucket_empties_and_fills_again)
{
    struct front_budget b;
    front_budget_fill(&b, 5000);
    for (int i = 0; i < 200; i++)
        cr_assert(front_budget_take(&b, FRONT_COST_RESET, 1));
    cr_assert_not(front_budget_take(&b, FRONT_COST_RESET, 1));
    cr_assert(front_budget_take(&b, FRONT_COST_PING, 1), "each kind has its own");
    front_budget_gain(&b, 5500);
    for (int i = 0; i < 5; i++)
        cr_assert(front_budget_take(&b, FRONT_COST_RESET, 1));
    cr_assert_not(front_budget_take(&b, FRONT_COST_RESET, 1));
    front_budget_gain(&b, 5000000);
    cr_assert_float_eq(b.left[FRONT_COST_RESET], 200, 1e-9, "never above its burst");
}

Test(front_budget, every_rule_has_a_burst_and_a_rate)
{
    for (int i = 0; i < FRONT_COSTS; i++) {
        cr_expect_gt(front_rule[i].burst, 0, "%d", i);
        cr_expect_gt(front_rule[i].per_second, 0, "%d", i);
        cr_expect_not_null(front_rule[i].what, "%d", i);
    }
}

Test(front_budget, a_rule_that_waits_goes_into_debt)
{
    struct front_budget b;
    front_budget_fill(&b, 0);
    cr_assert_eq(front_budget_wait_ms(&b), 0);
    for (int i = 0; i < 2100; i++)
        cr_assert(front_budget_take(&b, FRONT_COST_STREAM, 1));
    cr_assert_eq(front_budget_wait_ms(&b), 200); /* 100 too many at 500 a second */
    front_budget_gain(&b, 150);
    cr_assert_eq(front_budget_wait_ms(&b), 50);
    front_budget_earn(&b, FRONT_COST_STREAM, 25);
    cr_assert_eq(front_budget_wait_ms(&b), 0);
}
