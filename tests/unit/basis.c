/* Orthonormality by loops; singular vectors through what they mean: W v = sigma u with the singular
 * values of an independent dgesvd. */
#include "agg/algebra/basis.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* max |X^T X - I| over columns of x, column j at x[i * row + j * col]. */
static double crooked(const float *x, size_t d, size_t r, size_t row, size_t col)
{
    double worst = 0;
    for (size_t a = 0; a < r; a++)
        for (size_t b = 0; b < r; b++) {
            double sum = a == b ? -1 : 0;
            for (size_t i = 0; i < d; i++)
                sum += (double)x[i * row + a * col] * x[i * row + b * col];
            worst = fmax(worst, fabs(sum));
        }
    return worst;
}

static void expect_orthonormal(const float *A, const float *B, const struct basis_shape *s)
{
    cr_expect_lt(crooked(B, s->d_out, s->r, s->r, 1), 3e-7);
    cr_expect_lt(crooked(A, s->d_in, s->r, 1, s->d_in), 3e-7);
}

Test(basis, seeded_factors_are_orthonormal_and_keyed)
{
    struct basis_shape shape = {.d_out = 48, .d_in = 96, .r = 48};
    struct basis_key key = {.seed = 5, .label = "q"}, other = {.seed = 5, .label = "k"};
    float A[3][48 * 96], B[3][48 * 48];
    ok(basis_seeded(A[0], B[0], &shape, &key));
    ok(basis_seeded(A[1], B[1], &shape, &key));
    ok(basis_seeded(A[2], B[2], &shape, &other));
    expect_orthonormal(A[0], B[0], &shape);
    cr_expect_arr_eq(A[0], A[1], sizeof A[0]);
    cr_expect_arr_eq(B[0], B[1], sizeof B[0]);
    cr_expect_neq(memcmp(A[0], A[2], sizeof A[0]), 0);
    shape.r = 49;
    refused(basis_seeded(A[0], B[0], &shape, &key), ERR_INPUT, "expected 1 to 48");
    shape.r = 0;
    refused(basis_seeded(A[0], B[0], &shape, &key), ERR_INPUT, "rank 0");
}

/* W = random, or of rank 3 and a little noise so that the Gram way is not good enough. */
static void check_weight(uint32_t m, uint32_t n, uint32_t r, bool poor)
{
    struct rng rng;
    struct basis_shape shape = {.d_out = m, .d_in = n, .r = r};
    float *W = calloc((size_t)m * n, sizeof *W);
    float *A = calloc((size_t)r * n, sizeof *A), *B = calloc((size_t)m * r, sizeof *B);
    double *x = calloc((size_t)m * n, sizeof *x), *sigma = calloc(m + n, 8),
           *super = calloc(m + n, 8);
    rng_init(&rng, "test", 3, "", m);
    for (uint32_t i = 0; i < m; i++)
        for (uint32_t j = 0; j < n; j++)
            W[(size_t)i * n + j] = poor ? (float)((i % 3 == j % 3) + 1e-6 * rng_normal(&rng))
                                        : (float)rng_normal(&rng);
    for (size_t i = 0; i < (size_t)m * n; i++)
        x[i] = W[i];
    cr_assert_eq(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', (int)m, (int)n, x, (int)n, sigma, NULL,
                                (int)m, NULL, (int)n, super),
                 0);
    ok(basis_of_weight(A, B, W, &shape));
    expect_orthonormal(A, B, &shape);
    for (uint32_t k = 0; k < r; k++) {
        double error = 0;
        for (uint32_t i = 0; i < m; i++) {
            double sum = 0;
            for (uint32_t j = 0; j < n; j++)
                sum += (double)W[(size_t)i * n + j] * A[(size_t)k * n + j];
            sum -= sigma[k] * B[(size_t)i * r + k];
            error += sum * sum;
        }
        cr_expect_lt(sqrt(error), 2e-7 * sigma[0], "W v %u: %g of %g", k, sqrt(error), sigma[0]);
    }
    free(W);
    free(A);
    free(B);
    free(x);
    free(sigma);
    free(super);
}

Test(basis, of_a_weight_are_its_leading_singular_vectors)
{
    check_weight(80, 48, 16, false);
    check_weight(48, 80, 48, false);
    check_weight(64, 64, 1, false);
}

Test(basis, of_a_poorly_conditioned_weight_too)
{
    check_weight(80, 48, 8, true);
    check_weight(48, 80, 8, true);
}
