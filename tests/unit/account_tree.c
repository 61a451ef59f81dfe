#include "privacy/account/account.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

static double square_of(uint32_t leaves, uint32_t times, uint32_t apart)
{
    struct account_tree tree = {leaves, times, apart};
    struct account_event event;
    double square = 0;
    ok(account_tree_event(&event, &square, 3e5, &tree));
    cr_assert_float_eq(event.noise, 3e5 / sqrt(square), 1e-9);
    cr_assert_eq(event.sampling, 1);
    cr_assert_eq(event.count, 1);
    return square;
}

/* Every choice of leaves, node by node. */
static double square_plainly(uint32_t leaves, uint32_t times, uint32_t apart)
{
    double best = 0;
    for (uint32_t set = 1; set < 1u << leaves; set++) {
        uint32_t count = 0, last = 0;
        bool allowed = true;
        for (uint32_t i = 0; i < leaves; i++) {
            if (!(set >> i & 1)) continue;
            if (count && i - last <= apart) allowed = false;
            last = i;
            count++;
        }
        if (!allowed || count > times) continue;
        double sum = 0;
        uint32_t first = 0;
        for (uint32_t size = 1u << 16; size; size /= 2) {
            if (!(leaves & size)) continue;
            for (uint32_t below = 1; below <= size; below *= 2)
                for (uint32_t i = first; i < first + size; i += below) {
                    double c = __builtin_popcount(set >> i & ((1u << below) - 1));
                    sum += c * c;
                }
            first += size;
        }
        best = fmax(best, sum);
    }
    return best;
}

Test(account_tree, squared_sensitivities_are_the_published_ones)
{
    cr_assert_eq(square_of(8, 1, 7), 4);
    cr_assert_eq(square_of(9, 3, 3), 11);
    cr_assert_eq(square_of(7, 3, 2), 9);
    cr_assert_eq(square_of(24, 8, 2), 88);
    const uint32_t every[] = {3, 8, 11, 19};
    for (int i = 0; i < 4; i++) {
        double want = 0;
        for (uint32_t d = 0; d < 8; d++)
            if (every[i] >> d & 1) want += exp2(d) * (exp2(d + 1) - 1);
        cr_assert_eq(square_of(every[i], every[i], 0), want);
    }
    for (uint32_t leaves = 2; leaves < 100000; leaves *= 3)
        cr_assert_eq(square_of(leaves, 2, 0), 2 + 4 * floor(log2(leaves)));
}

Test(account_tree, they_are_those_of_every_choice_of_leaves)
{
    for (uint32_t leaves = 1; leaves <= 13; leaves++)
        for (uint32_t times = 1; times <= 5; times++)
            for (uint32_t apart = 0; apart <= 6; apart++)
                cr_assert_eq(square_of(leaves, times, apart), square_plainly(leaves, times, apart),
                             "%u %u %u", leaves, times, apart);
}

/* Where the exact search would be too long, an upper bound takes its place. */
Test(account_tree, a_large_tree_is_bounded_from_above)
{
    double exact = square_of(512, 40, 9), bound = square_of(1000000, 40, 9);
    cr_assert(bound >= exact);
    cr_assert_eq(square_of(1 << 19, 1 << 19, 0), exp2(19) * (exp2(20) - 1));
    cr_assert_eq(square_of(1000000, 1, 0), 20);
}

Test(account_tree, epsilons_of_single_participation_are_those_of_the_reference)
{
    static const struct {
        uint32_t leaves;
        double noise, delta, epsilon;
    } row[] = {{1600, 1.13, 1e-6, 18.709609894},
               {1600, 8.83, 1e-6, 1.773192450},
               {16, 2, 1e-5, 5.377728337},
               {100, 4, 1e-5, 2.958508859}};
    struct account_options rdp = {.engine = ACCOUNT_RDP};
    for (int i = 0; i < 4; i++) {
        struct account_event event;
        struct account_spent spent;
        ok(account_tree_event(&event, NULL, row[i].noise,
                              &(struct account_tree){.leaves = row[i].leaves}));
        ok(account_epsilon(&spent, &event, 1, row[i].delta, &rdp));
        cr_assert(fabs(spent.epsilon - row[i].epsilon) < 2e-9, "%.10g", spent.epsilon);
        ok(account_epsilon(&spent, &event, 1, row[i].delta, NULL));
        cr_assert(spent.epsilon < row[i].epsilon);
    }
}

Test(account_tree, sizes_out_of_range_are_refused)
{
    struct account_event event;
    refused(account_tree_event(&event, NULL, 1, &(struct account_tree){0}), ERR_INPUT,
            "tree of 0 leaves: expected 1 to 1000000");
    refused(account_tree_event(&event, NULL, 0, &(struct account_tree){.leaves = 8}), ERR_INPUT,
            "noise multiplier 0");
}
