/* How rows are dealt to simulated members. */
#include "sim/deal.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 1000, LABELS = 10, MEMBERS = 20 };

static uint32_t label[ROWS];

static struct deal_rows rows(void)
{
    for (uint32_t i = 0; i < ROWS; i++)
        label[i] = i * 7 % LABELS;
    return (struct deal_rows){ROWS, LABELS, label};
}

/* Every row belongs to one member, and every member has rows. */
static void check_parts(const struct deal *d)
{
    bool seen[ROWS] = {0};
    cr_assert_eq(d->first[0], 0);
    cr_assert_eq(d->first[d->members], ROWS);
    for (size_t i = 0; i < d->members; i++) {
        cr_assert_gt(d->first[i + 1], d->first[i], "member %zu has no row", i);
        for (size_t k = d->first[i]; k < d->first[i + 1]; k++) {
            cr_assert_lt(d->row[k], (uint32_t)ROWS);
            cr_assert_not(seen[d->row[k]], "row %u is dealt twice", d->row[k]);
            if (k > d->first[i]) cr_assert_gt(d->row[k], d->row[k - 1]);
            seen[d->row[k]] = true;
        }
    }
}

static struct deal deal_with(const struct deal_options *o)
{
    struct deal d;
    const struct deal_rows in = rows();
    ok(deal_make(&d, o, &in));
    check_parts(&d);
    return d;
}

static size_t labels_of(const struct deal *d, size_t member)
{
    bool has[LABELS] = {0};
    size_t n = 0;
    for (size_t k = d->first[member]; k < d->first[member + 1]; k++)
        has[label[d->row[k]]] = true;
    for (int i = 0; i < LABELS; i++)
        n += has[i];
    return n;
}

Test(deal, iid_parts_are_equal_in_size_and_follow_from_the_seed)
{
    struct deal_options o = {.kind = DEAL_IID, .members = MEMBERS, .seed = 1};
    struct deal a = deal_with(&o), b = deal_with(&o);
    o.seed = 2;
    struct deal c = deal_with(&o);
    for (size_t i = 0; i < MEMBERS; i++)
        cr_expect_eq(a.first[i + 1] - a.first[i], ROWS / MEMBERS);
    cr_expect_eq(memcmp(a.row, b.row, sizeof label), 0);
    cr_expect_neq(memcmp(a.row, c.row, sizeof label), 0);
    deal_close(&a);
    deal_close(&b);
    deal_close(&c);
}

Test(deal, sizes_are_log_normal)
{
    struct deal_options o = {.kind = DEAL_IID, .members = MEMBERS, .size_sigma = 1, .seed = 3};
    double sum = 0, squares = 0;
    size_t n = 0;
    for (; o.seed < 203; o.seed++) {
        struct deal d = deal_with(&o);
        double mean = 0, part[MEMBERS];
        for (size_t i = 0; i < MEMBERS; i++)
            mean += part[i] = log((double)(d.first[i + 1] - d.first[i]));
        for (size_t i = 0; i < MEMBERS; i++, n++) {
            double x = part[i] - mean / MEMBERS;
            sum += x;
            squares += x * x;
        }
        deal_close(&d);
    }
    /* The deviation from the mean of 20 draws has the variance 19 / 20 sigma^2. */
    cr_expect_float_eq(squares / (double)n * MEMBERS / (MEMBERS - 1), 1, 0.1);
    cr_expect_float_eq(sum, 0, 1e-6);
}

/* For one label the shares are Dirichlet(alpha, ..., alpha) over n members: mean 1 / n, variance
 * (1 / n) (1 - 1 / n) / (n alpha + 1). */
Test(deal, dirichlet_shares_have_the_mean_and_variance_of_the_distribution)
{
    enum { N = 5, DRAWS = 2000 };
    static uint32_t one[ROWS];
    const struct deal_rows in = {ROWS, 1, one};
    static const double alphas[] = {0.2, 1, 10};
    for (size_t a = 0; a < 3; a++) {
        double squares = 0;
        for (uint64_t seed = 0; seed < DRAWS; seed++) {
            const struct deal_options o = {
                .kind = DEAL_DIRICHLET, .members = N, .alpha = alphas[a], .seed = seed};
            struct deal d;
            ok(deal_make(&d, &o, &in));
            for (size_t i = 0; i < N; i++) {
                double share = (double)(d.first[i + 1] - d.first[i]) / ROWS - 1.0 / N;
                squares += share * share / (N * DRAWS);
            }
            deal_close(&d);
        }
        double want = 1.0 / N * (1 - 1.0 / N) / (N * alphas[a] + 1);
        cr_expect_float_eq(squares / want, 1, 0.08, "alpha %g: variance %g, expected %g", alphas[a],
                           squares, want);
    }
}

Test(deal, a_small_alpha_gives_each_label_to_few_members)
{
    struct deal_options o = {.kind = DEAL_DIRICHLET, .members = MEMBERS, .seed = 5};
    double mean[2] = {0};
    static const double alphas[2] = {0.01, 100};
    for (int a = 0; a < 2; a++) {
        o.alpha = alphas[a];
        struct deal d = deal_with(&o);
        for (size_t i = 0; i < MEMBERS; i++)
            mean[a] += (double)labels_of(&d, i) / MEMBERS;
        deal_close(&d);
    }
    cr_expect_lt(mean[0], 2);
    cr_expect_gt(mean[1], 9);
}

Test(deal, shards_give_each_member_a_few_labels_and_as_many_rows)
{
    const struct deal_options o = {.kind = DEAL_SHARDS, .members = MEMBERS, .shards = 2, .seed = 5};
    struct deal d = deal_with(&o);
    for (size_t i = 0; i < MEMBERS; i++) {
        cr_expect_eq(d.first[i + 1] - d.first[i], ROWS / MEMBERS);
        cr_expect_leq(labels_of(&d, i), 2, "a shard of 25 rows lies within one label of 100");
    }
    deal_close(&d);
}

Test(deal, a_field_makes_one_member_of_each_value)
{
    const struct deal_options o = {.kind = DEAL_FIELD, .members = LABELS, .seed = 5};
    struct deal d = deal_with(&o);
    for (size_t i = 0; i < LABELS; i++) {
        cr_expect_eq(labels_of(&d, i), 1);
        cr_expect_eq(label[d.row[d.first[i]]], i);
    }
    deal_close(&d);
}

Test(deal, refuses_more_parts_than_rows)
{
    struct deal d;
    const struct deal_rows in = rows();
    struct deal_options o = {.kind = DEAL_IID, .members = ROWS + 1};
    refused(deal_make(&d, &o, &in), ERR_INPUT, "1000 rows cannot be split into 1001 parts");
    o = (struct deal_options){.kind = DEAL_SHARDS, .members = 600, .shards = 2};
    refused(deal_make(&d, &o, &in), ERR_INPUT, "1200 parts");
}

Test(deal, prints_a_bar_for_each_member)
{
    static const char *const names[LABELS] = {"a", "b", "c", "d", "e", "f", "g", "h", "i", "j"};
    static const char *const ids[LABELS] = {"m0", "m1", "m2", "m3", "m4",
                                            "m5", "m6", "m7", "m8", "m9"};
    const struct deal_options o = {.kind = DEAL_FIELD, .members = LABELS};
    const struct deal_rows in = rows();
    struct deal d = deal_with(&o);
    struct bytes text = {.max = 1 << 16};
    ok(deal_print(&text, &d, &in, names, ids, 3));
    const char *shown = (const char *)text.data;
    cr_expect_not_null(strstr(shown, "m2"));
    cr_expect_null(strstr(shown, "m3"));
    cr_expect_not_null(strstr(shown, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA  c 100 %"), "%s",
                       shown);
    cr_expect_not_null(strstr(shown, "and 7 more members"));
    cr_expect_not_null(strstr(shown, "100 to 100 rows"));
    cr_expect_not_null(strstr(shown, ": 0.90 (0: equal"), "%s", shown);
    bytes_close(&text);
    deal_close(&d);
}
