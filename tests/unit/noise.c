#include "privacy/noise/noise.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>

Test(noise, is_added_once_in_order_and_wiped)
{
    enum { N = 1000 };
    int64_t sum[N], copy[N];
    struct noise noise = {0};
    ok(noise_draw(&noise, N, 1 << 20));
    memcpy(copy, noise.value, sizeof copy);
    for (int i = 0; i < N; i++)
        sum[i] = i;
    noise_add(sum, 400, &noise);
    cr_expect_eq(noise.used, 400);
    noise_add(sum + 400, 600, &noise);
    for (int i = 0; i < N; i++) {
        cr_expect_eq(sum[i], i + copy[i]);
        cr_expect_eq(noise.value[i], 0);
    }
    noise_close(&noise);
    cr_expect_null(noise.value);
    noise_close(&noise);
}

/* Two rounds' noise would be equal if a generator could be started twice alike. */
Test(noise, is_never_the_same_twice)
{
    enum { N = 64 };
    struct noise a = {0}, b = {0};
    ok(noise_draw(&a, N, UINT64_C(1) << 40));
    ok(noise_draw(&b, N, UINT64_C(1) << 40));
    for (int i = 0; i < N; i++)
        cr_expect_neq(a.value[i], b.value[i]);
    noise_close(&a);
    noise_close(&b);
}

/* A sum over members with noise has the members' sum as mean and the stated deviation. */
Test(noise, has_the_stated_deviation_on_a_sum)
{
    enum { N = 1 << 18 };
    int64_t *sum = malloc(N * sizeof *sum);
    struct noise noise = {0};
    double mean = 0, squares = 0;
    ok(noise_draw(&noise, N, 5000));
    for (int i = 0; i < N; i++)
        sum[i] = 7 * 1000;
    noise_add(sum, N, &noise);
    for (int i = 0; i < N; i++) {
        double x = (double)(sum[i] - 7000) / 5000;
        mean += x / N;
        squares += x * x / N;
    }
    cr_expect_lt(fabs(mean), 6 / sqrt(N), "chance 2e-9: %g", mean);
    cr_expect_lt(fabs(squares - 1), 6 * sqrt(2.0 / N), "chance 2e-9: %g", squares);
    noise_close(&noise);
    free(sum);
}

Test(noise, that_is_used_up_is_not_used_again, .signal = SIGABRT)
{
    int64_t sum[4] = {0};
    struct noise noise = {0};
    ok(noise_draw(&noise, 3, 10));
    noise_add(sum, 4, &noise);
}
