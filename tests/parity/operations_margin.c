/* Factors in the margin of a weight (kernels/cuda/cuda.h): their results, and which object has the
 * margin. The CPU backend has no margins, so there the results alone are checked. */
#include "tests/support/operations_site.h"

/* Without a bias and dropout, factors in the margin need no kernel beside the product. */
static const char *const plain_path[] = {"expand_kernel"};

static void check_path(const struct factors *f, const struct test_weight *w, size_t tokens,
                       bool plain)
{
    expect_kernels(false, NULL, 0);
    check_whole(f, w, tokens, false);
    expect_kernels(plain, plain_path, 1);
}

static void close_last(struct factors *f)
{
    cr_assert_eq(held.low_rank[held.low_ranks - 1], f->l);
    be->low_rank_close(f->l);
    held.low_ranks--;
}

static void run_owners(void)
{
    static const struct spec gaps[] = {
        {0, 8, 5, 0, A | B, false}, {24, 40, 1, 2, A | B, false}, {128, 32, 9, 0, A | B | R, true}};
    static const struct spec later[] = {{8, 100, 2, 0, A | B, false}, {108, 60, 7, 0, A, false}};
    for (int odd = 0; odd < 2; odd++) {
        struct test_weight w = weight_of(WIDE_N + (size_t)odd, WIDE_K + (size_t)odd, false, BOTH);
        struct factors second, first = factors_of(&w, gaps, 3, 0);
        check_path(&first, &w, 20, false);
        second = factors_of(&w, wide_qv, 2, 7);
        check_path(&second, &w, 41, true);
        check_path(&first, &w, 33, false);
        close_last(&second);
        close_last(&first); /* its values must not stay in the margin */
        second = factors_of(&w, later, 2, 7);
        check_path(&second, &w, 20, false);
        first = factors_of(&w, gaps, 3, 0);
        check_path(&first, &w, 3, true);
        check_path(&second, &w, 70, false);
    }
}
Test(operations_margin, one_adapter_has_the_margin_of_a_weight)
{
    both(run_owners);
}

/* ---- two contexts of one device, as those of training and evaluation, share a weight */
static struct backend_context *other_context;
static char other_held[sizeof held];

static void swap_contexts(void)
{
    static char keep[sizeof held];
    struct backend_context *now = c;
    c = other_context;
    other_context = now;
    memcpy(keep, &held, sizeof held);
    memcpy(&held, other_held, sizeof held);
    memcpy(other_held, keep, sizeof held);
}

/* The margin stays with its owner until that one is closed, whichever context asks next. */
static void run_contexts(void)
{
    struct backend_options o = {.precision = precision, .threads = THREADS};
    struct test_weight w = weight_of(WIDE_N, WIDE_K, false, BOTH);
    struct factors here = factors_of(&w, wide_qkv, 3, 0), there;
    ok(be->open(&other_context, &o));
    memset(other_held, 0, sizeof other_held);
    swap_contexts();
    there = factors_of(&w, wide_qv, 2, 7);
    check_path(&there, &w, 41, true);
    swap_contexts();
    check_path(&here, &w, 33, false);
    close_last(&here);
    swap_contexts();
    check_path(&there, &w, 20, true); /* it does not move into the margin later */
    close_last(&there);
    there = factors_of(&w, wide_qv, 2, 7);
    check_path(&there, &w, 20, false);
    swap_contexts();
    here = factors_of(&w, wide_qkv, 3, 0);
    check_path(&here, &w, 9, true);
    swap_contexts();
    check_path(&there, &w, 70, false);
    end();
    swap_contexts();
    check_path(&here, &w, 9, true);
}
Test(operations_margin, one_of_two_contexts_has_the_margin_of_a_weight)
{
    both(run_contexts);
}

static void run_widths(void)
{
    static const struct {
        uint32_t rank, carry;
        bool fits;
    } all[] = {{1, 0, true},   {3, 0, true},   {8, 0, true},  {16, 0, true},
               {40, 0, true},  {40, 24, true}, {63, 1, true}, {64, 0, true},
               {65, 0, false}, {60, 5, false}, {0, 12, true}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        struct test_weight w = weight_of(88, 40, false, BOTH);
        struct spec s = {0, 88, all[i].rank, all[i].carry, A | B, false};
        struct factors f = factors_of(&w, &s, 1, 4);
        check_path(&f, &w, 19, !all[i].fits);
    }
    struct test_weight forward = weight_of(88, 40, false, BACKEND_FORWARD);
    struct test_weight kept = weight_of(88, 40, false, BOTH | BACKEND_KEEP);
    struct spec s = {0, 88, 8, 0, A | B, false};
    struct factors f = factors_of(&kept, &s, 1, 4);
    check_path(&f, &kept, 19, precision == DTYPE_BF16); /* the file has float32 */
    f = factors_of(&forward, &s, 1, 4); /* it has no margin, and opening it must not fail */
}
Test(operations_margin, factors_of_at_most_64_columns_lie_in_the_margin)
{
    both(run_widths);
}

static void run_one_use(void)
{
    static const uint32_t length[] = {9, 1, 30, 0, 12, 20, 5};
    static const struct {
        size_t first, tokens;
        float dropout;
    } all[] = {{0, 72, 0.0f}, {9, 68, 0.0f}, {0, 77, 0.2f}};
    struct test_weight w = weight_of(WIDE_N, WIDE_K, false, BOTH);
    struct factors f = factors_of(&w, wide_qkv, 3, 0);
    for (size_t i = 0; i < 3; i++) {
        struct rows_of_batch r = batch_of(length, 7, 1);
        r.now.dropout = all[i].dropout;
        rows_set(&r);
        const struct part part = {&f, all[i].first, all[i].tokens, true, 0, 0};
        expect_kernels(false, NULL, 0);
        check_site(&w, &r, &part, 1, i == 0);
        expect_kernels(true, plain_path, 1);
    }
    check_path(&f, &w, 77, false);
}
Test(operations_margin, a_part_of_a_batch_and_dropout_do_without_the_margin)
{
    both(run_one_use);
}
