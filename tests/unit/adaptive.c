/* Adaptive clipping against values computed by an independent program from the paper's formula. */
#include "privacy/noise/adaptive.h"
#include "base/rng.h"
#include "privacy/noise/clip.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

Test(adaptive, splits_a_rounds_multiplier_as_published)
{
    static const double row[][3] = {{1, 100, 1.0050378153},
                                    {2, 100, 2.0412414523},
                                    {1, 20, 1.1547005384},
                                    {0.7, 50, 0.7069625178},
                                    {4, 1000, 4.0032038451}};
    for (int i = 0; i < 5; i++) {
        double z, sigma_b = row[i][1] / 20;
        ok(adaptive_split(&z, row[i][0], sigma_b));
        cr_expect_float_eq(z, row[i][2], 5e-11);
        cr_expect_float_eq(adaptive_joint(z, sigma_b), row[i][0], 1e-13);
    }
    double z;
    refused(adaptive_split(&z, 2, 1), ERR_INPUT,
            "the count's deviation 1 spends the whole noise multiplier 2");
}

/* The whole deviations that are drawn never cost less than the round is charged. */
Test(adaptive, never_draws_less_than_is_charged)
{
    struct rng rng;
    rng_init(&rng, "adaptive", 9, "", 0);
    for (int i = 0; i < 100000; i++) {
        double z = 0.01 + rng_unit(&rng) * 10, sigma_b = z * (0.51 + rng_unit(&rng) * 20), delta;
        struct clip_bound b;
        ok(clip_bound_set(&b, 0.001 + rng_unit(&rng)));
        ok(adaptive_split(&delta, z, sigma_b));
        double drawn = adaptive_joint((double)clip_sigma(&b, delta) / b.norm_int,
                                      ldexp((double)adaptive_sigma(sigma_b), -31));
        cr_assert(drawn >= z && drawn < z * (1 + 1e-6), "%.17g for %.17g", drawn, z);
    }
}

Test(adaptive, follows_the_published_trajectory)
{
    static const double fraction[] = {0, 0.5, 1, 0.25};
    static const double want[] = {0.1105170918, 0.1105170918, 0.1, 0.1051271096};
    struct adaptive how = {.on = true, .quantile = 0.5, .rate = 0.2};
    double norm = 0.1;
    for (int i = 0; i < 4; i++) {
        norm = adaptive_next(norm, fraction[i], &how);
        cr_expect_float_eq(norm, want[i], 5e-11);
    }
}

Test(adaptive, reads_the_fraction_off_the_lattice)
{
    int64_t half = INT64_C(1) << ADAPTIVE_HALF_LOG2;
    cr_expect_eq(adaptive_fraction(0, 10), 0.5);
    cr_expect_eq(adaptive_fraction(10 * half, 10), 1);
    cr_expect_eq(adaptive_fraction(-10 * half, 10), 0);
    cr_expect_float_eq(adaptive_fraction((7 - 3) * half, 10), 0.7, 1e-15);
    cr_expect_eq(adaptive_fraction(1000 * half, 10), 1);
    cr_expect_eq(adaptive_fraction(-1000 * half, 10), 0);
    cr_expect_eq(adaptive_sigma(0.5), (uint64_t)half);
    cr_expect_eq(adaptive_sigma(5), (uint64_t)half * 10);
}

/* With the indicator's sign turned round the norm would run away from the median. */
Test(adaptive, converges_to_the_median_from_ten_times_off)
{
    struct adaptive how = {.on = true, .quantile = 0.5, .rate = 0.2, .sigma_b = 5};
    enum { M = 100, ROUNDS = 200 };
    int64_t half = INT64_C(1) << ADAPTIVE_HALF_LOG2;
    struct rng rng;
    for (int far = 0; far < 2; far++) {
        double norm = far ? 25 : 0.25; /* the median is 2.5 */
        rng_init(&rng, "adaptive", 7, "", (uint64_t)far);
        for (int t = 0; t < ROUNDS; t++) {
            double sum = how.sigma_b * rng_normal(&rng) * 2 * (double)half;
            for (int k = 0; k < M; k++)
                sum += 2.5 * exp(rng_normal(&rng)) <= norm ? (double)half : -(double)half;
            norm = adaptive_next(norm, adaptive_fraction((int64_t)sum, M), &how);
        }
        cr_expect(norm > 1.9 && norm < 3.3, "from %d: %g", far, norm);
    }
}

Test(adaptive, stays_within_the_norms_that_can_be_clipped_to)
{
    struct adaptive how = {.on = true, .quantile = 1, .rate = 1000};
    cr_expect_eq(adaptive_next(1, 0, &how), 0x1p60);
    how.quantile = 0;
    cr_expect_eq(adaptive_next(1, 1, &how), 0x1p-60);
}
