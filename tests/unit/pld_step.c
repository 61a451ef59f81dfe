#include "privacy/account/pld_step.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

static const struct pld_pair pairs[] = {{1, .02, 0}, {1, 0, .02},  {1, .02, .02}, {.4, .5, 0},
                                        {.4, 0, .5}, {.4, .5, .5}, {2, 1, 0},     {5, 1e-3, 0}};
enum { PAIRS = sizeof pairs / sizeof *pairs };

/* The mass of P above e^eps Q, by the definition: an integral over x. */
static double hockey_stick(const struct pld_pair *p, double epsilon)
{
    long double sum = 0, step = p->z / 4000;
    for (long double x = -11 * p->z - 1; x < 11 * p->z + 1; x += step) {
        long double a = x / p->z, b = (x - 1) / p->z, c = (x + 1) / p->z;
        long double up = (1 - p->up) * expl(-a * a / 2) + p->up * expl(-b * b / 2);
        long double low = (1 - p->low) * expl(-a * a / 2) + p->low * expl(-c * c / 2);
        long double excess = up - expl(epsilon) * low;
        if (excess > 0) sum += excess;
    }
    return (double)(sum * step / (p->z * sqrtl(2 * 3.14159265358979323846L)));
}

static double hockey_stick_of_step(const struct pld_step *s, double epsilon)
{
    double sum = s->infinity;
    for (size_t i = 0; i < s->size; i++) {
        double loss = (double)(s->first + (int64_t)i) * s->interval;
        if (loss > epsilon) sum += s->mass[i] * -expm1(epsilon - loss);
    }
    return sum;
}

Test(pld_step, the_grid_has_the_true_delta_at_its_points_and_more_between)
{
    for (int i = 0; i < PAIRS; i++) {
        struct arena arena = {0};
        struct pld_step s;
        const double interval = 0.01;
        ok(pld_step_take(&s, &pairs[i], interval, &arena));
        cr_assert_eq(s.size, pld_step_cells(&pairs[i], interval));
        double mass = s.infinity;
        for (size_t k = 0; k < s.size; k++) {
            cr_assert(s.mass[k] >= 0);
            mass += s.mass[k];
        }
        cr_assert_float_eq(mass, 1, 1e-13, "%d: %.17g", i, mass);
        for (int64_t k = -20; k <= 60; k += 16) {
            double at = (double)k * interval, want = hockey_stick(&pairs[i], at);
            double between = hockey_stick(&pairs[i], at + interval / 2);
            cr_assert_float_eq(hockey_stick_of_step(&s, at), want, 2e-8, "%d at %g: %.12g %.12g", i,
                               at, hockey_stick_of_step(&s, at), want);
            cr_assert(hockey_stick_of_step(&s, at + interval / 2) >= between - 2e-8);
        }
        arena_close(&arena);
    }
}

Test(pld_step, log_moments_are_sums_over_the_grid)
{
    struct arena arena = {0};
    struct pld_step s;
    ok(pld_step_take(&s, &pairs[3], 0.01, &arena));
    for (double lambda = -40; lambda <= 40; lambda += 7.5) {
        long double sum = 0;
        for (size_t k = 0; k < s.size; k++)
            sum += s.mass[k] * expl(lambda * 0.01L * (s.first + (int64_t)k));
        cr_assert_float_eq(pld_step_log_moment(&s, lambda), (double)logl(sum), 1e-10);
    }
    arena_close(&arena);
}
