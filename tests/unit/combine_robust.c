/* Robust rules over adapters, against dense float64. Loops compute the change of each adapter over
 * all modules, and the definition of the rule is applied to these changes. */
#include "agg/combine/combine.h"

#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ADAPTERS = 5, OUT = 6, IN = 8, VALUES = 2 * OUT * IN };
static const uint32_t rank_of[ADAPTERS] = {4, 2, 3, 2, 5};
static const double weight[ADAPTERS] = {3, 1, 2, 2, 2}, sum_of_weights = 10;
static char dir[SUPPORT_PATH_BYTES], path_of[ADAPTERS][SUPPORT_PATH_BYTES + 64];
static const char *paths[ADAPTERS];
static double change[ADAPTERS][VALUES]; /* what each adds to both modules, dense */

/* Adapter k: modules k and q, scale 2; the wild one is `size` times as large. With `turned`, every
 * pair is (B Q, Q^-1 A) for a diagonal Q that is no rotation. */
static void write_adapter(int k, double size, bool turned)
{
    struct adapter_file_module m[2];
    float x[2][128];
    uint32_t r = rank_of[k];
    memset(change[k], 0, sizeof change[k]);
    for (int i = 0; i < 2; i++) {
        float *A = x[i], *B = x[i] + 64;
        struct rng rng;
        rng_init(&rng, "test", (uint64_t)k, i ? "q" : "k", 0);
        rng_fill_uniform(&rng, x[i], 128, 1);
        for (uint32_t l = 0; l < r; l++) {
            float turn = turned ? (float)(1 << (l + 1)) : 1; /* exact */
            for (int j = 0; j < IN; j++)
                A[l * IN + j] /= turn;
            for (int row = 0; row < OUT; row++)
                B[(uint32_t)row * r + l] *= (float)size * turn;
        }
        for (int row = 0; row < OUT; row++)
            for (int j = 0; j < IN; j++)
                for (uint32_t l = 0; l < r; l++)
                    change[k][(i * OUT + row) * IN + j] +=
                        2 * (double)B[(uint32_t)row * r + l] * (double)A[l * IN + j];
        m[i] = (struct adapter_file_module){.name = i ? "q" : "k", .rank = r, .alpha = 2.0 * r};
        m[i].factor[0] = (struct adapter_file_factor){.f32 = A, .rows = r, .cols = IN};
        m[i].factor[1] = (struct adapter_file_factor){.f32 = B, .rows = OUT, .cols = r};
    }
    snprintf(path_of[k], sizeof path_of[k], "%s/%d", dir, k);
    paths[k] = path_of[k];
    ok(adapter_file_write_peft(path_of[k], &(struct adapter_file_meta){0}, m, 2, true));
}

static void begin(void)
{
    support_dir_make(dir);
    for (int k = 0; k < ADAPTERS; k++)
        write_adapter(k, k == 3 ? 40 : 1, false);
}

static void end(void)
{
    support_dir_remove(dir);
}
TestSuite(combine_robust, .init = begin, .fini = end);

static struct combine opened(const char *word)
{
    static struct method_options rule;
    struct combine c = {0};
    char scratch[SUPPORT_PATH_BYTES + 64];
    snprintf(scratch, sizeof scratch, "%s/scratch", dir);
    const struct combine_options o = {.method = method_find("flora"),
                                      .options = &rule,
                                      .path = paths,
                                      .weight = weight,
                                      .count = ADAPTERS,
                                      .scratch = scratch};
    ok(method_options_parse(&rule, o.method, &word, 1));
    ok(combine_open(&c, &o));
    for (size_t i = 0; i < c.count; i++) { /* the report is of what the rule left */
        struct combine_verified v;
        ok(combine_verify(&v, &c, i, NULL));
        cr_expect(fabs(v.norm - c.report.row[i].update_norm) < 1e-12 * v.norm);
        cr_expect_lt(v.error, 1e-6 * v.norm);
    }
    return c;
}

static double norm_of(const double *x)
{
    double sum = 0;
    for (int i = 0; i < VALUES; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

Test(combine_robust, norms_over_the_bound_are_cut_over_all_modules_together)
{
    struct combine c = opened("robust=norm");
    double norm[ADAPTERS], median = 0;
    for (int k = 0; k < ADAPTERS; k++)
        norm[k] = norm_of(change[k]);
    for (int k = 0; k < ADAPTERS; k++) {
        int smaller = 0;
        for (int j = 0; j < ADAPTERS; j++)
            smaller += norm[j] < norm[k];
        if (smaller == ADAPTERS / 2) median = norm[k];
    }
    for (int k = 0; k < ADAPTERS; k++) {
        double want = weight[k] / sum_of_weights * fmin(1, median / norm[k]);
        cr_expect_float_eq(c.p[k], want, 1e-12, "adapter %d: %g, %g", k, c.p[k], want);
        cr_expect_float_eq(c.share[k], weight[k] / sum_of_weights, 1e-15);
    }
    combine_close(&c);
}

Test(combine_robust, krum_drops_the_one_far_from_all)
{
    struct combine c = opened("robust=krum");
    for (int k = 0; k < ADAPTERS; k++) /* of five it bears one */
        cr_expect_float_eq(c.p[k], k == 3 ? 0 : weight[k] / 8, 1e-12, "adapter %d: %g", k, c.p[k]);
    combine_close(&c);
}

/* At the weighted geometric median z the pull of all is in balance: sum w_k (D_k - z) / ||D_k - z||
 * vanishes. */
Test(combine_robust, the_geometric_median_is_where_all_pulls_balance)
{
    struct combine c = opened("robust=geometric");
    double z[VALUES] = {0}, pull[VALUES] = {0}, sum = 0;
    for (int k = 0; k < ADAPTERS; k++)
        for (int i = 0; i < VALUES; i++)
            z[i] += c.p[k] * change[k][i];
    for (int k = 0; k < ADAPTERS; k++) {
        double away[VALUES];
        for (int i = 0; i < VALUES; i++)
            away[i] = change[k][i] - z[i];
        for (int i = 0; i < VALUES; i++)
            pull[i] += weight[k] * away[i] / norm_of(away);
        sum += c.p[k];
    }
    cr_expect_float_eq(sum, 1, 1e-12);
    cr_expect_lt(norm_of(pull), 1e-6 * sum_of_weights, "%g", norm_of(pull));
    cr_expect_lt(c.p[3], 0.05);
    combine_close(&c);
}

Test(combine_robust, another_gauge_of_the_same_adapters_changes_nothing)
{
    static const char *const rules[] = {"robust=norm", "robust=krum", "robust=geometric"};
    double before[3][ADAPTERS];
    for (int r = 0; r < 3; r++) {
        struct combine c = opened(rules[r]);
        memcpy(before[r], c.p, sizeof before[r]);
        combine_close(&c);
    }
    for (int k = 0; k < ADAPTERS; k++)
        write_adapter(k, k == 3 ? 40 : 1, true);
    for (int r = 0; r < 3; r++) {
        struct combine c = opened(rules[r]);
        for (int k = 0; k < ADAPTERS; k++)
            cr_expect_float_eq(c.p[k], before[r][k], 1e-9, "%s: adapter %d", rules[r], k);
        combine_close(&c);
    }
}

Test(combine_robust, cosines_are_those_of_what_adapters_do)
{
    char scratch[SUPPORT_PATH_BYTES + 64];
    snprintf(scratch, sizeof scratch, "%s/scratch", dir);
    const struct combine_options o = {.method = method_find("flora"),
                                      .path = paths,
                                      .count = ADAPTERS,
                                      .compare = true,
                                      .scratch = scratch};
    struct combine c = {0};
    double sum = 0, least = 1;
    ok(combine_open(&c, &o));
    for (int j = 0; j < ADAPTERS; j++)
        for (int k = 0; k < j; k++) {
            double inner = 0;
            for (int i = 0; i < VALUES; i++)
                inner += change[j][i] * change[k][i];
            inner /= norm_of(change[j]) * norm_of(change[k]);
            sum += inner;
            least = fmin(least, inner);
        }
    cr_expect_eq(c.compared[2].pairs, 10);
    cr_expect_float_eq(c.compared[2].cosine_mean, sum / 10, 1e-12);
    cr_expect_float_eq(c.compared[2].cosine_least, least, 1e-12);
    cr_expect_eq(c.compared[0].pairs, 10);
    cr_expect_float_eq(c.p[3], 0.2, 1e-15, "looking changes nothing");
    combine_close(&c);
}

Test(combine_robust, rules_that_look_at_single_values_are_refused)
{
    struct method_options rule;
    const char *const word[] = {"robust=median"};
    refused(method_options_parse(&rule, method_find("flora"), word, 1), ERR_INPUT,
            "expected norm, krum or geometric");
}
