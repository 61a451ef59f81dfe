/* Epsilons computed with google/differential-privacy. */
#include "privacy/ledger/spend.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

Test(spend, comes_to_the_published_figures_however_it_is_charged)
{
    struct account_event one = {.noise = 5, .sampling = 1, .count = 1};
    struct spend b = {0};
    struct spend_total spent;
    ok(spend_open(&b, 7, 1e-5));
    ok(spend_after(&spent, &b, NULL));
    cr_expect(spent.epsilon == 0 && spent.rdp == 0);
    for (int i = 0; i < 49; i++)
        ok(spend_charge(&b, &one));
    ok(spend_after(&spent, &b, &one));
    cr_expect_float_eq(spent.epsilon, 6.572970071, 1e-6);
    cr_expect_float_eq(spent.rdp, 7.077391578, 1e-6);
    cr_expect_eq(b.count, 1);
    cr_expect_eq(b.releases, 49);
    spend_close(&b);
}

Test(spend, stops_before_the_cap_is_passed_and_says_so)
{
    struct account_event one = {.noise = 1, .sampling = 1, .count = 1};
    struct spend b = {0};
    struct spend_total spent;
    ok(spend_open(&b, 4.5, 1e-5));
    ok(spend_allows(&spent, &b, &one));
    cr_expect_float_eq(spent.epsilon, 4.377178100, 1e-6);
    ok(spend_charge(&b, &one));
    refused(
        spend_allows(&spent, &b, &one), ERR_LIMIT,
        "the privacy budget is spent: epsilon 4.377 of 4.5 at delta 1e-05 after 1 releases; one "
        "more would make it ");
    spend_close(&b);
}

Test(spend, adds_different_kinds)
{
    struct account_event a = {.noise = 2, .sampling = 0.5, .count = 3};
    struct account_event c = {.noise = 3, .sampling = 1, .count = 2};
    struct spend b = {0}, only = {0};
    struct spend_total both, one;
    ok(spend_open(&b, 10, 1e-5));
    ok(spend_open(&only, 10, 1e-5));
    ok(spend_charge(&b, &a));
    ok(spend_charge(&b, &c));
    ok(spend_charge(&b, &a));
    cr_expect_eq(b.count, 2);
    cr_expect_eq(b.releases, 8);
    a.count = 6;
    ok(spend_charge(&only, &a));
    ok(spend_after(&both, &b, NULL));
    ok(spend_after(&one, &only, NULL));
    cr_expect(both.epsilon > one.epsilon && both.rdp >= both.epsilon);
    ok(spend_after(&one, &only, &c));
    cr_expect_float_eq(one.epsilon, both.epsilon, 1e-9);
    spend_close(&b);
    spend_close(&only);
}

Test(spend, says_when_delta_is_too_small_to_tell)
{
    struct account_event one = {.noise = 1, .sampling = 0.1, .count = 10};
    struct spend b = {0};
    struct spend_total spent;
    ok(spend_open(&b, 100, 1e-40));
    refused(spend_allows(&spent, &b, &one), ERR_INPUT,
            "privacy budget: the PLD accountant cannot tell delta 1e-40 from 0");
    spend_close(&b);
}

Test(spend, refuses_what_is_no_budget_or_no_release)
{
    struct spend b = {0};
    struct account_event bad = {.noise = 0, .sampling = 1, .count = 1};
    refused(spend_open(&b, 0, 1e-5), ERR_INPUT, "privacy budget: epsilon 0");
    refused(spend_open(&b, NAN, 1e-5), ERR_INPUT, "privacy budget: epsilon nan");
    refused(spend_open(&b, 1, 0), ERR_INPUT, "privacy budget: delta 0");
    refused(spend_open(&b, 1, 1), ERR_INPUT, "privacy budget: delta 1");
    ok(spend_open(&b, 1, 1e-5));
    refused(spend_charge(&b, &bad), ERR_INPUT, "noise");
    cr_expect_eq(b.count, 0);
    spend_close(&b);
    spend_close(&b);
}
