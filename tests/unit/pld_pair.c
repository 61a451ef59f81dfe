#include "privacy/account/pld_pair.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct pld_pair pairs[] = {
    {1, .02, 0},    {1, 0, .02},    {1, .02, .02},     {.3, .5, 0}, {.3, 0, .5}, {.3, .5, .5},
    {100, 1e-6, 0}, {100, 0, 1e-6}, {100, 1e-6, 1e-6}, {2, 1, 0},   {2, 0, 1},   {2, 1, 1}};
enum { PAIRS = sizeof pairs / sizeof *pairs };

static long double density(double z, double part, double center, long double x)
{
    long double a = x / z, b = (x - center) / z;
    return (1.0L - part) * expl(-a * a / 2) + part * expl(-b * b / 2);
}

Test(pld_pair, the_loss_is_the_logarithm_of_the_densities_quotient)
{
    for (int i = 0; i < PAIRS; i++)
        for (double u = -8; u <= 8; u += 0.7) {
            const struct pld_pair *p = &pairs[i];
            double x = u * p->z, got = pld_pair_loss(p, x);
            double want = (double)logl(density(p->z, p->up, 1, x) / density(p->z, p->low, -1, x));
            cr_assert(fabs(got - want) <= 1e-10 * fabs(want) + 1e-18, "%d %g: %g %g", i, x, got,
                      want);
        }
}

Test(pld_pair, the_inverse_gives_back_what_has_that_loss)
{
    for (int i = 0; i < PAIRS; i++)
        for (double u = -8; u <= 8; u += 0.7) {
            const struct pld_pair *p = &pairs[i];
            double loss = pld_pair_loss(p, u * p->z), back = pld_pair_inverse(p, loss);
            double again = pld_pair_loss(p, back);
            cr_assert(fabs(again - loss) <= 1e-11 * fabs(loss) + 1e-18, "%d %g: %g %g", i, u, again,
                      loss);
        }
    cr_assert_eq(pld_pair_inverse(&pairs[0], log(.98) - 1e-9), -INFINITY);
    cr_assert_eq(pld_pair_inverse(&pairs[1], -log(.98) + 1e-9), INFINITY);
}

Test(pld_pair, probabilities_are_areas_under_the_densities)
{
    for (int i = 0; i < PAIRS; i++) {
        const struct pld_pair *p = &pairs[i];
        double low = -1.5 * p->z, high = 2.5 * p->z, step = (high - low) / 20000;
        long double up = 0, down = 0;
        for (int k = 0; k < 20000; k++) {
            double x = low + (k + .5) * step;
            up += density(p->z, p->up, 1, x);
            down += density(p->z, p->low, -1, x);
        }
        double scale = step / (p->z * sqrt(2 * M_PI));
        cr_assert_float_eq(pld_pair_up(p, low, high), (double)up * scale, 1e-8);
        cr_assert_float_eq(pld_pair_low(p, low, high), (double)down * scale, 1e-8);
    }
}
