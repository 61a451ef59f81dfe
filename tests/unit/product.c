/* The exact mean of products against the definition by loops: slices, absent members, weight that
 * a robust rule removed, a step of the server. */
#include "agg/methods/product.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { M = 9, N = 14, R = 6, SIZE = M * N, MEMBERS = 4 };

static struct adapter_file_module made(uint32_t rank, double scale, uint64_t seed)
{
    struct adapter_file_module m = {
        .name = "q", .d_out = M, .d_in = N, .rank = rank, .scale = scale};
    struct rng rng;
    rng_init(&rng, "product", seed, "", 0);
    float *v = calloc((size_t)rank * (M + N), sizeof *v);
    for (size_t i = 0; i < (size_t)rank * (M + N); i++)
        v[i] = (float)rng_normal(&rng);
    m.factor[ADAPTER_FILE_A] = (struct adapter_file_factor){.f32 = v, .rows = rank, .cols = N};
    m.factor[ADAPTER_FILE_B] =
        (struct adapter_file_factor){.f32 = v + (size_t)rank * N, .rows = M, .cols = rank};
    return m;
}

/* sum += c B[:, from:] A[from:] */
static void add(double *sum, const struct adapter_file_module *m, double c, uint32_t from)
{
    for (size_t i = 0; i < M; i++)
        for (size_t l = from; l < m->rank; l++)
            for (size_t j = 0; j < N; j++)
                sum[i * N + j] += c * m->scale *
                                  (double)m->factor[ADAPTER_FILE_B].f32[i * m->rank + l] *
                                  (double)m->factor[ADAPTER_FILE_A].f32[l * N + j];
}

static double norm(const double *x)
{
    double sum = 0;
    for (size_t i = 0; i < SIZE; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

static void expect_sum(const struct product *p, const double *want, const char *what)
{
    double got[SIZE] = {0};
    ok(lowrank_add_dense(got, &p->stack));
    for (size_t i = 0; i < SIZE; i++)
        got[i] -= want[i];
    cr_expect(norm(got) < 1e-12 * norm(want), "%s: off by %g of %g", what, norm(got), norm(want));
}

/* Ranks 2, 6 and 4 of 6; the third member sent nothing; a robust rule removed the share `lost`. */
static void check(double lost)
{
    static const double share[MEMBERS] = {0.4, 0.1, 0.2, 0.3};
    static const uint32_t rank[MEMBERS] = {2, 6, 0, 4};
    struct adapter_file_module old = made(R, 1.5, 9), own[MEMBERS];
    const struct adapter_file_module *update[MEMBERS] = {0};
    double p[MEMBERS];
    for (size_t k = 0; k < MEMBERS; k++) {
        p[k] = share[k] * (1 - lost);
        if (!rank[k]) continue;
        own[k] = made(rank[k], 1 + 0.5 * (double)k, k);
        update[k] = &own[k];
    }
    const struct method_round round = {
        .module = &old, .update = update, .p = p, .count = MEMBERS, .server_lr = 1};
    for (int rest = PRODUCT_FRESH; rest <= PRODUCT_GONE; rest++) {
        struct product x;
        double want[SIZE] = {0};
        for (size_t k = 0; k < MEMBERS; k++) {
            if (update[k]) add(want, update[k], p[k], 0);
            if (rest == PRODUCT_STAYS || (rest == PRODUCT_GONE && !update[k]))
                add(want, &old, p[k], rank[k]);
        }
        if (rest != PRODUCT_FRESH) add(want, &old, lost, 0);
        ok(product_open(&x, &round, (enum product_rest)rest, 1));
        cr_expect_eq(x.sent, 3);
        expect_sum(&x, want, "the mean");
        product_close(&x);
    }
    /* old + 0.7 (X - old) + momentum */
    struct adapter_file_module v = made(2, 0.3, 20);
    const struct lowrank_term momentum = product_pair(&v, 1);
    struct method_round step = round;
    struct product x;
    double want[SIZE] = {0};
    step.server_lr = 0.7;
    step.momentum = &momentum;
    for (size_t k = 0; k < MEMBERS; k++) {
        if (update[k]) add(want, update[k], 0.7 * p[k], 0);
        add(want, &old, 0.7 * p[k], rank[k]);
    }
    add(want, &old, 0.7 * lost + 0.3, 0);
    add(want, &v, 1, 0);
    ok(product_open(&x, &step, PRODUCT_STAYS, 0));
    product_server_step(&x, &step);
    expect_sum(&x, want, "the server's step");
    product_close(&x);
    free((void *)(uintptr_t)old.factor[ADAPTER_FILE_A].f32);
    free((void *)(uintptr_t)v.factor[ADAPTER_FILE_A].f32);
    for (size_t k = 0; k < MEMBERS; k++)
        if (update[k]) free((void *)(uintptr_t)own[k].factor[ADAPTER_FILE_A].f32);
}

Test(product, is_the_mean_of_what_members_run_whatever_they_hold)
{
    check(0);
}

Test(product, what_a_robust_rule_takes_away_is_the_states_or_nobodys)
{
    check(0.25);
}
