#include "privacy/account/prv.h"
#include "privacy/account/account_gaussian.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

/* The authors' own property: with everyone taking part the exact value lies between the bounds. */
Test(prv, the_exact_gaussian_value_lies_between_the_bounds)
{
    const uint64_t steps[] = {1, 30, 9999, 10000};
    const double z[] = {.8, 3, 100}, delta[] = {1e-3, 1e-5, 1e-6};
    for (int i = 0; i < 4 * 3 * 3; i++) {
        struct pld_event event = {z[i / 3 % 3], 1, steps[i / 9]};
        if (event.z < 10 && event.count > 100) continue; /* meshes too long for a test */
        struct prv_result r;
        double mu = sqrt((double)event.count) / event.z;
        ok(prv_epsilon(&r, &event, 1, delta[i % 3], 0.01));
        double exact = account_gaussian_epsilon(mu, delta[i % 3]);
        cr_assert(r.lower <= exact && exact <= r.upper, "%d: %g not in [%g, %g]", i, exact, r.lower,
                  r.upper);
        cr_assert(r.upper - r.lower < 0.025);
    }
}

Test(prv, losses_of_thousands_keep_their_bounds)
{
    struct pld_event event = {.0117, 1, 1};
    struct prv_result r;
    ok(prv_epsilon(&r, &event, 1, 1e-6, 0.01));
    double exact = account_gaussian_epsilon(1 / .0117, 1e-6);
    cr_assert(r.lower <= exact && exact <= r.upper, "%g not in [%g, %g]", exact, r.lower, r.upper);
}

Test(prv, a_smaller_error_gives_closer_bounds)
{
    const struct pld_event event[] = {{1, .02, 100}, {2, .1, 20}};
    struct prv_result wide, close;
    ok(prv_epsilon(&wide, event, 2, 1e-5, 0.1));
    ok(prv_epsilon(&close, event, 2, 1e-5, 0.002));
    cr_assert(wide.lower <= close.lower && close.upper <= wide.upper);
    cr_assert(close.upper - close.lower < 0.006);
}
