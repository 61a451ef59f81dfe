#include "privacy/account/account_gaussian.h"

#include <criterion/criterion.h>
#include <math.h>

static void near(double got, double want, double relative)
{
    cr_assert(fabs(got - want) <= relative * fabs(want), "%.17g, expected %.17g", got, want);
}

/* In long double, whose erfc reaches much further. */
static double log_erfc_long(long double x)
{
    return (double)logl(erfcl(x));
}

Test(account_gaussian, logarithms_of_erfc_are_those_of_more_digits)
{
    for (double x = -30; x < 100; x += 0.37)
        cr_assert(fabs(account_gaussian_log_erfc(x) - log_erfc_long(x)) <=
                      1e-14 * fabs(log_erfc_long(x)) + 1e-16,
                  "at %g", x);
    near(account_gaussian_log_cdf(-40), log_erfc_long(40 * M_SQRT1_2) - log(2), 1e-14);
    near(account_gaussian_log_cdf(0), -log(2), 1e-15);
}

Test(account_gaussian, narrow_strips_of_either_tail_keep_their_digits)
{
    for (double x = -9.5; x < 9.5; x += 0.31) {
        double width = 1e-4, sum = 0; /* Simpson's rule on the density */
        for (int i = 0; i <= 2; i++) {
            double t = x + i * width / 2;
            sum += (i == 1 ? 4 : 1) * exp(-t * t / 2);
        }
        near(account_gaussian_between(x, x + width), sum * width / 6 / sqrt(2 * M_PI), 1e-10);
    }
    near(account_gaussian_between(-INFINITY, INFINITY), 1, 1e-15);
    cr_assert_eq(account_gaussian_between(INFINITY, INFINITY), 0);
}

/* Balle and Wang's analytic Gaussian mechanism, computed by an independent program. */
Test(account_gaussian, epsilons_are_the_analytic_ones)
{
    near(account_gaussian_epsilon(1, 1e-5), 4.377178095681, 1e-11);
    near(account_gaussian_epsilon(1 / 2., 1e-5), 1.993091404415, 1e-11);
    near(account_gaussian_epsilon(1 / .5, 1e-5), 9.997256146434, 1e-11);
    near(account_gaussian_epsilon(1 / 4., 1e-6), 1.060701862328, 1e-11);
    near(account_gaussian_epsilon(1 / 10., 1e-6), .396857377644, 1e-11);
}

/* The definition: the mass of P above e^eps Q, by quadrature in long double. */
Test(account_gaussian, deltas_are_those_of_the_definition)
{
    const double mu[] = {1e-3, .1, 1, 4, 20}, part[] = {0, .5, 1, 1.5};
    for (int i = 0; i < 5; i++)
        for (int k = 0; k < 4; k++) {
            double epsilon = part[k] * (mu[i] * mu[i] / 2 + 3 * mu[i]);
            long double from = epsilon / (long double)mu[i] + mu[i] / 2.0L, sum = 0;
            long double step = 1e-4L;
            for (int n = 0; n < (12 + mu[i]) * 1e4; n++) {
                long double x = from + (n + 0.5L) * step, a = x - mu[i];
                sum += expl(-a * a / 2) - expl(epsilon - x * x / 2);
            }
            double want = (double)(sum * step / sqrtl(2 * 3.14159265358979323846L));
            near(account_gaussian_delta(mu[i], epsilon), want, 1e-6);
            near(account_gaussian_delta(mu[i], account_gaussian_epsilon(mu[i], want)),
                 epsilon > 0 ? want : account_gaussian_delta(mu[i], 0), 1e-6);
        }
}
