/* The two passes on gradients of known spectrum. The members' G_k are dense here, the products that
 * members would send are plain loops, and the result is compared with the singular vectors that the
 * mean was built from and with an independent dgesvd. */
#include "agg/algebra/sketch.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MEMBERS = 3 };
static const double p[MEMBERS] = {0.5, 0.2, 0.3};

struct case_of {
    struct basis_shape shape;
    double *mean;            /* (d_out, d_in) sum p_k G_k */
    double *member[MEMBERS]; /* (d_out, d_in) */
    float *A, *B;            /* found */
    double sigma[64];        /* of the mean, by dgesvd */
    struct sketch_found found;
};

static void take(struct case_of *c)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, r = sketch_rank(&c->shape);
    c->mean = calloc(m * n, sizeof *c->mean);
    for (int k = 0; k < MEMBERS; k++)
        c->member[k] = calloc(m * n, sizeof *c->mean);
    c->A = calloc(r * n, sizeof *c->A);
    c->B = calloc(m * r, sizeof *c->B);
}

static void done(struct case_of *c)
{
    free(c->mean);
    for (int k = 0; k < MEMBERS; k++)
        free(c->member[k]);
    free(c->A);
    free(c->B);
}

/* mean = U diag(values) V^T of `rank` random orthonormal vectors; members differ from it by noise
 * that their weights cancel. */
static void spread(struct case_of *c, const double *values, uint32_t rank, double noise)
{
    size_t m = c->shape.d_out, n = c->shape.d_in;
    struct basis_shape full = {.d_out = (uint32_t)m, .d_in = (uint32_t)n, .r = rank};
    struct rng rng;
    float *V = calloc(rank * n, sizeof *V), *U = calloc(m * rank, sizeof *U);
    if (rank) ok(basis_seeded(V, U, &full, &(struct basis_key){.seed = 77, .label = "truth"}));
    rng_init(&rng, "noise", 5, "", rank);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double g = 0, drift[2] = {noise * rng_normal(&rng), noise * rng_normal(&rng)};
            for (size_t k = 0; k < rank; k++)
                g += values[k] * (double)U[i * rank + k] * (double)V[k * n + j];
            c->member[0][i * n + j] = g + drift[0];
            c->member[1][i * n + j] = g + drift[1];
            c->member[2][i * n + j] = g - (p[0] * drift[0] + p[1] * drift[1]) / p[2];
            c->mean[i * n + j] = g;
        }
    free(U);
    free(V);
}

/* out (m, q) = sum_k p_k G_k A^T, each member's part float32 as it travels. */
static void pass_1(float *out, const struct case_of *c, const float *A)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, q = sketch_width(&c->shape);
    for (size_t i = 0; i < m; i++)
        for (size_t l = 0; l < q; l++) {
            double sum = 0;
            for (int k = 0; k < MEMBERS; k++) {
                double sent = 0;
                for (size_t j = 0; j < n; j++)
                    sent += c->member[k][i * n + j] * (double)A[l * n + j];
                sum += p[k] * (double)(float)sent;
            }
            out[i * q + l] = (float)sum;
        }
}

/* out (q, n) = sum_k p_k B^T G_k */
static void pass_2(float *out, const struct case_of *c, const float *B)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, q = sketch_width(&c->shape);
    for (size_t l = 0; l < q; l++)
        for (size_t j = 0; j < n; j++) {
            double sum = 0;
            for (int k = 0; k < MEMBERS; k++) {
                double sent = 0;
                for (size_t i = 0; i < m; i++)
                    sent += c->member[k][i * n + j] * (double)B[i * q + l];
                sum += p[k] * (double)(float)sent;
            }
            out[l * n + j] = (float)sum;
        }
}

static void run(struct case_of *c)
{
    const struct basis_key key = {.seed = 11, .label = "layers.0.q_proj"};
    size_t m = c->shape.d_out, n = c->shape.d_in, q = sketch_width(&c->shape);
    float *probe = calloc(q * n, sizeof *probe), *Y = calloc(m * q, sizeof *Y);
    float *Q = calloc(m * q, sizeof *Q), *Z = calloc(q * n, sizeof *Z);
    sketch_probe(probe, &c->shape, &key);
    pass_1(Y, c, probe);
    ok(sketch_range(Q, Y, &c->shape, &key));
    pass_2(Z, c, Q);
    const struct sketch_pass pass = {.Q = Q, .Z = Z};
    ok(sketch_basis(c->A, c->B, &c->found, &pass, &c->shape, &key));
    free(probe);
    free(Y);
    free(Q);
    free(Z);
}

/* max |X^T X - I|, vector j at x[i * along + j * across]. */
static double crooked(const float *x, size_t d, size_t r, size_t along, size_t across)
{
    double worst = 0;
    for (size_t a = 0; a < r; a++)
        for (size_t b = 0; b < r; b++) {
            double sum = a == b ? -1 : 0;
            for (size_t i = 0; i < d; i++)
                sum += (double)x[i * along + a * across] * (double)x[i * along + b * across];
            worst = fmax(worst, fabs(sum));
        }
    return worst;
}

static void expect_orthonormal(const struct case_of *c)
{
    size_t r = sketch_rank(&c->shape);
    cr_expect_lt(crooked(c->B, c->shape.d_out, r, r, 1), 1e-6);
    cr_expect_lt(crooked(c->A, c->shape.d_in, r, 1, c->shape.d_in), 1e-6);
}

/* ||G - B (B^T G A^T) A||_F: the part of the mean gradient that no B R A can represent. */
static double missed(const struct case_of *c)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, r = sketch_rank(&c->shape);
    double *left = calloc(r * n, sizeof *left), *X = calloc(r * r, sizeof *X), sum = 0;
    for (size_t a = 0; a < r; a++)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                left[a * n + j] += (double)c->B[i * r + a] * c->mean[i * n + j];
    for (size_t a = 0; a < r; a++)
        for (size_t b = 0; b < r; b++)
            for (size_t j = 0; j < n; j++)
                X[a * r + b] += left[a * n + j] * (double)c->A[b * n + j];
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double x = c->mean[i * n + j];
            for (size_t a = 0; a < r; a++)
                for (size_t b = 0; b < r; b++)
                    x -= (double)c->B[i * r + a] * X[a * r + b] * (double)c->A[b * n + j];
            sum += x * x;
        }
    free(left);
    free(X);
    return sqrt(sum);
}

static void dense_values(double *sigma, const struct case_of *c)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, k = m < n ? m : n;
    double *x = calloc(m * n, sizeof *x), *super = calloc(k + 1, sizeof *super);
    memcpy(x, c->mean, m * n * sizeof *x);
    cr_assert_eq(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', (int)m, (int)n, x, (int)n, sigma, NULL,
                                (int)m, NULL, (int)n, super),
                 0);
    free(x);
    free(super);
}

/* |B_j . u| of the dense SVD's leading vectors, through what they mean: ||G A_j - sigma_j B_j||. */
static double off(const struct case_of *c, size_t j, double sigma)
{
    size_t m = c->shape.d_out, n = c->shape.d_in, r = sketch_rank(&c->shape);
    double error = 0;
    for (size_t i = 0; i < m; i++) {
        double sum = -sigma * (double)c->B[i * r + j];
        for (size_t l = 0; l < n; l++)
            sum += c->mean[i * n + l] * (double)c->A[j * n + l];
        error += sum * sum;
    }
    return sqrt(error);
}

Test(sketch, two_passes_find_the_singular_vectors_of_a_low_rank_mean_gradient)
{
    static const double values[12] = {9, 7, 5, 4, 3, 2, 1.5, 1, 0.5, 0.25, 0.1, 0.05};
    for (int wide = 0; wide < 2; wide++) {
        struct case_of c = {.shape = {wide ? 40 : 70, wide ? 70 : 40, 8}};
        take(&c);
        spread(&c, values, 12, 0.3); /* of rank 12 <= 8 + 10, whatever each member's own is */
        run(&c);
        expect_orthonormal(&c);
        dense_values(c.sigma, &c);
        for (size_t j = 0; j < 8; j++) {
            cr_expect_float_eq(c.sigma[j], values[j], 1e-6);
            cr_expect_lt(off(&c, j, c.sigma[j]), 2e-5, "vector %zu: %g", j, off(&c, j, c.sigma[j]));
        }
        cr_expect_float_eq(c.found.norm, sqrt(187.575), 1e-4);
        cr_expect_float_eq(c.found.tail, sqrt(0.25 + 0.0625 + 0.01 + 0.0025), 1e-4);
        cr_expect_eq(c.found.rank, 8);
        done(&c);
    }
}

Test(sketch, a_slowly_falling_spectrum_stays_within_the_bound_on_its_tail)
{
    double values[60], tail = 0;
    for (int i = 0; i < 60; i++)
        values[i] = 1 / (1.0 + i);
    struct case_of c = {.shape = {64, 90, 16}};
    take(&c);
    spread(&c, values, 60, 0.01);
    run(&c);
    expect_orthonormal(&c);
    for (int i = 16; i < 60; i++)
        tail += values[i] * values[i];
    double least = sqrt(tail), bound = sqrt(1 + 16.0 / (SKETCH_OVERSAMPLE - 1)) * least;
    cr_expect_gt(missed(&c), least * (1 - 1e-6));
    /* The bound is on the range's mean; cutting to r adds at most the tail itself. */
    cr_expect_lt(missed(&c), hypot(bound, least), "%g of %g", missed(&c), bound);
    done(&c);
}

Test(sketch, a_rank_over_both_sides_is_what_the_module_can_have)
{
    static const double values[6] = {3, 2, 1, 0.5, 0.25, 0.125};
    struct case_of c = {.shape = {6, 20, 64}};
    cr_assert_eq(sketch_rank(&c.shape), 6);
    cr_assert_eq(sketch_width(&c.shape), 6);
    take(&c);
    spread(&c, values, 6, 0.1);
    run(&c);
    expect_orthonormal(&c);
    cr_expect_lt(missed(&c), 1e-5);
    done(&c);
}

Test(sketch, directions_the_gradient_does_not_have_are_drawn)
{
    static const double values[3] = {5, 1, 0.01};
    for (uint32_t rank = 0; rank <= 3; rank++) {
        struct case_of c = {.shape = {30, 25, 8}}, again = {.shape = {30, 25, 8}};
        take(&c);
        take(&again);
        spread(&c, values, rank, 0);
        spread(&again, values, rank, 0);
        run(&c);
        run(&again);
        expect_orthonormal(&c);
        cr_expect_eq(c.found.rank, rank, "%u of %u", c.found.rank, rank);
        cr_expect_lt(missed(&c), 1e-5);
        cr_expect_arr_eq(c.A, again.A, 8 * 25 * sizeof(float));
        cr_expect_arr_eq(c.B, again.B, 30 * 8 * sizeof(float));
        for (size_t i = 0; i < 8; i++) { /* not unit vectors: no input is singled out */
            double largest = 0;
            for (size_t j = 0; j < 25; j++)
                largest = fmax(largest, fabs((double)c.A[i * 25 + j]));
            cr_expect_lt(largest, 0.95);
        }
        done(&c);
        done(&again);
    }
}

Test(sketch, the_scale_of_gradients_does_not_matter)
{
    static const double values[4] = {4, 3, 2, 1}, small[4] = {4e-12, 3e-12, 2e-12, 1e-12};
    struct case_of c = {.shape = {20, 24, 4}}, tiny = {.shape = {20, 24, 4}};
    take(&c);
    take(&tiny);
    spread(&c, values, 4, 0);
    spread(&tiny, small, 4, 0);
    run(&c);
    run(&tiny);
    cr_expect_lt(support_distance(tiny.A, c.A, 4 * 24), 1e-5);
    cr_expect_lt(support_distance(tiny.B, c.B, 20 * 4), 1e-5);
    done(&c);
    done(&tiny);
}

Test(sketch, values_that_are_not_finite_are_refused)
{
    const struct basis_shape shape = {4, 4, 2};
    const struct basis_key key = {.seed = 1, .label = "x"};
    float Y[16] = {[3] = NAN}, Q[16] = {[0] = 1, [5] = 1, [10] = 1, [15] = 1}, A[8], B[8];
    struct sketch_found found;
    refused(sketch_range(Q, Y, &shape, &key), ERR_INPUT, "not finite");
    const struct sketch_pass pass = {.Q = Q, .Z = Y};
    refused(sketch_basis(A, B, &found, &pass, &shape, &key), ERR_INPUT, "not finite");
}
