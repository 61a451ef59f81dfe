/* The stack algebra against dense float64 loops, and the tail against an independent SVD (dgesvd of
 * the dense matrix; the code under test goes through QR and dgesdd). */
#include "agg/algebra/lowrank.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TERMS_MAX = 8 };

struct stack {
    struct lowrank_term term[TERMS_MAX];
    float *memory[3 * TERMS_MAX];
    size_t count;
    uint32_t m, n;
};

static float *random_floats(size_t n, uint64_t seed)
{
    struct rng rng;
    float *x = malloc(n * sizeof *x);
    rng_init(&rng, "test", seed, "", 0);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)rng_normal(&rng);
    return x;
}

static struct stack make(uint32_t m, uint32_t n, const uint32_t *ranks, size_t count)
{
    struct stack s = {.count = count, .m = m, .n = n};
    for (size_t k = 0; k < count; k++) {
        s.memory[2 * k] = random_floats((size_t)m * ranks[k], 2 * k + 1);
        s.memory[2 * k + 1] = random_floats((size_t)n * ranks[k], 2 * k + 2);
        s.term[k] = (struct lowrank_term){.c = 0.3 + 0.1 * (double)k,
                                          .B = s.memory[2 * k],
                                          .A = s.memory[2 * k + 1],
                                          .r = ranks[k]};
    }
    return s;
}

static struct lowrank_stack view(const struct stack *s)
{
    return (struct lowrank_stack){.m = s->m, .n = s->n, .term = s->term, .count = s->count};
}

static void drop(struct stack *s)
{
    for (size_t i = 0; i < 3 * TERMS_MAX; i++)
        free(s->memory[i]);
}

/* The definition, by loops: (m, n) row-major. */
static double *dense(const struct lowrank_stack *s)
{
    double *x = calloc((size_t)s->m * s->n, sizeof *x);
    for (size_t k = 0; k < s->count; k++) {
        const struct lowrank_term *t = &s->term[k];
        for (uint32_t i = 0; i < s->m; i++)
            for (uint32_t j = 0; j < s->n; j++) {
                double sum = 0;
                for (uint32_t l = 0; l < t->r; l++) {
                    double b = t->B[(size_t)i * t->r + l];
                    if (t->R) {
                        b = 0;
                        for (uint32_t h = 0; h < t->r; h++)
                            b += (double)t->B[(size_t)i * t->r + h] * t->R[(size_t)h * t->r + l];
                    }
                    sum += b * t->A[(size_t)l * s->n + j];
                }
                x[(size_t)i * s->n + j] += t->c * sum;
            }
    }
    return x;
}

static double norm(const double *x, size_t n)
{
    long double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += (long double)x[i] * x[i];
    return (double)sqrtl(sum);
}

static void expect_near(double got, double want, double relative)
{
    cr_expect(fabs(got - want) <= relative * fabs(want), "%.17g, expected %.17g", got, want);
}

/* Singular values of the dense matrix, largest first. */
static double *singular_values(const struct lowrank_stack *s)
{
    double *x = dense(s), *sigma = calloc(s->m, sizeof *sigma),
           *super = calloc(s->m, sizeof *super);
    int info = LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', (int)s->m, (int)s->n, x, (int)s->n, sigma,
                              NULL, (int)s->m, NULL, (int)s->n, super);
    cr_assert_eq(info, 0);
    free(x);
    free(super);
    return sigma;
}

static const uint32_t few[] = {4, 8, 3}, many[] = {16, 32, 8, 16}; /* R = 15 and 72 */

Test(lowrank, times_a_matrix_is_the_dense_sum_times_it)
{
    enum { W = 5 };
    struct stack s = make(40, 60, few, 3);
    struct lowrank_stack v = view(&s);
    float *right = random_floats(60 * W, 99);
    double *sum = dense(&v), x[60 * W], got[40 * W], want[40 * W] = {0};
    for (int i = 0; i < 60 * W; i++) /* (60, W) column-major */
        x[i] = right[i];
    for (int w = 0; w < W; w++)
        for (int i = 0; i < 40; i++)
            for (int j = 0; j < 60; j++)
                want[w * 40 + i] += sum[i * 60 + j] * x[w * 60 + j];
    ok(lowrank_times(got, &v, x, W));
    for (int i = 0; i < 40 * W; i++)
        got[i] -= want[i];
    cr_expect_lt(norm(got, 40 * W), 1e-12 * norm(want, 40 * W));
    free(right);
    free(sum);
    drop(&s);
}

Test(lowrank, dense_sum_norm_and_inner_product_agree_with_loops)
{
    for (int i = 0; i < 2; i++) {
        struct stack s = make(40, 60, i ? many : few, i ? 4 : 3);
        struct lowrank_stack v = view(&s);
        double *want = dense(&v), *got = calloc(40 * 60, sizeof *got), result;
        ok(lowrank_add_dense(got, &v));
        for (int j = 0; j < 40 * 60; j++)
            got[j] -= want[j];
        cr_expect_lt(norm(got, 40 * 60), 1e-12 * norm(want, 40 * 60));
        ok(lowrank_norm(&result, &v));
        expect_near(result, norm(want, 40 * 60), 1e-13);
        struct lowrank_stack first = {.m = 40, .n = 60, .term = s.term, .count = 1},
                             rest = {.m = 40, .n = 60, .term = s.term + 1, .count = v.count - 1};
        double *one = dense(&first), *two = dense(&rest), inner = 0;
        for (int j = 0; j < 40 * 60; j++)
            inner += one[j] * two[j];
        ok(lowrank_inner(&result, &first, &rest));
        expect_near(result, inner, 1e-11);
        free(want);
        free(got);
        free(one);
        free(two);
        drop(&s);
    }
}

/* Recompression to q against Eckart-Young, and what is stored against what was computed. */
static void check_cut(const struct lowrank_stack *v, uint32_t q, enum lowrank_split split)
{
    struct lowrank_svd svd = {0};
    double *sigma = singular_values(v), tail, rounding, want = 0;
    uint32_t kept;
    ok(lowrank_svd_open(&svd, v, 0));
    for (uint32_t i = 0; i < svd.k; i++)
        cr_expect(fabs(svd.sigma[i] - sigma[i]) <= 1e-12 * sigma[0], "sigma %u: %g, expected %g", i,
                  svd.sigma[i], sigma[i]);
    lowrank_cut(&kept, &tail, &svd, &(struct lowrank_cut){.rank_max = q});
    for (uint32_t i = kept; i < (v->m < v->n ? v->m : v->n); i++)
        want += sigma[i] * sigma[i];
    cr_expect(fabs(tail - sqrt(want)) <= 1e-12 * sigma[0], "tail %g, expected %g", tail,
              sqrt(want));
    float *B = calloc((size_t)v->m * kept + 1, sizeof *B);
    float *A = calloc((size_t)v->n * kept + 1, sizeof *A);
    ok(lowrank_split(B, A, &rounding, &svd, kept, split));
    struct lowrank_term out = {.c = -1, .B = B, .A = A, .r = kept};
    double *x = dense(v);
    struct lowrank_stack minus = {.m = v->m, .n = v->n, .term = &out, .count = 1};
    double *y = dense(&minus);
    for (size_t i = 0; i < (size_t)v->m * v->n; i++)
        x[i] += y[i];
    double error = norm(x, (size_t)v->m * v->n), expected = hypot(tail, rounding);
    /* Where nothing is cut the error is all rounding, which is known to a few percent. */
    cr_expect(fabs(error - expected) <= 1e-3 * tail + 0.1 * rounding + 1e-13 * sigma[0],
              "error %g, reported %g (tail %g, rounding %g)", error, expected, tail, rounding);
    cr_expect_lt(rounding, 1e-6 * svd.norm);
    for (uint32_t j = 0; j < kept; j++) {
        double largest = 0;
        for (uint32_t i = 0; i < v->m; i++)
            if (fabs(B[(size_t)i * kept + j]) > fabs(largest)) largest = B[(size_t)i * kept + j];
        cr_expect_gt(largest, 0, "the sign of left vector %u", j);
    }
    free(sigma);
    free(x);
    free(y);
    free(A);
    free(B);
    lowrank_svd_close(&svd);
}

Test(lowrank, what_recompression_drops_is_the_least_any_rank_q_pair_can)
{
    for (int i = 0; i < 4; i++) {
        struct stack s = make(i & 1 ? 60 : 40, i & 1 ? 40 : 60, i & 2 ? many : few, i & 2 ? 4 : 3);
        struct lowrank_stack v = view(&s);
        check_cut(&v, 7, LOWRANK_BALANCED);
        check_cut(&v, 7, LOWRANK_LEFT);
        check_cut(&v, 0, LOWRANK_BALANCED);
        drop(&s);
    }
}

Test(lowrank, takes_duplicates_zero_factors_and_ranks_over_the_dimension)
{
    const uint32_t over[] = {50, 3};
    struct stack s = make(40, 60, few, 3), wide = make(40, 60, over, 2);
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail;
    memset(s.memory[0], 0, 40 * 4 * sizeof(float)); /* a client that did no step */
    s.term[3] = s.term[1];                          /* and one who sent another's */
    s.count = 4;
    struct lowrank_stack v = view(&s), w = view(&wide);
    ok(lowrank_svd_open(&svd, &v, 0));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){0});
    cr_expect_eq(q, 11, "rank %u of a stack of 8 + 3 directions", q);
    cr_expect_lt(tail, 1e-13 * svd.norm);
    lowrank_svd_close(&svd);
    check_cut(&v, 0, LOWRANK_BALANCED);
    check_cut(&w, 0, LOWRANK_BALANCED);
    check_cut(&w, 5, LOWRANK_BALANCED);
    for (int k = 0; k < 4; k++)
        s.term[k].c = 0;
    ok(lowrank_svd_open(&svd, &v, 2));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){.error = 0.1});
    cr_expect_eq(q, 0);
    cr_expect_eq(svd.norm, 0);
    lowrank_svd_close(&svd);
    v.count = 0;
    ok(lowrank_svd_open(&svd, &v, 0));
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){0});
    cr_expect_eq(q, 0);
    lowrank_svd_close(&svd);
    drop(&s);
    drop(&wide);
}

Test(lowrank, rank_rules_cut_where_they_say)
{
    struct stack s = make(40, 60, few, 3);
    struct lowrank_stack v = view(&s);
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail, *sigma = singular_values(&v), total = 0, kept = 0, norm_all;
    ok(lowrank_svd_open(&svd, &v, 0));
    for (int i = 0; i < 15; i++)
        total += sigma[i] * sigma[i];
    norm_all = sqrt(total);
    lowrank_cut(&q, &tail, &svd, &(struct lowrank_cut){.error = 0.3});
    for (uint32_t i = 0; i < q; i++)
        kept += sigma[i] * sigma[i];
    cr_expect_leq(sqrt(total - kept), 0.3 * norm_all);
    cr_expect_gt(sqrt(total - kept + sigma[q - 1] * sigma[q - 1]), 0.3 * norm_all, "not the least");
    uint32_t spent, energy, both;
    lowrank_cut(&spent, &tail, &svd, &(struct lowrank_cut){.error = 0.3, .spent = 0.15 * norm_all});
    cr_expect_gt(spent, q);
    cr_expect_leq(tail, 0.15 * norm_all);
    lowrank_cut(&energy, &tail, &svd, &(struct lowrank_cut){.energy = 1 - 0.3 * 0.3});
    cr_expect_eq(energy, q, "energy is of squares");
    lowrank_cut(&both, &tail, &svd, &(struct lowrank_cut){.energy = 0.5, .error = 0.3});
    cr_expect_eq(both, q, "both must hold");
    lowrank_cut(&both, &tail, &svd, &(struct lowrank_cut){.error = 0.3, .rank_max = 2});
    cr_expect_eq(both, 2);
    lowrank_cut(&both, &tail, &svd, &(struct lowrank_cut){.error = 0.3, .spent = norm_all});
    cr_expect_eq(both, 15, "nothing left to spend");
    free(sigma);
    lowrank_svd_close(&svd);
    drop(&s);
}

Test(lowrank, head_norm_is_of_the_first_terms_alone)
{
    for (int i = 0; i < 2; i++) {
        struct stack s = make(40, 60, i ? many : few, 3);
        struct lowrank_stack v = view(&s), head = {.m = 40, .n = 60, .term = s.term, .count = 2};
        struct lowrank_svd svd = {0};
        double *x = dense(&head);
        ok(lowrank_svd_open(&svd, &v, 2));
        expect_near(svd.head_norm, norm(x, 40 * 60), 1e-13);
        free(x);
        lowrank_svd_close(&svd);
        drop(&s);
    }
}

Test(lowrank, a_square_matrix_between_the_factors_counts)
{
    struct stack s = make(40, 60, few, 3);
    s.memory[6] = random_floats(64, 77);
    s.term[1].R = s.memory[6];
    struct lowrank_stack v = view(&s);
    check_cut(&v, 0, LOWRANK_BALANCED);
    drop(&s);
}

Test(lowrank, the_pair_of_a_stack_is_its_terms_in_order_scaled_once)
{
    static const uint32_t ranks[] = {3, 1, 4};
    struct stack s = make(7, 9, ranks, 3);
    struct lowrank_stack v = view(&s);
    float B[7 * 8], A[8 * 9];
    lowrank_pair(B, A, &v);
    const struct lowrank_term one = {.c = 1, .B = B, .A = A, .r = 8};
    struct lowrank_stack pair = {.m = 7, .n = 9, .term = &one, .count = 1};
    double *got = dense(&pair), *want = dense(&v);
    for (int i = 0; i < 63; i++)
        cr_expect(fabs(got[i] - want[i]) < 2e-6, "%g, %g", got[i], want[i]);
    cr_expect_eq(A[3 * 9], s.term[1].A[0]);
    cr_expect_eq(B[3], (float)(s.term[1].c * (double)s.term[1].B[0]));
    free(got);
    free(want);
    drop(&s);
}
