#include "privacy/ledger/plan.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/* Ten thousand members and a small R, the intended use of client-level privacy. */
static struct plan good(void)
{
    return (struct plan){.unit = LEDGER_CLIENT,
                         .method = "fed-sb",
                         .client_method = true,
                         .epsilon = 8,
                         .delta = 1e-6,
                         .noise = 5,
                         .sampling = 1,
                         .clip = 0.5,
                         .units = 10000,
                         .dim = 917504,
                         .rounds = 50,
                         .steps = 1};
}

static void expect(const struct plan *p, const char *part)
{
    struct plan_summary s = {.noise = -7};
    refused(plan_check(&s, p), ERR_INPUT, part);
    cr_expect_eq(s.noise, -7, "untouched");
}

/* The noise in the mean is 0.48 clip norms with ten thousand members, 47.9 with a hundred, 479 with
 * ten (docs/privacy.md). */
Test(plan, gives_the_published_feasibility_ratios)
{
    struct plan p = good();
    struct plan_summary s;
    ok(plan_check(&s, &p));
    cr_expect_float_eq(s.ratio, 0.4789, 5e-5);
    cr_expect_eq(s.denominator, 10000);
    cr_expect_eq(s.rounds, 50);
    cr_expect_eq(s.warnings, 0);
    p.units = 100;
    p.delta = 1e-5;
    expect(&p, "privacy: hopeless: the noise in the mean is 47.9 times the clip norm");
    p.force = true;
    ok(plan_check(&s, &p));
    cr_expect_float_eq(s.ratio, 47.89, 5e-3);
    cr_expect_eq(s.warnings, 1);
    cr_expect(strstr(s.warning[0], "forced: the noise in the mean is 47.9"));
    p.units = 10;
    ok(plan_check(&s, &p));
    cr_expect_float_eq(s.ratio, 478.9, 5e-2);
}

Test(plan, finds_the_noise_that_the_budget_needs)
{
    struct plan p = good();
    struct plan_summary s;
    p.noise = 0;
    p.epsilon = 1;
    p.delta = 1e-5;
    p.sampling = 0.1;
    p.dim = 1000;
    ok(plan_check(&s, &p));
    cr_expect_float_eq(s.noise, 2.929747, 1e-4); /* calibrated with google/differential-privacy */
    cr_expect(s.epsilon <= 1 && s.epsilon > 0.9999);
    cr_expect_eq(s.expected, 1000);
}

Test(plan, says_where_the_budget_ends)
{
    struct plan p = good();
    struct plan_summary s;
    p.epsilon = 6.6;
    p.delta = 1e-5;
    p.rounds = 80;
    ok(plan_check(&s, &p));
    cr_expect_eq(s.rounds, 50);
    cr_assert_eq(s.warnings, 1);
    cr_expect(strstr(s.warning[0], "the budget ends after 50 of 80 rounds"), "%s", s.warning[0]);
    p.epsilon = 0.1;
    expect(&p, "privacy: noise multiplier 5 spends more than epsilon 0.1 in one round");
}

Test(plan, refuses_a_budget_that_is_none)
{
    struct plan p = good();
    p.epsilon = 0;
    expect(&p, "privacy: the budget is missing: expected epsilon above 0");
    p = good();
    p.delta = 0;
    expect(&p, "privacy: the budget is missing: expected delta between 0 and 1");
    p = good();
    p.units = 0;
    expect(&p, "privacy: the number of units is missing");
    p = good();
    p.delta = 1e-4;
    expect(&p, "privacy: delta 0.0001 is not below one over the 10000 members (0.0001)");
    p.unit = LEDGER_EXAMPLE;
    p.delta = 2e-4;
    expect(&p, "privacy: delta 0.0002 is not below one over the 10000 records");
    struct plan_summary s;
    p = good();
    p.delta = 5e-5;
    ok(plan_check(&s, &p));
    cr_expect(strstr(s.warning[0], "delta 5e-05 is large for 10000 units: 1e-05 is advised"), "%s",
              s.warning[0]);
}

Test(plan, refuses_methods_that_cannot_be_private_with_the_reason)
{
    struct plan p = good();
    struct plan_summary s;
    ok(plan_check(&s, &p));
    p.client_method = false;
    p.method = "sorcery";
    expect(&p, "privacy: sorcery is not known to support client-level privacy");
    p.client_refusal = "sends a secret";
    expect(&p, "privacy: sorcery sends a secret: use a method with client-level privacy");
    p.unit = LEDGER_EXAMPLE; /* the noise is in each update before it leaves */
    ok(plan_check(&s, &p));
    p.robust = "median";
    ok(plan_check(&s, &p));
}

Test(plan, refuses_what_depends_on_the_data_or_on_the_others)
{
    struct plan p = good();
    double weight[10000];
    p.weights = "examples";
    expect(&p, "privacy: weights by example counts depend on the data");
    p.weights = "best";
    expect(&p, "privacy: weights best: expected uniform or given");
    p.weights = "given";
    for (int i = 0; i < 10000; i++)
        weight[i] = i % 2 ? 1 : 0.5;
    p.weight = weight;
    struct plan_summary s;
    ok(plan_check(&s, &p));
    cr_expect_eq(s.denominator, 7500);
    weight[77] = 1.5;
    expect(&p, "privacy: weight 1.5: expected above 0, at most 1");
    p = good();
    p.quorum = true;
    expect(&p, "privacy: a quorum makes one member's part depend on the others'");
    p = good();
    p.robust = "krum";
    expect(&p, "privacy: robust=krum picks by looking at all members");
    p.robust = "norm";
    ok(plan_check(&s, &p));
    p.bases = "gradient";
    expect(&p, "privacy: bases from gradients without noise reveal the data");
    p.bases = "private";
    ok(plan_check(&s, &p));
    p.bases = "magic";
    expect(&p, "privacy: bases magic");
}

Test(plan, refuses_numbers_out_of_range)
{
    struct plan p = good();
    p.clip = 0;
    expect(&p, "clip norm 0");
    p = good();
    p.sampling = 1.5;
    expect(&p, "privacy: sampling rate 1.5");
    p.sampling = 0;
    expect(&p, "privacy: sampling rate 0");
    p = good();
    p.noise = -1;
    expect(&p, "privacy: noise multiplier -1");
    p = good();
    p.rounds = 0;
    expect(&p, "expected rounds, steps and coordinates above 0");
    p = good();
    p.adaptive = (struct adaptive){.on = true, .quantile = 0.5, .rate = 0.2, .sigma_b = 2};
    expect(&p, "adaptive clipping: the count's deviation 2 spends the whole");
    struct plan_summary s;
    p.adaptive.sigma_b = 0;
    ok(plan_check(&s, &p));
    cr_expect_eq(s.adaptive.sigma_b, 500);
}

Test(plan, is_told_in_a_few_lines)
{
    struct plan p = good();
    struct plan_summary s;
    struct bytes text = {.max = 4096};
    ok(plan_check(&s, &p));
    ok(plan_text(&text, &p, &s));
    cr_expect(strstr((char *)text.data, "privacy: unit client, 10000 members, epsilon"), "%s",
              (char *)text.data);
    cr_expect(strstr((char *)text.data, "noise norm over clip norm 0.4789"), "%s",
              (char *)text.data);
    bytes_close(&text);
    struct ledger_terms t = plan_terms(&p, &s, "job", "coordinator");
    cr_expect(t.noise == 5 && t.denominator == 10000 && t.units == 10000);
    cr_expect_str_eq(t.bases, "seed");
}
