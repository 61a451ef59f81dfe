#include "privacy/noise/central.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { DIM = 1 << 16, MEMBERS = 5 };
static float start[DIM], now[MEMBERS][DIM];

static void make(void)
{
    struct rng rng;
    rng_init(&rng, "central", 1, "", 0);
    rng_fill_uniform(&rng, start, DIM, 0.1);
    for (int k = 0; k < MEMBERS; k++) {
        rng_fill_uniform(&rng, now[k], DIM, 0.001 * (k + 1));
        for (int i = 0; i < DIM; i++)
            now[k][i] += start[i];
    }
}

/* Clipped sum by plain loops in long double; what is left after it is the noise. */
Test(central, is_the_clipped_sum_with_the_stated_noise_over_a_fixed_denominator, .init = make)
{
    static const double weight[MEMBERS] = {1, 0.5, 1, 0.25, 0.125};
    static double mean[DIM], exact[DIM];
    struct central_spec spec = {.dim = DIM, .noise = 0.8, .clip = 0.4, .denominator = 6.5};
    struct central c = {0};
    double squares = 0, correlation = 0;
    ok(central_begin(&c, &spec));
    /* The least whole deviation: one step less would be below what was asked. */
    cr_expect(c.noise >= 0.8 && c.noise < 0.8000001, "%.17g", c.noise);
    cr_expect((double)c.sigma / c.bound.norm_int >= 0.8);
    cr_expect((double)(c.sigma - 1) / c.bound.norm_int < 0.8);
    for (int k = 0; k < MEMBERS; k++) {
        long double norm = 0;
        for (int i = 0; i < DIM; i++)
            norm += ((long double)now[k][i] - start[i]) * ((long double)now[k][i] - start[i]);
        double factor = fmin(1, 0.4 / (double)sqrtl(norm)) * weight[k] / 6.5;
        for (int i = 0; i < DIM; i++)
            exact[i] += factor * ((double)now[k][i] - (double)start[i]);
        struct clip_tensor t[2] = {{now[k], start, 1000},
                                   {now[k] + 1000, start + 1000, DIM - 1000}};
        ok(central_add(&c, t, 2, weight[k]));
    }
    central_finish(mean, &c);
    cr_expect_eq(c.next_clip, 0.4);
    cr_expect_eq(c.members, MEMBERS);
    for (int i = 0; i < DIM; i++) {
        double noise = (mean[i] - exact[i]) * 6.5 / (0.8 * 0.4);
        squares += noise * noise / DIM;
        correlation += noise * exact[i] / sqrt(DIM);
        double steps = ldexp(mean[i] * 6.5, c.bound.scale_log2);
        cr_assert_lt(fabs(steps - round(steps)), 1e-4, "on the lattice: %.17g", steps);
    }
    cr_expect_lt(fabs(squares - 1), 6 * sqrt(2.0 / DIM), "chance 2e-9: %g", squares);
    cr_expect_lt(fabs(correlation), 0.1, "%g", correlation);
    central_close(&c);
}

Test(central, a_round_without_members_releases_noise)
{
    static double mean[DIM];
    struct central_spec spec = {.dim = DIM, .noise = 2, .clip = 3, .denominator = 4};
    struct central c = {0};
    double squares = 0;
    ok(central_begin(&c, &spec));
    central_finish(mean, &c);
    for (int i = 0; i < DIM; i++)
        squares += mean[i] * mean[i] / DIM;
    cr_expect_lt(fabs(squares / (1.5 * 1.5) - 1), 6 * sqrt(2.0 / DIM), "chance 2e-9: %g", squares);
    central_close(&c);
    central_close(&c);
}

Test(central, adapts_the_norm_and_charges_both_releases_as_one)
{
    static double mean[4];
    struct adaptive how = {.on = true, .quantile = 0.5, .rate = 0.2, .sigma_b = 0.6};
    struct central_spec spec = {
        .dim = 4, .noise = 1, .clip = 1, .denominator = 400, .expected = 400, .adaptive = how};
    float one[4] = {1, 1, 1, 1};
    struct clip_tensor t = {one, NULL, 4}; /* norm 2: clipped */
    struct central c = {0};
    ok(central_begin(&c, &spec));
    cr_expect_float_eq((double)c.sigma / c.bound.norm_int, 1 / sqrt(1 - 1 / 1.44), 1e-8);
    cr_expect(c.noise >= 1 && c.noise < 1 + 1e-8, "%.17g", c.noise);
    for (int k = 0; k < 400; k++)
        ok(central_add(&c, &t, 1, 1));
    central_finish(mean, &c);
    /* fraction 0.0 +- 0.6 / 400, so C grows by exp(0.1) at most 6 sigma less */
    cr_expect(c.next_clip <= exp(0.1) && c.next_clip > exp(0.2 * (0.5 - 6 * 0.0015)), "%g",
              c.next_clip);
    central_close(&c);
}

/* The fraction b of unclipped members, computed back from the new norm C' = C exp(-rate
 * (b - 1/2)). */
static double fraction_of(const float (*member)[4], const size_t count[2], double weight,
                          double denominator)
{
    struct adaptive how = {.on = true, .quantile = 0.5, .rate = 0.2, .sigma_b = 0.6};
    struct central_spec spec = {.dim = 4,
                                .noise = 1,
                                .clip = 1,
                                .denominator = denominator,
                                .expected = 400,
                                .adaptive = how};
    double mean[4];
    struct central c = {0};
    ok(central_begin(&c, &spec));
    for (int kind = 0; kind < 2; kind++) {
        struct clip_tensor t = {member[kind], NULL, 4};
        for (size_t k = 0; k < count[kind]; k++)
            ok(central_add(&c, &t, 1, weight));
    }
    central_finish(mean, &c);
    double next = c.next_clip;
    central_close(&c);
    return 0.5 - log(next) / 0.2;
}

static const float small_and_large[2][4] = {{0.25f, 0.25f, 0.25f, 0.25f}, {1, 1, 1, 1}};

/* A quarter not clipped, whatever the weights are and what the changes are divided by. */
Test(central, counts_who_is_not_clipped_over_the_members_expected)
{
    const size_t all[2] = {400, 0}, some[2] = {100, 300}, few[2] = {100, 0};
    double spread = 6 * 0.6 / 400; /* chance 2e-9 */
    cr_expect_gt(fraction_of(small_and_large, all, 0.25, 100), 1 - spread);
    cr_expect_float_eq(fraction_of(small_and_large, some, 1, 400), 0.25, spread);
    cr_expect_float_eq(fraction_of(small_and_large, some, 0.25, 100), 0.25, spread);
    /* an absent member counts as one half, so its absence does not show */
    cr_expect_float_eq(fraction_of(small_and_large, few, 1, 400), 0.5 + 0.5 * 100 / 400, spread);
}

/* The count itself has the noise that it is charged for. */
Test(central, the_count_has_noise_of_its_own)
{
    enum { TIMES = 200 };
    const size_t half[2] = {200, 200};
    double sum = 0, squares = 0, sd = 0.6 / 400;
    for (int i = 0; i < TIMES; i++) {
        double far = fraction_of(small_and_large, half, 1, 400) - 0.5;
        sum += far / TIMES;
        squares += far * far / TIMES;
    }
    cr_expect_lt(fabs(sum), 6 * sd / sqrt(TIMES), "%g", sum);
    cr_expect_lt(fabs(squares / (sd * sd) - 1), 6 * sqrt(2.0 / TIMES), "%g", squares / (sd * sd));
}

Test(central, refuses_what_it_cannot_make_private)
{
    struct central c;
    struct central_spec spec = {.dim = 4, .noise = 0, .clip = 1, .denominator = 4};
    refused(central_begin(&c, &spec), ERR_INPUT, "noise multiplier 0: expected above 0");
    spec.noise = 1;
    spec.denominator = 0;
    refused(central_begin(&c, &spec), ERR_INPUT, "denominator 0");
    spec.denominator = 1;
    spec.clip = INFINITY;
    refused(central_begin(&c, &spec), ERR_INPUT, "clip norm inf");
    spec.clip = 1;
    spec.dim = 0;
    refused(central_begin(&c, &spec), ERR_INPUT, "no tensor is trained");
    spec.dim = 4;
    spec.adaptive = (struct adaptive){.on = true, .sigma_b = 0.4};
    spec.expected = 8;
    refused(central_begin(&c, &spec), ERR_INPUT, "spends the whole noise multiplier 1");
    spec.adaptive.on = false;
    float bad[4] = {0, NAN, 0, 0};
    struct clip_tensor t = {bad, NULL, 4};
    ok(central_begin(&c, &spec));
    refused(central_add(&c, &t, 1, 1), ERR_INPUT, "NaN or infinite");
    cr_expect_eq(c.members, 0);
    central_close(&c);
}
