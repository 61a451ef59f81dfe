/* The largest share of one member, against a bisection of its definition. */
#include "coordinator/work/weights.h"

#include "base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

enum { MOST = 40 };

/* The largest t in (0, high] with t <= cap * sum_j min(w_j, t). */
static double bisect(const double *w, size_t n, double cap, double high)
{
    double low = 0;
    for (int step = 0; step < 200; step++) {
        double t = (low + high) / 2, sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += fmin(w[i], t);
        if (t <= cap * sum)
            low = t;
        else
            high = t;
    }
    return low;
}

Test(weights, no_share_is_above_the_cap_and_the_others_keep_their_weights)
{
    struct rng rng;
    rng_init(&rng, "weights", 1, "", 0);
    for (int trial = 0; trial < 500; trial++) {
        double w[MOST], is[MOST], most = 0, sum = 0;
        size_t n = 2 + rng_below(&rng, MOST - 2);
        for (size_t i = 0; i < n; i++) {
            w[i] = exp(8 * rng_unit(&rng));
            most = fmax(most, w[i]);
        }
        double cap = 1.001 / (double)n + (1 - 1.001 / (double)n) * rng_unit(&rng);
        memcpy(is, w, sizeof is);
        weights_cap(is, n, cap);
        double t = bisect(w, n, cap, most);
        for (size_t i = 0; i < n; i++) {
            sum += is[i];
            cr_assert_float_eq(is[i], fmin(w[i], t), 1e-9 * most, "%zu of %zu, cap %g", i, n, cap);
        }
        for (size_t i = 0; i < n; i++)
            cr_assert(is[i] <= cap * sum * (1 + 1e-9));
    }
}

Test(weights, a_cap_that_too_few_members_can_meet_makes_them_equal)
{
    double w[] = {1, 100, 0, 3};
    weights_cap(w, 4, 0.3);
    cr_expect(w[0] == 1 && w[1] == 1 && w[2] == 0 && w[3] == 1);
}

Test(weights, nothing_changes_without_a_cap_or_below_it)
{
    double w[] = {1, 2, 3}, none[] = {0, 0};
    weights_cap(w, 3, 0);
    weights_cap(w, 3, 0.5);
    weights_cap(w, 3, 1);
    cr_expect(w[0] == 1 && w[1] == 2 && w[2] == 3);
    weights_cap(none, 2, 0.5);
    cr_expect(none[0] == 0 && none[1] == 0);
}
