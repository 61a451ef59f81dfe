/* Robust rules against dense float64: inner products, the rules, and the published state when some
 * members send faulty updates. */
#include "agg/round/method_robust.h"

#include "agg/round/method_gram.h"
#include "tests/support/method_changes.h"

#include <math.h>

TestSuite(method_robust, .init = make_dir, .fini = remove_dir);

enum { CROWD = 9 };

static double far_off(const double *x, const double *y)
{
    double sum = 0;
    for (size_t j = 0; j < ALL; j++)
        sum += (x[j] - y[j]) * (x[j] - y[j]);
    return sqrt(sum) / sqrt(inner(y, y));
}

/* Round 1 without a rule, so that state 2 is one to start from; then round 2's updates. Of rolora
 * round 2 trains A. */
static struct method_next second_round(const struct method *m, struct contribution *c,
                                       const char *const *option, size_t count)
{
    struct method_report report = {0};
    struct method_start start = begin(m);
    start.option = option;
    start.option_count = count;
    ok(method_start(m, at("state", 1), &start));
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    method_report_close(&report);
    return gather_round(c, m, 2);
}

Test(method_robust, inner_products_are_those_of_the_dense_changes)
{
    static double D[MEMBERS][ALL];
    static const unsigned by_name[MEMBERS] = {1, 3, 2, 0}; /* alpha, bravo, charlie, delta */
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_next next = second_round(m, c, NULL, 0);
        struct method_cohort cohort = {0};
        double total[MEMBERS * MEMBERS] = {0}, squares[MEMBERS] = {0};
        if (m->truncates || m->keeps) continue;
        for (unsigned k = 0; k < MEMBERS; k++)
            change_of(D[k], m, 2, by_name[k]);
        ok(method_cohort_open(&cohort, m, &next, /*memory*/ true));
        for (size_t i = 0; i < MODULES; i++) {
            struct method_view view = {0};
            struct method_round round = {0};
            double gram[MEMBERS * MEMBERS], square[MEMBERS];
            ok(method_view_open(&view, &round, &cohort, i));
            ok(method_gram(gram, &round, m));
            ok(method_gram_norms(square, &round, m));
            for (int j = 0; j < MEMBERS * MEMBERS; j++)
                total[j] += gram[j];
            for (int j = 0; j < MEMBERS; j++)
                squares[j] += square[j];
            method_view_close(&view, &cohort);
        }
        for (int j = 0; j < MEMBERS; j++)
            for (int k = 0; k < MEMBERS; k++) {
                double want = inner(D[j], D[k]);
                double size = sqrt(inner(D[j], D[j]) * inner(D[k], D[k]));
                cr_expect_lt(fabs(total[j * MEMBERS + k] - want), 1e-11 * size,
                             "%s: <%d, %d> = %.15g, dense %.15g", *name, j, k,
                             total[j * MEMBERS + k], want);
                if (j == k) cr_expect_lt(fabs(squares[j] - want), 1e-11 * size);
            }
        method_cohort_close(&cohort);
    }
}

/* ---- the published state, compared with a dense computation of the rule ---- */

/* sum_k share_k D_k of round 2 for shares by contribution index. */
static void combine(double *out, const struct method *m, const double *share)
{
    static double D[ALL];
    memset(out, 0, ALL * sizeof *out);
    for (unsigned k = 0; k < MEMBERS; k++) {
        change_of(D, m, 2, k);
        for (size_t j = 0; j < ALL; j++)
            out[j] += share[k] * D[j];
    }
}

static void expect_published(const struct method *m, const double *share, const char *what)
{
    static double want[ALL], is[ALL];
    combine(want, m, share);
    published(is, m, 2);
    cr_expect_lt(far_off(is, want), 2e-5, "%s, %s: off by %g", m->name, what, far_off(is, want));
}

static bool sums_products(const struct method *m)
{
    return m->exact && !m->truncates;
}

Test(method_robust, norms_above_the_bound_are_cut_to_it)
{
    static double D[ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_report report = {0};
        double norms[MEMBERS], sorted[MEMBERS], share[MEMBERS];
        const char *option[] = {"robust=norm"};
        if (!sums_products(m)) continue;
        struct method_next next = second_round(m, c, option, 1);
        /* the first round was bounded as well: only state 2 is looked at */
        ok(method_next(&report, m, at("state", 3), &next));
        for (unsigned k = 0; k < MEMBERS; k++) {
            change_of(D, m, 2, k);
            norms[k] = sorted[k] = sqrt(inner(D, D));
        }
        for (int i = 0; i < MEMBERS; i++)
            for (int j = 0; j + 1 < MEMBERS; j++)
                if (sorted[j] > sorted[j + 1]) {
                    double x = sorted[j];
                    sorted[j] = sorted[j + 1], sorted[j + 1] = x;
                }
        double bound = (sorted[1] + sorted[2]) / 2;
        for (unsigned k = 0; k < MEMBERS; k++)
            share[k] = weights[k] / total_weight * (norms[k] > bound ? bound / norms[k] : 1);
        expect_published(m, share, "norm");
        cr_assert_eq(report.member_count, MEMBERS);
        for (size_t r = 0; r < MEMBERS; r++)
            for (unsigned k = 0; k < MEMBERS; k++) {
                if (strcmp(report.member[r].member, member_names[k]) != 0) continue;
                cr_expect(fabs(report.member[r].norm - norms[k]) < 1e-9 * norms[k]);
                cr_expect(fabs(report.member[r].weight - share[k]) < 1e-9);
            }
        method_report_close(&report);
    }
}

Test(method_robust, a_bound_that_is_given_holds)
{
    static double is[ALL];
    const struct method *m = method_find("flora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    const char *option[] = {"robust=norm", "robust_norm=0.001"};
    struct method_next next = second_round(m, c, option, 2);
    ok(method_next(&report, m, at("state", 3), &next));
    published(is, m, 2);
    cr_expect_leq(sqrt(inner(is, is)), 0.001 * (1 + 1e-5));
    cr_expect_gt(inner(is, is), 0);
    method_report_close(&report);
}

/* z is the weighted geometric median where sum w_k (z - D_k) / ||z - D_k|| = 0. */
Test(method_robust, what_is_published_is_the_geometric_median)
{
    static double z[ALL], D[ALL], pull[ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_report report = {0};
        const char *option[] = {"robust=geometric"};
        if (!sums_products(m)) continue;
        struct method_next next = second_round(m, c, option, 1);
        next.contribution = c;
        for (int k = 0; k < MEMBERS; k++) /* 5 of 11 leave the median at no member */
            c[k].weight = 4 + k;
        ok(method_next(&report, m, at("state", 3), &next));
        published(z, m, 2);
        memset(pull, 0, sizeof pull);
        for (unsigned k = 0; k < MEMBERS; k++) {
            double away = 0;
            change_of(D, m, 2, k);
            for (size_t j = 0; j < ALL; j++)
                away += (z[j] - D[j]) * (z[j] - D[j]);
            for (size_t j = 0; j < ALL; j++)
                pull[j] += (4 + k) / 22.0 * (z[j] - D[j]) / sqrt(away);
        }
        cr_expect_lt(sqrt(inner(pull, pull)), 1e-4, "%s: %g", *name, sqrt(inner(pull, pull)));
        method_report_close(&report);
    }
}

static void sort(double *x, int n)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j + 1 < n; j++)
            if (x[j] > x[j + 1]) {
                double y = x[j];
                x[j] = x[j + 1], x[j + 1] = y;
            }
}

Test(method_robust, medians_and_trimmed_means_are_those_of_every_value)
{
    static const char *const names[] = {"fed-sb", "ffa", "rolora"};
    for (int which = 0; which < 6; which++) {
        const struct method *m = method_find(names[which / 2]);
        const char *option[] = {which % 2 ? "robust=trimmed" : "robust=median"};
        int f = m->factors(2) & METHOD_R ? 2 : m->factors(2) & METHOD_A ? 0 : 1;
        struct contribution c[MEMBERS];
        struct method_report report = {0};
        struct method_next next = second_round(m, c, option, 1);
        struct adapter_file old = {0}, now = {0}, u[MEMBERS] = {0};
        ok(method_next(&report, m, at("state", 3), &next));
        ok(adapter_file_open(&old, at("state", 2)));
        ok(adapter_file_open(&now, at("state", 3)));
        for (unsigned k = 0; k < MEMBERS; k++)
            ok(adapter_file_open(&u[k], at("update", k)));
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_factor *x = &now.module[i].factor[f];
            for (size_t j = 0; j < (size_t)x->rows * x->cols; j++) {
                double v[MEMBERS];
                for (unsigned k = 0; k < MEMBERS; k++) {
                    const struct adapter_file_factor *own = &u[k].module[i].factor[f];
                    size_t row = j / x->cols, col = j % x->cols;
                    v[k] = row < own->rows && col < own->cols
                               ? (double)own->f32[row * own->cols + col]
                               : (double)old.module[i].factor[f].f32[j];
                }
                sort(v, MEMBERS); /* of four, trimming 0.2 takes one at each end, as the median */
                cr_expect_eq(x->f32[j], (float)((v[1] + v[2]) / 2));
            }
        }
        for (unsigned k = 0; k < MEMBERS; k++)
            adapter_file_close(&u[k]);
        adapter_file_close(&old);
        adapter_file_close(&now);
        method_report_close(&report);
    }
}

/* ---- nine members, some of them faulty ---- */

enum wrong { HONEST, LOUD, FLIPPED, COLLUDING };

/* A common change plus noise of the member. `wrong` makes it 1000 times as large, multiplies it by
 * -3, or replaces it by one change that all colluding members send. */
static void send_crowd(const struct method *m, unsigned k, enum wrong wrong, bool turned)
{
    static char member[CROWD][8];
    struct adapter_file_module x[MODULES] = {0};
    unsigned factors = m->factors(1);
    uint32_t r = 4;
    snprintf(member[k], sizeof member[k], "m%u", k);
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "r1",
                                     .method = m->name,
                                     .base = base,
                                     .frozen = m->frozen ? frozen_digest : NULL,
                                     .member = member[k],
                                     .round = 1,
                                     .alpha = r};
    for (size_t i = 0; i < MODULES; i++) {
        const uint32_t rows[] = {r, modules[i].d_out, r}, cols[] = {modules[i].d_in, r, r};
        x[i].name = modules[i].name;
        x[i].rank = r;
        for (int f = 0; f < 3; f++) {
            struct rng common, own;
            if (!(factors & 1u << f)) continue;
            float *v = calloc((size_t)rows[f] * cols[f], sizeof *v);
            rng_init(&common, wrong == COLLUDING ? "evil" : "common", i, "", (uint32_t)f);
            rng_init(&own, "own", i, member[k], (uint32_t)f);
            for (size_t j = 0; j < (size_t)rows[f] * cols[f]; j++) {
                double big = f == 0               ? 1
                             : wrong == LOUD      ? 1000
                             : wrong == FLIPPED   ? -3
                             : wrong == COLLUDING ? 4
                                                  : 1;
                v[j] = (float)(big * 0.1 * (rng_normal(&common) + 0.3 * rng_normal(&own)));
                if (turned && f == 0) v[j] /= j / cols[f] == 0 ? 64 : 0.25f; /* Q^-1 A */
                if (turned && f == 1) v[j] *= j % r == 0 ? 64 : 0.25f;       /* B Q */
            }
            x[i].factor[f] = (struct adapter_file_factor){v, rows[f], cols[f], NULL};
        }
    }
    ok(adapter_file_write(at("crowd", k), &meta, x, MODULES, true));
    for (size_t i = 0; i < MODULES; i++)
        for (int f = 0; f < 3; f++)
            free((void *)(uintptr_t)x[i].factor[f].f32);
}

struct outcome {
    double sum[ALL]; /* the change published in round 1 */
    double weight[CROWD];
};

/* Round 1 in which member k is faulty as wrong[k] says. With `only_honest` the faulty members are
 * left out. */
static void crowd_round(struct outcome *out, const struct method *m, const char *rule,
                        const enum wrong *wrong, bool only_honest)
{
    struct method_start start = m->frozen ? frozen_start_of(m->name, 4, 4) : start_of(4, 4);
    struct contribution c[CROWD];
    static char member[CROWD][8];
    struct method_report report = {0};
    size_t count = 0;
    const char *option[] = {rule, "robust_trim=0.3"}; /* two of nine at each end */
    start.option = option;
    start.option_count = !rule ? 0 : strcmp(rule, "robust=trimmed") == 0 ? 2 : 1;
    ok(method_start(m, at("state", 1), &start));
    for (unsigned k = 0; k < CROWD; k++) {
        send_crowd(m, k, wrong[k], false);
        snprintf(member[k], sizeof member[k], "m%u", k);
        if (!only_honest || wrong[k] == HONEST)
            c[count++] = (struct contribution){member[k], 1, at("crowd", k)};
    }
    struct method_next next = {.state_path = at("state", 1),
                               .frozen_path = m->frozen ? at("frozen", 0) : NULL,
                               .contribution = c,
                               .count = count};
    ok(method_next(&report, m, at("state", 2), &next));
    for (size_t k = 0; k < report.member_count; k++)
        out->weight[k] = report.member[k].weight;
    published(out->sum, m, 1);
    method_report_close(&report);
}

static double cosine(const double *x, const double *y)
{
    return inner(x, y) / sqrt(inner(x, x) * inner(y, y));
}

Test(method_robust, members_who_send_what_they_should_not_are_held)
{
    static const enum wrong loud[CROWD] = {LOUD}, flipped[CROWD] = {HONEST, FLIPPED, FLIPPED},
                            pair[CROWD] = {COLLUDING, HONEST, HONEST, HONEST, COLLUDING};
    static const enum wrong *const attack[] = {loud, flipped, pair};
    static const char *const rules[] = {"robust=norm", "robust=krum", "robust=geometric",
                                        "robust=median", "robust=trimmed"};
    static const char *const names[] = {"flora", "fed-sb", "fedit"};
    static struct outcome honest, plain, held;
    for (int n = 0; n < 3; n++)
        for (int a = 0; a < 3; a++) {
            const struct method *m = method_find(names[n]);
            crowd_round(&honest, m, NULL, attack[a], true);
            crowd_round(&plain, m, NULL, attack[a], false);
            cr_expect(cosine(plain.sum, honest.sum) < 0.8 || far_off(plain.sum, honest.sum) > 0.5,
                      "%s, attack %d does no harm: the test tests nothing", names[n], a);
            for (int r = 0; r < (n == 1 ? 5 : 3); r++) {
                crowd_round(&held, m, rules[r], attack[a], false);
                double off = far_off(held.sum, honest.sum), c = cosine(held.sum, honest.sum);
                /* a bound on norms holds the size; it lets a pair's direction in by its share */
                cr_expect(c > (r == 0 ? 0.8 : 0.95), "%s, attack %d, %s: cosine %g", names[n], a,
                          rules[r], c);
                cr_expect(off < 0.65, "%s, attack %d, %s: off by %g", names[n], a, rules[r], off);
                cr_expect(far_off(held.sum, honest.sum) < far_off(plain.sum, honest.sum));
            }
        }
}

Test(method_robust, krum_leaves_out_who_is_far_from_the_others)
{
    static const enum wrong pair[CROWD] = {COLLUDING, HONEST, HONEST, HONEST, COLLUDING, LOUD};
    static struct outcome out;
    crowd_round(&out, method_find("flora"), "robust=krum", pair, false); /* (9 - 3) / 2 = 3 */
    for (int k = 0; k < CROWD; k++)
        cr_expect_float_eq(out.weight[k], pair[k] == HONEST ? 1.0 / 6 : 0, 1e-12, "member %d", k);
}

Test(method_robust, rules_see_the_product_and_not_how_it_is_split)
{
    static const enum wrong pair[CROWD] = {COLLUDING, HONEST, HONEST, HONEST, FLIPPED, LOUD};
    static const char *const rules[] = {"robust=norm", "robust=krum", "robust=geometric"};
    static struct outcome straight, turned;
    const struct method *m = method_find("flora");
    for (int r = 0; r < 3; r++) {
        struct method_report report = {0};
        struct contribution c[CROWD];
        static char member[CROWD][8];
        crowd_round(&straight, m, rules[r], pair, false);
        for (unsigned k = 0; k < CROWD; k++) {
            send_crowd(m, k, pair[k], k % 2 == 0);
            snprintf(member[k], sizeof member[k], "m%u", k);
            c[k] = (struct contribution){member[k], 1, at("crowd", k)};
        }
        struct method_next next = {.state_path = at("state", 1), .contribution = c, .count = CROWD};
        ok(method_next(&report, m, at("state", 2), &next));
        published(turned.sum, m, 1);
        for (int k = 0; k < CROWD; k++)
            cr_expect_float_eq(report.member[k].weight, straight.weight[k], 1e-6, "%s, %d",
                               rules[r], k);
        cr_expect_lt(far_off(turned.sum, straight.sum), 1e-5);
        method_report_close(&report);
    }
}

Test(method_robust, too_few_members_for_krum_are_refused)
{
    const struct method *m = method_find("flora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    const char *option[] = {"robust=krum", "robust_faulty=2"};
    struct method_start start = begin(m);
    start.option = option;
    start.option_count = 2;
    ok(method_start(m, at("state", 1), &start));
    struct method_next next = gather_round(c, m, 1);
    refused(method_next(&report, m, at("state", 2), &next), ERR_STATE,
            "robust=krum with 2 faulty members needs 7 updates, but got 4");
    cr_expect(!file_exists(at("state", 2)));
}

Test(method_robust, krum_of_a_line_of_points)
{
    /* 0, 1, 2, 10, 11: with one faulty, scores (two nearest others): 5, 2, 5, 65, 82 */
    static const double x[] = {0, 1, 2, 10, 11};
    double gram[25], p[5] = {0.2, 0.2, 0.2, 0.2, 0.2};
    for (int j = 0; j < 5; j++)
        for (int k = 0; k < 5; k++)
            gram[j * 5 + k] = x[j] * x[k];
    ok(method_robust_krum(p, gram, 5, 1));
    for (int k = 0; k < 5; k++)
        cr_expect_float_eq(p[k], k == 4 ? 0 : 0.25, 1e-15);
}

Test(method_robust, the_geometric_median_of_a_line_is_its_middle)
{
    static const double x[] = {-5, 0, 1, 2, 1000};
    double gram[25], p[5] = {0.2, 0.2, 0.2, 0.2, 0.2}, z = 0;
    for (int j = 0; j < 5; j++)
        for (int k = 0; k < 5; k++)
            gram[j * 5 + k] = x[j] * x[k];
    ok(method_robust_geometric(p, gram, 5));
    for (int k = 0; k < 5; k++)
        z += p[k] * x[k];
    cr_expect_float_eq(z, 1, 1e-5, "%g", z);
}
