/* Variances of prefix sums, computed by an independent program: (leaves, node deviation) ->
 * variance. */
#include "privacy/noise/tree.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

Test(tree, prefix_sums_have_the_published_variance)
{
    static const double want[] = {0, 1, 1, 2, 1, 2, 2, 3, 1}; /* of sigma^2, after so many leaves */
    enum { N = 1 << 16, SIGMA = 1000 };
    int64_t *sum = calloc(N, sizeof *sum);
    struct tree tree;
    tree_begin(&tree, N, SIGMA);
    for (int t = 1; t <= 8; t++) {
        double squares = 0;
        ok(tree_next(sum, &tree));
        for (int i = 0; i < N; i++)
            squares += (double)sum[i] * (double)sum[i] / N / SIGMA / SIGMA;
        cr_expect_lt(fabs(squares / want[t] - 1), 6 * sqrt(2.0 / N), "leaf %d: %g, chance 2e-9", t,
                     squares);
    }
    tree_close(&tree);
    free(sum);
}

/* Leaf 2's prefix has leaf 1's node no more: what is known of one tells nothing of the other. */
Test(tree, a_node_that_gives_way_is_taken_out)
{
    enum { N = 1 << 16 };
    int64_t *sum = calloc(N, sizeof *sum), *first = calloc(N, sizeof *first);
    struct tree tree;
    double product = 0;
    tree_begin(&tree, N, 1 << 20);
    ok(tree_next(sum, &tree));
    memcpy(first, sum, N * sizeof *sum);
    ok(tree_next(sum, &tree));
    for (int i = 0; i < N; i++)
        product += ldexp((double)first[i], -20) * ldexp((double)sum[i], -20);
    cr_expect_lt(fabs(product), 6 * sqrt(N), "chance 2e-9: %g", product);
    ok(tree_next(sum, &tree)); /* leaf 3 keeps leaf 2's node */
    cr_expect_not_null(tree.node[1]);
    cr_expect_not_null(tree.node[0]);
    tree_close(&tree);
    tree_close(&tree);
    free(sum);
    free(first);
}
