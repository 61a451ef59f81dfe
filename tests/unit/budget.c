/* Ranks under a budget of bytes, compared with every possible choice of ranks. */
#include "agg/algebra/budget.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>

enum { K = 5 };

static const double sigma[3][K] = {{9, 3, 2, 0.5, 0}, {4, 3.9, 3.8, 1, 0.1}, {1, 0.2, 0.1, 0, 0}};

static struct budget_module module_of(size_t i, uint32_t m, uint32_t n)
{
    return (struct budget_module){.m = m, .n = n, .k = K, .sigma = sigma[i]};
}

static double lost(const uint32_t rank[3])
{
    double sum = 0;
    for (size_t i = 0; i < 3; i++)
        for (uint32_t j = rank[i]; j < K; j++)
            sum += sigma[i][j] * sigma[i][j];
    return sum;
}

Test(budget, is_spent_where_it_takes_the_most_error_away)
{
    const struct budget_module m[] = {module_of(0, 8, 8), module_of(1, 10, 6), module_of(2, 12, 4)};
    for (uint64_t units = 3; units <= 15; units++) { /* all directions cost 64 bytes */
        uint32_t rank[3], r[3];
        double best = 1e9;
        ok(budget_spend(rank, m, 3, 64 * units + 63));
        for (r[0] = 1; r[0] <= K; r[0]++)
            for (r[1] = 1; r[1] <= K; r[1]++)
                for (r[2] = 1; r[2] <= K; r[2]++)
                    if (r[0] + r[1] + r[2] <= units && lost(r) < best) best = lost(r);
        cr_expect_leq(rank[0] + rank[1] + rank[2], units);
        cr_expect(lost(rank) <= best + 1e-12, "%llu: %g, best %g", (unsigned long long)units,
                  lost(rank), best);
    }
}

Test(budget, weighs_what_a_direction_costs_and_keeps_nothing_that_is_zero)
{
    const struct budget_module m[] = {
        module_of(0, 800, 800), module_of(1, 10, 6), {.m = 900, .n = 900}};
    uint32_t rank[3];
    ok(budget_spend(rank, m, 3, 6400 + 4 * 64));
    cr_expect_eq(rank[0], 1, "its 3 costs a hundred times the other's 1");
    cr_expect_eq(rank[1], 4);
    cr_expect_eq(rank[2], 0, "nothing is there");
    ok(budget_spend(rank, m, 3, UINT64_MAX));
    cr_expect_eq(rank[0], 4);
    cr_expect_eq(rank[1], 5);
    refused(budget_spend(rank, m, 3, 6463), ERR_INPUT,
            "6463 bytes are too few for rank 1 of every module");
}
