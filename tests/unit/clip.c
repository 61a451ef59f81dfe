#include "privacy/noise/clip.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <float.h>
#include <math.h>
#include <stdlib.h>

static double norm_of(const int32_t *x, size_t n)
{
    long double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (long double)x[i] * x[i];
    return (double)sqrtl(sum);
}

static bool within(const int32_t *x, size_t n, uint64_t bound)
{
    unsigned __int128 sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (uint64_t)((int64_t)x[i] * x[i]);
    return sum <= (unsigned __int128)bound * bound;
}

Test(clip, puts_the_norm_on_a_lattice_of_31_bits)
{
    struct clip_bound b;
    ok(clip_bound_set(&b, 1));
    cr_expect_eq(b.norm_int, 1u << 30);
    cr_expect_eq(b.scale_log2, 30);
    ok(clip_bound_set(&b, 0.1));
    cr_expect_eq(b.scale_log2, 34);
    cr_expect_eq(b.norm_int, 1717986918u); /* floor(0.1 * 2^34) */
    ok(clip_bound_set(&b, CLIP_NORM_LEAST));
    ok(clip_bound_set(&b, CLIP_NORM_MOST));
    refused(clip_bound_set(&b, 0), ERR_INPUT, "clip norm 0: expected a number from");
    refused(clip_bound_set(&b, NAN), ERR_INPUT, "clip norm nan");
    refused(clip_bound_set(&b, -1), ERR_INPUT, "clip norm -1");
    refused(clip_bound_set(&b, 1e30), ERR_INPUT, "clip norm 1e+30");
}

Test(clip, the_deviation_is_the_least_whole_one_that_is_enough)
{
    struct clip_bound b;
    ok(clip_bound_set(&b, 0.1));
    cr_expect_eq(clip_sigma(&b, 1), b.norm_int);
    cr_expect_eq(clip_sigma(&b, 0.5), b.norm_int / 2);
    struct rng rng;
    rng_init(&rng, "clip", 1, "", 0);
    for (int i = 0; i < 10000; i++) {
        double z = rng_unit(&rng) * 20 + 0.01;
        ok(clip_bound_set(&b, rng_unit(&rng) + 0.001));
        uint64_t sigma = clip_sigma(&b, z);
        /* z = mantissa 2^e, in integers: sigma 2^-e against mantissa norm_int */
        int e;
        uint64_t mantissa = (uint64_t)ldexp(frexp(z, &e), 53);
        unsigned __int128 want = (unsigned __int128)mantissa * b.norm_int;
        cr_assert_geq((unsigned __int128)sigma << (53 - e), want);
        cr_assert_lt((unsigned __int128)(sigma - 1) << (53 - e), want);
    }
}

Test(clip, never_exceeds_the_bound_for_any_vector)
{
    enum { ROUNDS = 100000, MOST = 40 };
    struct rng rng;
    rng_init(&rng, "clip", 2, "", 0);
    float now[MOST], start[MOST];
    int32_t x[MOST];
    for (int i = 0; i < ROUNDS; i++) {
        size_t n = 1 + rng_below(&rng, MOST), cut = rng_below(&rng, n + 1);
        double scale = exp(rng_normal(&rng) * 6), weight = i % 3 ? 1 : 1 - rng_unit(&rng) * 0.99;
        struct clip_bound b;
        struct clip_result r;
        ok(clip_bound_set(&b, exp(rng_normal(&rng) * 2)));
        for (size_t k = 0; k < n; k++) {
            now[k] = (float)(rng_normal(&rng) * scale);
            start[k] = (float)rng_normal(&rng);
        }
        struct clip_tensor t[2] = {{now, start, cut}, {now + cut, NULL, n - cut}};
        ok(clip_quantise(x, &r, &b, weight, t, 2));
        cr_assert(within(x, n, b.norm_int), "vector %d", i);
        cr_assert_leq(norm_of(x, n), weight * b.norm_int + 1, "vector %d", i);
        cr_assert_eq(r.unclipped, r.norm <= b.norm);
        if (!r.unclipped)
            cr_assert_gt(norm_of(x, n), weight * b.norm_int - 2 * sqrt(n) - 2, "vector %d", i);
    }
}

/* Against long double, value by value; below the bound nothing is scaled. */
Test(clip, keeps_the_direction_to_within_a_step)
{
    enum { N = 5000 };
    static float now[N], start[N];
    static int32_t x[N];
    struct rng rng;
    struct clip_bound b;
    struct clip_result r;
    rng_init(&rng, "clip", 3, "", 0);
    rng_fill_uniform(&rng, now, N, 0.3);
    rng_fill_uniform(&rng, start, N, 0.2);
    struct clip_tensor t = {now, start, N};
    long double sum = 0;
    for (int i = 0; i < N; i++)
        sum += ((long double)now[i] - start[i]) * ((long double)now[i] - start[i]);
    double norm = (double)sqrtl(sum);
    for (int k = 0; k < 2; k++) {
        double c = k ? norm * 3 : norm / 7;
        ok(clip_bound_set(&b, c));
        ok(clip_quantise(x, &r, &b, 1, &t, 1));
        cr_expect_float_eq(r.norm / norm, 1, 1e-14);
        cr_expect_eq(r.unclipped, k == 1);
        for (int i = 0; i < N; i++) {
            long double want =
                ldexpl(((long double)now[i] - start[i]) * (k ? 1 : 1 / 7.0L), b.scale_log2);
            cr_assert_lt(fabsl(want - x[i]), 1.0001, "value %d", i);
            cr_assert_leq(fabsl((long double)x[i]), fabsl(want) + 1e-3, "towards zero: %d", i);
        }
    }
}

Test(clip, takes_the_extremes_of_float32)
{
    float huge[3] = {FLT_MAX, -FLT_MAX, FLT_MAX}, lowest[3] = {-FLT_MAX, FLT_MAX, -FLT_MAX};
    float tiny[2] = {FLT_TRUE_MIN, -FLT_TRUE_MIN}, zero[2] = {0, -0.0f}, bad[2] = {1, NAN};
    struct clip_tensor t = {huge, lowest, 3};
    struct clip_bound b;
    struct clip_result r;
    int32_t x[3];
    ok(clip_bound_set(&b, 0.5));
    ok(clip_quantise(x, &r, &b, 1, &t, 1));
    cr_expect(within(x, 3, b.norm_int));
    cr_expect_gt(norm_of(x, 3), b.norm_int - 4.0);
    cr_expect_eq(x[0], -x[1]);
    t = (struct clip_tensor){tiny, NULL, 2};
    ok(clip_quantise(x, &r, &b, 1, &t, 1));
    cr_expect(r.unclipped && x[0] == 0 && x[1] == 0);
    t = (struct clip_tensor){zero, NULL, 2};
    ok(clip_quantise(x, &r, &b, 1, &t, 1));
    cr_expect(r.unclipped && r.norm == 0 && x[0] == 0 && x[1] == 0);
    t = (struct clip_tensor){bad, NULL, 2};
    refused(clip_quantise(x, &r, &b, 1, &t, 1), ERR_INPUT, "a value is NaN or infinite");
    bad[1] = -INFINITY;
    refused(clip_norm(&r.norm, &t, 1), ERR_INPUT, "a value is NaN or infinite");
}

/* Weights so small that whole steps are coarse beside them. */
Test(clip, takes_the_smallest_weights)
{
    enum { N = 200 };
    struct rng rng;
    float now[N];
    int32_t x[N];
    rng_init(&rng, "clip", 5, "", 0);
    for (int i = 0; i < 2000; i++) {
        struct clip_tensor t = {now, NULL, N};
        struct clip_bound b;
        struct clip_result r;
        double weight = pow(2, -rng_unit(&rng) * 40);
        rng_fill_uniform(&rng, now, N, 1);
        ok(clip_bound_set(&b, 0.1 + rng_unit(&rng)));
        ok(clip_quantise(x, &r, &b, weight, &t, 1));
        cr_assert_leq(norm_of(x, N), weight * (b.norm_int + 1.0) * (1 + 1e-12));
    }
}
