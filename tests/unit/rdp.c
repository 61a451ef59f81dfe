#include "privacy/account/rdp.h"
#include "base/json.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

/* Opacus: 1.1 to 10.9 by 0.1, 12 to 63: the default ones without 11 and the large ones. TensorFlow
 * Privacy: compute_dp_sgd_privacy. */
static double opacus[99 + 52], tensorflow[10 + 59 + 3];

static void orders_fill(void)
{
    const double first[10] = {1.25, 1.5, 1.75, 2, 2.25, 2.5, 3, 3.5, 4, 4.5};
    for (int i = 0; i < 99; i++)
        opacus[i] = rdp_orders()[i];
    for (int i = 0; i < 52; i++)
        opacus[99 + i] = 12 + i;
    for (int i = 0; i < 10; i++)
        tensorflow[i] = first[i];
    for (int i = 0; i < 59; i++)
        tensorflow[10 + i] = 5 + i;
    for (int i = 0; i < 3; i++)
        tensorflow[69 + i] = 128 << i;
}

struct plan {
    double q, z, steps, delta;
    bool exact, fixed;
};

static double epsilon_of(double *order_out, const double *order, size_t count,
                         const struct plan *plan)
{
    double rdp[256], ignored;
    for (size_t i = 0; i < count; i++)
        rdp[i] = plan->steps * (plan->fixed ? rdp_fixed_size(plan->q, plan->z, order[i])
                                            : rdp_poisson(plan->q, plan->z, order[i], plan->exact));
    return rdp_epsilon(order_out ? order_out : &ignored, order, rdp, count, plan->delta);
}

static void near(double got, double want, double relative)
{
    cr_assert(fabs(got - want) <= relative * fabs(want), "%.15g, expected %.15g", got, want);
}

Test(rdp, values_of_poisson_sampling_are_those_published)
{
    const double order[] = {1.5, 2.5, 5, 50, 100};
    const double want[] = {6.70579741e-4, 1.08548710e-3, 2.18075656e-3, 2.38460375e-2, 167.416308};
    for (int i = 0; i < 5; i++)
        near(50 * rdp_poisson(0.01, 2.5, order[i], false), want[i], 1e-4);
}

/* E over N(0, z^2) of (1 - q + q e^((x - 1/2) / z^2))^order, less one, by the trapezoid rule in
 * long double on logarithms. The exponent of the integrand is subtracted at x = 0 and q = 0, whose
 * integral is one. */
static double log_moment_by_logarithms(double q, double z, double order)
{
    long double w = z, step = w / 256, sum = 0, most = 0;
    for (int pass = 0; pass < 2; pass++)
        for (long double x = -14 * w; x <= order + 14 * w; x += step) {
            long double t = (x - 0.5L) / (w * w);
            long double mix = t > 40 ? t + logl(q + (1 - q) * expl(-t)) : log1pl(q * expm1l(t));
            long double power = order * mix - x * x / (2 * w * w);
            if (pass == 0)
                most = fmaxl(most, power);
            else if (most > 20)
                sum += expl(power - most);
            else
                sum += expl(-x * x / (2 * w * w)) * expm1l(order * mix);
        }
    sum *= step / sqrtl(2 * 3.14159265358979323846L * w * w);
    return (double)(most > 20 ? most + logl(sum) : log1pl(sum));
}

Test(rdp, log_moments_are_those_of_multiprecision_arithmetic)
{
    static const struct {
        double q, z, order, log_a;
    } row[] = {{1e-7, .1, 1.01, 4.003413613742918e-08}, {1e-6, .1, 256, 3260463.2292971606},
               {1e-5, .1, 256.1, 3263607.039788421},    {1e-6, 1, 27, 8.769511303e-10},
               {1e-4, 1, 1.5, 6.442686995e-09},         {1e-3, 1, 2, 1.718280352214069e-06},
               {.01, 10, 20, 1.912969991e-04},          {.1, 100, 20.5, 1.999181846e-04},
               {.99, .1, 256, 3263997.427114021},       {.999, 100, 256.1, 3.260108037973145}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        double got = rdp_poisson(row[i].q, row[i].z, row[i].order, true) * (row[i].order - 1);
        cr_assert(fabs(got - row[i].log_a) <= 1e-8 + 1e-7 * row[i].log_a, "row %zu: %.12g", i, got);
        double want = log_moment_by_logarithms(row[i].q, row[i].z, row[i].order);
        near(got, want, 5e-6); /* no absolute slack: two of them are below 1e-8 */
    }
}

/* E over N(0, z^2) of (1 - q + q e^((x - 1/2) / z^2))^order by the trapezoid rule in long double:
 * the definition of the sums and series. */
static double log_moment_by_quadrature(double q, double z, double order)
{
    long double sum = 0, step = z / 256.0L;
    for (long double x = -14.0L * z; x <= order + 14.0L * z; x += step)
        sum += expl(order * logl(1 - q + q * expl((x - 0.5L) / ((long double)z * z))) -
                    x * x / (2.0L * z * z));
    return (double)logl(sum * step / sqrtl(2 * 3.14159265358979323846L * z * z));
}

Test(rdp, log_moments_are_those_of_quadrature)
{
    const double q[] = {1e-6, 1e-3, 0.04, 0.3, 0.9}, z[] = {0.6, 1, 2.5, 20};
    const double order[] = {1.1, 1.7, 2, 3.3, 5, 10.9, 17, 63};
    for (int i = 0; i < 5; i++)
        for (int j = 0; j < 4; j++)
            for (int k = 0; k < 8; k++) {
                double want = log_moment_by_quadrature(q[i], z[j], order[k]);
                double got = rdp_poisson(q[i], z[j], order[k], true) * (order[k] - 1);
                if (isinf(got) && order[k] < 2) continue; /* terms fall like i^-(order + 2) only */
                double bound = rdp_poisson(q[i], z[j], order[k], false) * (order[k] - 1);
                cr_assert(fabs(got - want) <= 1e-13 + 1e-9 * want, "%g %g %g: %.12g, not %.12g",
                          q[i], z[j], order[k], got, want);
                cr_assert(bound >= got - 1e-15, "%g %g %g", q[i], z[j], order[k]);
            }
}

Test(rdp, epsilons_are_those_other_libraries_assert)
{
    double order;
    orders_fill();
    near(epsilon_of(NULL, opacus, 151, &(struct plan){.04, 1.5, 2250, 1e-5, true, false}),
         7.32911117143, 1e-11);
    near(epsilon_of(NULL, opacus, 151, &(struct plan){.04, 1.5, 2250, 1e-5, false, false}),
         7.329334702, 1e-10);
    near(epsilon_of(&order, tensorflow, 72, &(struct plan){.0025, 1.3, 6000, 1e-5, false, false}),
         0.7242234026109595, 1e-9);
    cr_assert_eq(order, 19);
    near(epsilon_of(&order, tensorflow, 72, &(struct plan){.001, 1, 30000, 1e-7, false, false}),
         1.4154988495444842, 1e-9);
    cr_assert_eq(order, 13);
    near(epsilon_of(&order, tensorflow, 72,
                    &(struct plan){1.024e-5, .1, 976563, 1e-7, false, false}),
         5907982.3113984, 1e-9);
    cr_assert_eq(order, 1.25);
}

Test(rdp, epsilons_of_full_and_poisson_participation_are_those_of_the_reference)
{
    static const struct {
        struct plan plan;
        double epsilon, tolerance;
    } row[] = {
        {{1, .7, 2, 1e-5, 0, 0}, 10.8602036, 1e-8},
        {{1, .35, 2, 1e-5, 0, 0}, 26.2880374, 1e-8},
        {{.01, .7, 120, 1e-5, 0, 0}, 3.2392676, 2e-8},
        {{.01, .35, 120, 1e-5, 0, 0}, 22.6248601, 1e-8},
        {{1, 1, 5, 1e-6, 0, 0}, 13.376, 1e-4},
        {{.0064, 1, 782, 1e-6, 0, 0}, 1.616, 1e-3},
        {{1, 1, 1, 1e-5, 0, 0}, 4.728507067, 1e-9},
        {{1, 1, 10, 1e-5, 0, 0}, 19.053597532, 1e-9},
        {{1, 4, 10, 1e-5, 0, 0}, 3.617099773, 1e-9},
        {{1, 5, 50, 1e-5, 0, 0}, 7.077391578, 1e-9},
        {{1, 10, 100, 1e-6, 0, 0}, 5.221539631, 1e-9},
        {{.1, 1, 50, 1e-5, 0, 0}, 5.885427277, 1e-9},
        {{.1, .8, 100, 1e-5, 0, 0}, 12.408625572, 1e-9},
        {{.5, 2, 50, 1e-5, 0, 0}, 10.287808094, 1e-9},
        {{.5, 1, 20, 1e-5, 0, 0}, 16.575238460, 1e-9},
        {{.01, .6, 200, 1e-6, 0, 0}, 6.565057194, 1e-9},
        {{.01, 1, 1000, 1e-6, 0, 0}, 2.436693803, 1e-9},
        {{.02, 1.1, 500, 1e-5, 0, 0}, 2.575660465, 1e-9},
        {{.25, 1.5, 30, 1e-4, 0, 0}, 4.946430155, 1e-9},
        {{.001, .5, 1000, 1e-6, 0, 0}, 5.329207971, 1e-9},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++)
        near(epsilon_of(NULL, rdp_orders(), RDP_ORDERS, &row[i].plan), row[i].epsilon,
             row[i].tolerance);
}

Test(rdp, epsilons_of_fixed_size_sampling_are_those_of_the_reference)
{
    double order;
    near(epsilon_of(&order, rdp_orders(), RDP_ORDERS, &(struct plan){.01, 1, 100, 1e-5, 0, true}),
         1.482525669, 1e-9);
    cr_assert_eq(order, 8);
    near(epsilon_of(&order, rdp_orders(), RDP_ORDERS, &(struct plan){.1, 2, 50, 1e-5, 0, true}),
         3.680296615, 1e-9);
    cr_assert_eq(order, 6);
    near(epsilon_of(&order, rdp_orders(), RDP_ORDERS, &(struct plan){.1, 2, 20, 1e-5, 0, true}),
         2.242123048, 1e-9);
    cr_assert_eq(order, 9);
}

/* If A is at most 1 + 1e-16, ln A must not be rounded to zero, because an epsilon of 0 would be a
 * false promise. The references are dp_accounting's; order 2 has a closed form. */
Test(rdp, hardly_any_loss_is_not_none)
{
    double order;
    static const struct {
        struct plan plan;
        double epsilon, order;
    } row[] = {{{1e-8, 1, 1, 1e-9, 0, 0}, 0.447944, 37},
               {{1e-8, 1, 1e9, 1e-15, 0, 0}, 0.856268, 36}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        near(epsilon_of(&order, rdp_orders(), RDP_ORDERS, &row[i].plan), row[i].epsilon, 2e-6);
        cr_assert_eq(order, row[i].order);
    }
    for (double q = 1e-12; q < 1e-3; q *= 10) {
        near(rdp_poisson(q, 1, 2, false), q * q * expm1(1), 1e-5);
        for (int k = 0; k < 20; k++) { /* convex through 0 at order 1, so at least as much */
            double least = log1p(q * q * expm1(1)) * 0.02;
            cr_assert_gt(rdp_poisson(q, 1, 1.1 + 0.1 * k, false), least, "q %g order %g", q,
                         1.1 + 0.1 * k);
        }
    }
}

Test(rdp, the_shared_vectors_come_out_with_their_orders)
{
    char path[SUPPORT_PATH_BYTES];
    json_t *all;
    support_shared(path, sizeof path, "data/dp-accounting/vectors.json");
    ok(json_open(&all, path, 1 << 20));
    const json_t *cases = json_object_get(all, "cases"),
                 *values = json_object_get(all, "rdp_values");
    cr_assert(json_array_size(cases) == 60 && json_array_size(values) == 3);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        double q, z, delta, want, order_want, order;
        int64_t steps;
        const json_t *c = json_array_get(cases, i);
        ok(json_get_num(&q, c, "q", path));
        ok(json_get_num(&z, c, "sigma", path));
        ok(json_get_num(&delta, c, "delta", path));
        ok(json_get_num(&want, c, "rdp_eps", path));
        ok(json_get_num(&order_want, c, "rdp_order", path));
        ok(json_get_int(&steps, c, "steps", 1, 100000, path));
        near(epsilon_of(&order, rdp_orders(), RDP_ORDERS,
                        &(struct plan){q, z, (double)steps, delta, false, false}),
             want, 1e-9);
        near(order, order_want, 1e-12);
    }
    for (size_t i = 0; i < json_array_size(values); i++) {
        const json_t *v = json_array_get(values, i);
        double q, z, steps;
        ok(json_get_num(&q, v, "q", path));
        ok(json_get_num(&z, v, "sigma", path));
        ok(json_get_num(&steps, v, "steps", path));
        for (size_t k = 0; k < json_array_size(json_object_get(v, "orders")); k++) {
            double order = json_number_value(json_array_get(json_object_get(v, "orders"), k));
            near(steps * rdp_poisson(q, z, order, false),
                 json_number_value(json_array_get(json_object_get(v, "rdp"), k)), 1e-9);
        }
    }
    json_decref(all);
}

Test(rdp, conversion_is_the_published_one)
{
    double order[31], rdp[31], best, one[RDP_ORDERS];
    for (int i = 0; i < 31; i++) {
        order[i] = 2 + i;
        rdp[i] = 1.1;
    }
    near(rdp_epsilon(&best, order, rdp, 31, 1e-5), 1.32783806176, 1e-11);
    cr_assert_eq(best, 32);
    orders_fill();
    for (int i = 0; i < 151; i++)
        one[i] = 0.81 * opacus[i];
    near(rdp_epsilon(&best, opacus, one, 151, 1e-10), 8.922258, 1e-6);
    static double fine[100000], gaussian[100000]; /* TensorFlow Privacy: orders by 0.001 */
    for (int i = 0; i < 100000; i++) {
        fine[i] = 1.001 + 0.001 * i;
        gaussian[i] = rdp_gaussian(4.530877117, fine[i]);
    }
    near(rdp_epsilon(&best, fine, gaussian, 100000, 1e-6), 1, 1e-9);
}

Test(rdp, nothing_spent_is_no_epsilon_and_no_finite_order_is_infinite)
{
    double order[2] = {2, 3}, zero[2] = {0}, lost[2] = {INFINITY, INFINITY}, best;
    cr_assert_eq(rdp_epsilon(&best, order, zero, 2, 1e-9), 0);
    cr_assert(isinf(rdp_epsilon(&best, order, lost, 2, 1e-9)));
}
