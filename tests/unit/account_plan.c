#include "privacy/account/account.h"
#include "privacy/account/rdp.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct account_options with_rdp = {.engine = ACCOUNT_RDP};

struct row {
    double epsilon, delta, q;
    uint64_t steps;
    double rdp, pld; /* the noise multiplier that keeps to it */
};

static double noise_of(const struct row *row, const struct account_options *options)
{
    struct account_event event = {.sampling = row->q, .count = row->steps};
    struct account_budget budget = {.epsilon = row->epsilon, .delta = row->delta};
    double noise = 0;
    ok(account_noise(&noise, &event, &budget, options));
    return noise;
}

static double epsilon_of(double q, double z, uint64_t steps, double delta,
                         const struct account_options *options)
{
    struct account_event event = {.noise = z, .sampling = q, .count = steps};
    struct account_spent spent = {0};
    ok(account_epsilon(&spent, &event, 1, delta, options));
    return spent.epsilon;
}

static void near(double got, double want, double tolerance)
{
    cr_assert(fabs(got - want) <= tolerance, "%.12g, expected %.12g", got, want);
}

Test(account_plan, the_noise_of_a_budget_is_that_of_the_reference)
{
    static const struct row row[] = {{8, 1e-5, .04, 2250, 1.415873, 1.345899},
                                     {8, 1e-5, .04, 2000, 1.356241, 1.289969},
                                     {1, 1e-5, .1, 50, 3.184712, 2.929747},
                                     {3, 1e-5, .5, 20, 3.579546, 3.323016},
                                     {10, 1e-6, 1, 30, 3.121991, 2.963655}};
    for (int i = 0; i < 5; i++) {
        near(noise_of(&row[i], &with_rdp), row[i].rdp, 3e-6);
        double pld = noise_of(&row[i], NULL);
        near(pld, row[i].pld, 3e-6);
        cr_assert(epsilon_of(row[i].q, pld, row[i].steps, row[i].delta, NULL) <= row[i].epsilon);
        cr_assert(epsilon_of(row[i].q, pld * (1 - 2e-6), row[i].steps, row[i].delta, NULL) >
                  row[i].epsilon);
    }
}

Test(account_plan, the_noise_of_one_gaussian_release_is_the_analytic_one)
{
    static const struct row row[] = {
        {1, 1e-5, 1, 1, 0, 3.730631634816},     {8, 1e-5, 1, 1, 0, .600229072199},
        {.1, 1e-6, 1, 1, 0, 36.304690426196},   {3, 1e-6, 1, 1, 0, 1.543861417775},
        {.1, 1e-5, 1, 1, 0, 30.74956613197727}, {.5, 1e-5, 1, 1, 0, 7.031826675582503},
        {2, 1e-5, 1, 1, 0, 1.9938124456435373}, {4, 1e-5, 1, 1, 0, 1.0811618495202397}};
    for (int i = 0; i < 8; i++)
        near(noise_of(&row[i], NULL), row[i].pld, 1e-6 * row[i].pld);
}

/* Opacus looks for its noise in its own way: double until private, then halve the interval while
 * the epsilon is more than 0.01 below the budget. Its answers follow from its accountants. */
static double noise_as_opacus(double q, uint64_t steps, const struct account_options *options)
{
    double low = 0, high = 10, at = epsilon_of(q, high, steps, 1e-5, options);
    while (at > 8)
        at = epsilon_of(q, high *= 2, steps, 1e-5, options);
    while (8 - at > 0.01) {
        double z = (low + high) / 2, here = epsilon_of(q, z, steps, 1e-5, options);
        if (here < 8) {
            high = z;
            at = here;
        } else {
            low = z;
        }
    }
    return high;
}

Test(account_plan, searches_of_other_libraries_end_where_theirs_do)
{
    double orders[99 + 52];
    for (int i = 0; i < 99; i++)
        orders[i] = rdp_orders()[i];
    for (int i = 0; i < 52; i++)
        orders[99 + i] = 12 + i;
    struct account_options opacus = {
        .engine = ACCOUNT_RDP, .rdp_signed = true, .order = orders, .order_count = 151};
    struct account_options prv = {.engine = ACCOUNT_PRV};
    cr_assert_eq(noise_as_opacus(.04, 2250, &opacus), 1.416015625);
    cr_assert_eq(noise_as_opacus(.04, 2000, &opacus), 1.356201171875);
    cr_assert_eq(noise_as_opacus(.04, 2250, &prv), 1.34765625);
    cr_assert_eq(noise_as_opacus(.04, 2000, &prv), 1.29150390625);
}

Test(account_plan, steps_are_the_last_that_the_budget_allows)
{
    static const double epsilon[] = {.4, 3, 20};
    for (int i = 0; i < 3; i++) {
        struct account_event event = {.noise = 1.1, .sampling = .02};
        struct account_budget budget = {.epsilon = epsilon[i], .delta = 1e-5};
        uint64_t steps = 0;
        ok(account_steps(&steps, &event, &budget, NULL));
        if (steps) cr_assert(epsilon_of(.02, 1.1, steps, 1e-5, NULL) <= epsilon[i]);
        cr_assert(epsilon_of(.02, 1.1, steps + 1, 1e-5, NULL) > epsilon[i]);
    }
}

Test(account_plan, what_was_spent_before_counts)
{
    struct account_event before = {.noise = 1.1, .sampling = .02, .count = 300};
    struct account_event event = {.noise = 1.1, .sampling = .02};
    struct account_budget budget = {.epsilon = 3, .delta = 1e-5}, rest = budget;
    uint64_t all = 0, left = 0;
    rest.before = &before;
    rest.before_count = 1;
    ok(account_steps(&all, &event, &budget, NULL));
    ok(account_steps(&left, &event, &rest, NULL));
    cr_assert_eq(left, all - 300);
    double alone = 0, after = 0;
    event.count = 400;
    ok(account_noise(&alone, &event, &budget, NULL));
    ok(account_noise(&after, &event, &rest, NULL));
    cr_assert(after > alone);
}

Test(account_plan, refusals_name_the_budget)
{
    struct account_event before = {.noise = 1, .sampling = 1, .count = 10};
    struct account_event event = {.noise = 1, .sampling = .1, .count = 10};
    struct account_budget budget = {
        .epsilon = 2, .delta = 1e-5, .before = &before, .before_count = 1};
    double noise;
    uint64_t steps;
    refused(account_noise(&noise, &event, &budget, NULL), ERR_INPUT, "epsilon 2 is spent already");
    refused(account_steps(&steps, &event, &budget, NULL), ERR_INPUT, "epsilon 2 is spent already");
    budget.before_count = 0;
    budget.epsilon = 0;
    refused(account_noise(&noise, &event, &budget, NULL), ERR_INPUT, "epsilon 0: expected above 0");
    budget.epsilon = 1e-9;
    budget.delta = 1e-12;
    event.sampling = 1;
    event.count = 1000000;
    refused(account_noise(&noise, &event, &budget, &with_rdp), ERR_INPUT,
            "cannot be kept, even with a noise multiplier of 1e+06");
    budget.epsilon = 1;
    event.sampling = 2;
    refused(account_steps(&steps, &event, &budget, NULL), ERR_INPUT, "sampling rate 2");
}
