/* Norms of combinations of low-rank terms, against dense sums by plain loops. */
#include "agg/algebra/norms.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { M = 33, N = 47, TERMS = 6, MOST = 12 };

static float B[TERMS][M * MOST], A[TERMS][MOST * N];
static struct lowrank_term term[TERMS];

static struct lowrank_stack random_terms(const uint32_t *rank, size_t count)
{
    struct rng rng;
    rng_init(&rng, "norms", count, "", 0);
    for (size_t t = 0; t < count; t++) {
        rng_fill_uniform(&rng, B[t], (size_t)M * rank[t], 1);
        rng_fill_uniform(&rng, A[t], (size_t)N * rank[t], 1);
        term[t] = (struct lowrank_term){.c = 0.5 + (double)t, .B = B[t], .A = A[t], .r = rank[t]};
    }
    return (struct lowrank_stack){.m = M, .n = N, .term = term, .count = count};
}

static double dense_norm(const struct lowrank_stack *s, const double *weight)
{
    double sum = 0;
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            double x = 0;
            for (size_t t = 0; t < s->count; t++)
                for (size_t l = 0; l < s->term[t].r; l++)
                    x += weight[t] * s->term[t].c * (double)s->term[t].B[i * s->term[t].r + l] *
                         (double)s->term[t].A[l * N + j];
            sum += x * x;
        }
    return sqrt(sum);
}

static void count_done(void *context, size_t t)
{
    ((unsigned *)context)[t]++;
}

Test(norms, both_ways_give_the_norms_of_the_dense_combinations)
{
    static const uint32_t ranks[2][TERMS] = {{1, 3, 2, 1, 4, 5}, {12, 7, 12, 9, 11, 12}};
    static const double weight[3 * TERMS] = {1,      1, 1, -1, 0, 0, /**/ 1, 1, 1, 0, -2, 0.25,
                                             /**/ 0, 0, 0, 0,  0, 1};
    for (size_t way = 0; way < 2; way++) {
        unsigned done[TERMS] = {0};
        double norm[3];
        struct lowrank_stack s = random_terms(ranks[way], TERMS);
        s.done = count_done;
        s.context = done;
        ok(norms_of(norm, &s, weight, 3));
        for (size_t j = 0; j < 3; j++) {
            double want = dense_norm(&s, weight + j * TERMS);
            cr_expect(fabs(norm[j] - want) < 1e-12 * want, "%zu, %zu: %.15g, dense %.15g", way, j,
                      norm[j], want);
        }
        for (size_t t = 0; t < TERMS; t++)
            cr_expect_gt(done[t], 0, "term %zu", t);
    }
}

Test(norms, terms_that_cancel_leave_at_most_1e_8_of_their_size)
{
    static const uint32_t ranks[2][2] = {{5, 5}, {12, 12}};
    for (size_t way = 0; way < 2; way++) {
        double norm[2], weight[4] = {1, -1, 1, 0};
        struct lowrank_stack s = random_terms(ranks[way], 2);
        term[1] = term[0];
        term[1].B = memcpy(B[1], B[0], sizeof B[0]);
        ok(norms_of(norm, &s, weight, 2));
        cr_expect_leq(norm[0], 1e-8 * norm[1], "%g of %g", norm[0], norm[1]);
    }
}

Test(norms, nothing_has_norm_zero)
{
    const struct lowrank_stack none = {.m = M, .n = N};
    double norm = 1;
    ok(norms_of(&norm, &none, &norm, 1));
    cr_expect_eq(norm, 0);
}
