#include "privacy/account/fft.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

/* x y modulo X^n + 1 by the definition. */
static void multiply_plainly(double *out, const double *x, const double *y, size_t n)
{
    for (size_t k = 0; k < n; k++) {
        long double sum = 0;
        for (size_t i = 0; i < n; i++)
            sum += (long double)x[i] * (i <= k ? y[k - i] : -y[k + n - i]);
        out[k] = (double)sum;
    }
}

static double *random_sequence(size_t n, uint64_t seed)
{
    struct rng rng;
    double *x = malloc(n * sizeof *x);
    rng_init(&rng, "fft", seed, "", n);
    for (size_t i = 0; i < n; i++)
        x[i] = (rng_unit(&rng) - 0.3) / (double)n;
    return x;
}

static void fold(const struct fft *fft, struct fft_value *z, const double *x)
{
    for (size_t i = 0; i < 2 * fft->size; i++)
        *fft_at(fft, z, i) = x[i];
}

Test(fft, products_are_those_of_the_definition)
{
    for (size_t n = 4; n <= 8192; n *= n < 512 ? 2 : 4) {
        struct fft fft = {0};
        double *x = random_sequence(n, 1), *y = random_sequence(n, 2);
        double *want = malloc(n * sizeof *want), worst = 0;
        struct fft_value *z = calloc(n / 2, sizeof *z), *w = calloc(n / 2, sizeof *w);
        ok(fft_open(&fft, n));
        fold(&fft, z, x);
        fold(&fft, w, y);
        fft_forward(&fft, z);
        fft_forward(&fft, w);
        for (size_t j = 0; j < n / 2; j++)
            z[j] = (struct fft_value){z[j].re * w[j].re - z[j].im * w[j].im,
                                      z[j].re * w[j].im + z[j].im * w[j].re};
        fft_inverse(&fft, z);
        multiply_plainly(want, x, y, n);
        for (size_t i = 0; i < n; i++)
            worst = fmax(worst, fabs(*fft_at(&fft, z, i) - want[i]));
        cr_assert(worst <= 3 * fft_error(n) / (double)n, "%zu: %g", n, worst);
        fft_close(&fft);
        free(x), free(y), free(want), free(z), free(w);
    }
}

/* Every value is sum x_i e^(i theta k) at an odd multiple of pi/n. */
Test(fft, values_are_within_the_stated_error)
{
    enum { N = 1 << 14 };
    struct fft fft = {0};
    double *x = random_sequence(N, 3);
    struct fft_value *z = calloc(N / 2, sizeof *z);
    ok(fft_open(&fft, N));
    fold(&fft, z, x);
    fft_forward(&fft, z);
    /* the first value belongs to e^(i pi / N): the root of the first block at every level */
    for (int which = 0; which < 2; which++) {
        long double re = 0, im = 0, theta = 3.14159265358979323846264338L / N;
        if (which) theta += 3.14159265358979323846264338L; /* z[1]: the other root of its block */
        for (size_t i = 0; i < N; i++) {
            re += x[i] * cosl(theta * (long double)i);
            im += x[i] * sinl(theta * (long double)i);
        }
        cr_assert(fabs(z[which].re - (double)re) <= fft_error(N));
        cr_assert(fabs(z[which].im - (double)im) <= fft_error(N));
    }
    fft_close(&fft);
    free(x), free(z);
}

Test(fft, the_inverse_undoes_a_long_transform)
{
    enum { N = 1 << 20 };
    struct fft fft = {0};
    double *x = random_sequence(N, 4), worst = 0;
    struct fft_value *z = calloc(N / 2, sizeof *z);
    ok(fft_open(&fft, N));
    fold(&fft, z, x);
    fft_forward(&fft, z);
    fft_inverse(&fft, z);
    for (size_t i = 0; i < N; i++)
        worst = fmax(worst, fabs(*fft_at(&fft, z, i) - x[i]));
    cr_assert(worst <= 2 * fft_error(N) / N, "%g", worst);
    fft_close(&fft);
    fft_close(&fft);
    free(x), free(z);
}
