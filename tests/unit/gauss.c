/* Compares the sampler with the probability of each integer, computed from erfcl(). The randomness
 * is real, so each test can fail without a cause, with a probability of at most 1e-8 (6 sigma,
 * unless the test states another bound). */
#include "privacy/noise/gauss.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { N = 1 << 20 };

static int64_t *draw(uint64_t sigma, size_t n)
{
    struct keystream *k = NULL;
    int64_t *value = malloc(n * sizeof *value);
    ok(keystream_open(&k));
    gauss_fill(value, n, sigma, k);
    keystream_close(k);
    return value;
}

static long double upper(long double x) /* P(Z > x) */
{
    return erfcl(x / sqrtl(2)) / 2;
}

/* P(v), from the side where no digits cancel. */
static double mass(int64_t v, double sigma)
{
    long double a = llabs(v);
    if (v == 0) return (double)(1 - 2 * upper(0.5L / sigma));
    return (double)(upper((a - 0.5L) / sigma) - upper((a + 0.5L) / sigma));
}

/* The quantile of chi squared at 6 sigma (1e-9), by Wilson and Hilferty. */
static double chi_limit(int freedom)
{
    double f = 2.0 / (9.0 * freedom);
    return freedom * pow(1 - f + 6 * sqrt(f), 3);
}

Test(gauss, has_the_exact_probability_of_every_integer)
{
    static const uint64_t sigmas[] = {1, 2, 3, 10, 57};
    for (size_t s = 0; s < 5; s++) {
        enum { SIDE = 400 };
        static double seen[2 * SIDE + 1];
        int64_t *value = draw(sigmas[s], N);
        double chi = 0, sigma = (double)sigmas[s], rest = N, rest_seen = N;
        int freedom = 0;
        for (int i = 0; i <= 2 * SIDE; i++)
            seen[i] = 0;
        for (int i = 0; i < N; i++)
            if (llabs(value[i]) <= SIDE) seen[value[i] + SIDE]++;
        for (int v = -SIDE; v <= SIDE; v++) {
            double expected = mass(v, sigma) * N, d = seen[v + SIDE] - expected;
            if (expected < 20) continue;
            chi += d * d / expected;
            rest -= expected;
            rest_seen -= seen[v + SIDE];
            freedom++;
        }
        chi += (rest_seen - rest) * (rest_seen - rest) / rest; /* all integers that are rare */
        cr_expect_lt(chi, chi_limit(freedom), "sigma %g: %g of %d", sigma, chi, freedom);
        free(value);
    }
}

static int ascending(const void *a, const void *b)
{
    int64_t x = *(const int64_t *)a, y = *(const int64_t *)b;
    return (x > y) - (x < y);
}

Test(gauss, follows_the_normal_distribution_at_the_deviations_of_real_runs)
{
    static const uint64_t sigmas[] = {UINT64_C(1) << 31, 3210987654321, GAUSS_SIGMA_MAX};
    for (int s = 0; s < 3; s++) {
        int64_t *value = draw(sigmas[s], N);
        double worst = 0, low[16] = {0}, chi = 0;
        for (int i = 0; i < N; i++)
            low[value[i] & 15]++;
        qsort(value, N, sizeof *value, ascending);
        for (int i = 0; i < N; i++) {
            double p = (double)(1 - upper((long double)value[i] / (long double)sigmas[s]));
            worst = fmax(worst, fmax(fabs(p - i / (double)N), fabs(p - (i + 1) / (double)N)));
        }
        /* Kolmogorov and Smirnov: P(sqrt(n) D > 3.1) < 2 exp(-2 * 3.1^2) = 9e-9. */
        cr_expect_lt(worst * sqrt(N), 3.1, "sigma 2^%g: %g", log2((double)sigmas[s]),
                     worst * sqrt(N));
        for (int i = 0; i < 16; i++)
            chi += (low[i] - N / 16.0) * (low[i] - N / 16.0) / (N / 16.0);
        cr_expect_lt(chi, chi_limit(15), "the lowest bits are even: %g", chi);
        free(value);
    }
}

Test(gauss, has_the_variance_and_the_tails_it_says)
{
    static const double at[] = {1, 2, 3, 4, 4.5};
    const uint64_t sigma = 1000003;
    int64_t *value = draw(sigma, N);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        double z = (double)value[i] / (double)sigma;
        sum += z;
        squares += z * z;
    }
    cr_expect_lt(fabs(sum / N), 6 / sqrt(N), "mean %g", sum / N);
    /* The sample variance has deviation sqrt(2 / N) = 0.0014: one percent is seven of them. */
    cr_expect_lt(fabs(squares / N - 1), 0.01, "variance %g", squares / N);
    for (int t = 0; t < 5; t++) {
        double p = 2 * (double)upper(at[t]), count = 0;
        for (int i = 0; i < N; i++)
            count += fabs((double)value[i]) > at[t] * (double)sigma;
        cr_expect_lt(fabs(count - p * N), 6 * sqrt(p * N) + 10, "beyond %g: %g of %g", at[t], count,
                     p * N);
    }
    free(value);
}

Test(gauss, neighbours_are_independent)
{
    int64_t *value = draw(1000, N);
    for (int lag = 1; lag <= 33; lag += 8) {
        double sum = 0, signs = 0;
        for (int i = 0; i + lag < N; i++) {
            sum += (double)value[i] * (double)value[i + lag] * 1e-6;
            signs += (value[i] > 0) == (value[i + lag] > 0) ? 1 : -1;
        }
        cr_expect_lt(fabs(sum), 6 * sqrt(N), "lag %d: %g", lag, sum);
        cr_expect_lt(fabs(signs), 6.5 * sqrt(N), "lag %d: %g", lag, signs);
    }
    free(value);
}
