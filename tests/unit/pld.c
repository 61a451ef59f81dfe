#include "privacy/account/pld.h"
#include "privacy/account/account_gaussian.h"
#include "privacy/account/pld_step.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

static struct pld_result epsilon_of(const struct pld_event *event, size_t count, double delta,
                                    double interval)
{
    struct pld_options how = {.interval = interval};
    struct pld_result r = {0};
    ok(pld_epsilon(&r, event, count, delta, &how));
    return r;
}

/* One release of removal: delta(eps) in closed form, from the distribution functions. */
static double delta_of_one(double q, double z, double epsilon)
{
    if (epsilon <= log1p(-q)) return -expm1(epsilon);
    double x = 0.5 + z * z * log((exp(epsilon) - (1 - q)) / q);
    return q * 0.5 * erfc((x - 1) / z * M_SQRT1_2) +
           (1 - q - exp(epsilon)) * 0.5 * erfc(x / z * M_SQRT1_2);
}

Test(pld, one_release_is_never_below_its_exact_epsilon_and_near_it)
{
    const double q[] = {1e-3, .02, .3}, z[] = {.5, 1, 3}, delta[] = {1e-8, 1e-5, 1e-3};
    for (int i = 0; i < 27; i++) {
        struct pld_event event = {z[i / 3 % 3], q[i / 9], 1};
        double got = epsilon_of(&event, 1, delta[i % 3], 0).epsilon;
        if (got == 0) {
            cr_assert(delta_of_one(event.q, event.z, 0) <= delta[i % 3]);
            continue;
        }
        cr_assert(delta_of_one(event.q, event.z, got) <= delta[i % 3] * (1 + 1e-9), "%d", i);
        cr_assert(delta_of_one(event.q, event.z, got - 1e-4 - 0.01 * got) > delta[i % 3], "%d", i);
    }
}

/* Everyone takes part: the engine beside the exact formula that serves there otherwise. */
Test(pld, of_full_participation_is_the_exact_gaussian)
{
    const double z[] = {.5, 1, 2, 5, 10};
    const uint64_t times[] = {1, 10, 50};
    for (int i = 0; i < 15; i++) {
        struct pld_event event = {z[i / 3], 1, times[i % 3]};
        double want = account_gaussian_epsilon(sqrt((double)event.count) / event.z, 1e-5);
        double got = epsilon_of(&event, 1, 1e-5, 1e-4).epsilon;
        cr_assert(got >= want * (1 - 1e-12) && got <= want * (1 + 1e-6),
                  "%g times %llu: %.12g, %.12g", event.z, (unsigned long long)event.count, got,
                  want);
    }
}

/* Losses of which e^loss has no double, as they are in the middle of these. */
Test(pld, stays_above_the_truth_where_losses_are_huge)
{
    static const struct pld_event event[] = {{1, 1, 2000}, {1, 1, 10000}, {0.02, 1, 2}};
    for (size_t i = 0; i < sizeof event / sizeof *event; i++) {
        double want = account_gaussian_epsilon(sqrt((double)event[i].count) / event[i].z, 1e-6);
        double got = epsilon_of(&event[i], 1, 1e-6, 0).epsilon;
        cr_assert(got >= want * (1 - 1e-12) && got <= want * (1 + 1e-6), "%zu: %.12g, %.12g", i,
                  got, want);
        double coarse = epsilon_of(&event[i], 1, 1e-6, 0.01).epsilon;
        cr_assert(coarse >= got * (1 - 1e-12), "a coarser grid: %.12g, %.12g", coarse, got);
    }
}

/* Losses of hardly anyone: mpmath's value, 50 digits. */
Test(pld, one_release_of_the_smallest_rates_is_exact)
{
    struct pld_event event = {.3513, 1.212e-7, 1};
    struct pld_result r = epsilon_of(&event, 1, 1.167e-12, 0);
    cr_expect_eq(r.interval, 0);
    cr_expect_lt(fabs(delta_of_one(event.q, event.z, r.epsilon) / 1.167e-12 - 1), 1e-4);
}

/* ---- convolution by the definition ---- */

struct losses {
    long double *mass; /* (size) from first */
    int64_t first;
    size_t size;
};

static struct losses convolve(struct losses a, const struct pld_step *b)
{
    struct losses out = {.first = a.first + b->first, .size = a.size + b->size - 1};
    out.mass = calloc(out.size, sizeof *out.mass);
    for (size_t i = 0; i < a.size; i++)
        for (size_t k = 0; k < b->size; k++)
            out.mass[i + k] += a.mass[i] * b->mass[k];
    free(a.mass);
    return out;
}

static double epsilon_plainly(const struct pld_event *event, size_t count, double delta,
                              double interval, const double side[2])
{
    struct arena arena = {0};
    struct losses all = {.mass = calloc(1, sizeof(long double)), .size = 1};
    long double finite = 1;
    all.mass[0] = 1;
    for (size_t i = 0; i < count; i++) {
        struct pld_pair pair = {event[i].z, side[0] * event[i].q, side[1] * event[i].q};
        struct pld_step step;
        ok(pld_step_take(&step, &pair, interval, &arena));
        for (uint64_t n = 0; n < event[i].count; n++) {
            all = convolve(all, &step);
            finite *= 1 - (long double)step.infinity;
        }
    }
    double low = 0, high = 100;
    for (int n = 0; n < 100; n++) {
        double middle = (low + high) / 2;
        long double sum = 1 - finite;
        for (size_t i = 0; i < all.size; i++) {
            long double loss = (all.first + (int64_t)i) * (long double)interval;
            if (loss > middle) sum += all.mass[i] * -expm1l(middle - loss);
        }
        if (sum > delta)
            low = middle;
        else
            high = middle;
    }
    free(all.mass);
    arena_close(&arena);
    return high;
}

Test(pld, compositions_are_those_of_plain_convolution)
{
    const struct pld_event event[] = {{1, .1, 3}, {.7, .02, 2}, {3, 1, 1}};
    const double delta[] = {1e-2, 1e-5, 1e-10}, sides[2][2] = {{1, 0}, {0, 1}};
    for (int d = 0; d < 3; d++)
        for (size_t count = 1; count <= 3; count++) {
            double want = fmax(epsilon_plainly(event, count, delta[d], 0.02, sides[0]),
                               epsilon_plainly(event, count, delta[d], 0.02, sides[1]));
            double got = epsilon_of(event, count, delta[d], 0.02).epsilon;
            cr_assert(got >= want * (1 - 1e-12) && got <= want * (1 + 1e-8), "%d %zu: %.12g %.12g",
                      d, count, got, want);
        }
}

/* tests/golden/account_long.py: 40 digits for one release, a transform in long double. */
Test(pld, long_compositions_are_those_of_more_digits)
{
    static const struct {
        struct pld_event event;
        double delta, epsilon;
    } row[] = {{{.8, 1e-4, 20000}, 1e-6, 0.1112134958745681},
               {{.8, 1e-4, 20000}, 1e-9, 0.2838314256708969},
               {{1, .01, 2000}, 1e-10, 4.2726014920082}};
    for (int i = 0; i < 3; i++) {
        double got = epsilon_of(&row[i].event, 1, row[i].delta, 0).epsilon;
        cr_assert(got >= row[i].epsilon * (1 - 5e-7) && got <= row[i].epsilon * (1 + 5e-5),
                  "%d: %.12g", i, got);
    }
}

/* The sum of very many small losses is normal: Gaussian differential privacy with
 * mu = q sqrt(T (e^(1/z^2) - 1)) (Bu, Dong, Long, Su 2020). */
Test(pld, many_small_losses_have_the_gaussian_limit)
{
    const struct pld_event event[] = {{10, 1e-4, 1000000}, {50, 1e-3, 1000000}, {20, 1e-5, 100000}};
    for (int i = 0; i < 3; i++) {
        const struct pld_event *e = &event[i];
        double mu = e->q * sqrt((double)e->count * expm1(1 / (e->z * e->z)));
        struct pld_result r = epsilon_of(e, 1, 1e-7, 0);
        double limit = account_gaussian_epsilon(mu, 1e-7);
        cr_assert(r.interval < 1e-4);
        cr_assert(r.epsilon >= limit * 0.999 && r.epsilon <= limit * 1.06, "%d: %g, limit %g", i,
                  r.epsilon, limit);
    }
}

Test(pld, a_finer_grid_is_closer_from_above_and_a_long_window_gets_a_coarser_one)
{
    const struct pld_event event = {1, .01, 1000};
    double fine = epsilon_of(&event, 1, 1e-6, 1e-4).epsilon;
    double coarse = epsilon_of(&event, 1, 1e-6, 1e-2).epsilon;
    cr_assert(coarse > fine && coarse < fine * 1.2, "%g %g", coarse, fine);
    const struct pld_event hard = {.4, .5, 100000};
    struct pld_result r = epsilon_of(&hard, 1, 1e-6, 0);
    cr_assert(r.interval > 1e-4 && isfinite(r.epsilon));
}

Test(pld, a_delta_below_what_the_tails_leave_out_has_no_epsilon)
{
    const struct pld_event event = {1, .5, 1000};
    cr_assert(isinf(epsilon_of(&event, 1, 1e-30, 0).epsilon));
}
