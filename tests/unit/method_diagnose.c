/* Disagreement and new directions in a report, compared with dense float64 computations. */
#include "agg/round/method_diagnose.h"

#include "tests/support/method_changes.h"

#include <math.h>

TestSuite(method_diagnose, .init = make_dir, .fini = remove_dir);

/* Eigenvectors of the symmetric x (n, n) by Jacobi's rotations: columns of v, values left on x's
 * diagonal, decreasing. */
static void eigen(double *x, double *v, size_t n)
{
    for (size_t i = 0; i < n * n; i++)
        v[i] = i % (n + 1) == 0;
    for (int sweep = 0; sweep < 60; sweep++)
        for (size_t p = 0; p < n; p++)
            for (size_t q = p + 1; q < n; q++) {
                double off = x[p * n + q];
                if (fabs(off) < 1e-300) continue;
                double theta = (x[q * n + q] - x[p * n + p]) / (2 * off);
                double t = (theta < 0 ? -1 : 1) / (fabs(theta) + sqrt(theta * theta + 1));
                double c = 1 / sqrt(t * t + 1), s = t * c;
                for (size_t k = 0; k < n; k++) {
                    double a = x[k * n + p], b = x[k * n + q];
                    x[k * n + p] = c * a - s * b;
                    x[k * n + q] = s * a + c * b;
                }
                for (size_t k = 0; k < n; k++) {
                    double a = x[p * n + k], b = x[q * n + k];
                    x[p * n + k] = c * a - s * b;
                    x[q * n + k] = s * a + c * b;
                    a = v[k * n + p], b = v[k * n + q];
                    v[k * n + p] = c * a - s * b;
                    v[k * n + q] = s * a + c * b;
                }
            }
    for (size_t i = 0; i < n; i++)
        for (size_t j = i + 1; j < n; j++) {
            if (x[j * n + j] <= x[i * n + i]) continue;
            double swap = x[i * n + i];
            x[i * n + i] = x[j * n + j], x[j * n + j] = swap;
            for (size_t k = 0; k < n; k++) {
                swap = v[k * n + i];
                v[k * n + i] = v[k * n + j], v[k * n + j] = swap;
            }
        }
}

/* Left singular vectors of D (m, n) as columns of v (m, m), and its squared singular values. */
static void left_vectors(double *v, double *square, const double *D, size_t m, size_t n)
{
    static double x[OUT * OUT];
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < m; j++) {
            x[i * m + j] = 0;
            for (size_t k = 0; k < n; k++)
                x[i * m + j] += D[i * n + k] * D[j * n + k];
        }
    eigen(x, v, m);
    for (size_t i = 0; i < m; i++)
        square[i] = x[i * m + i];
}

struct dense_count {
    uint32_t directions, intruders;
};

static struct dense_count count_densely(const double *D, const double *S, size_t m, size_t n)
{
    static double u[OUT * OUT], v[OUT * OUT], ds[OUT], ss[OUT];
    struct dense_count c = {0};
    size_t before = 0;
    double all = 0, held = 0;
    left_vectors(u, ds, D, m, n);
    left_vectors(v, ss, S, m, n);
    for (size_t i = 0; i < m; i++)
        all += ss[i];
    for (; before < m && held < 0.99 * all && ss[before] > 1e-12 * ss[0]; before++)
        held += ss[before];
    for (size_t i = 0; i < m && i < 10 && ds[i] > 1e-12 * ds[0]; i++) {
        double most = 0;
        for (size_t j = 0; j < before; j++) {
            double cosine = 0;
            for (size_t k = 0; k < m; k++)
                cosine += u[k * m + i] * v[k * m + j];
            most = fmax(most, fabs(cosine));
        }
        c.directions++;
        c.intruders += most < 0.5;
    }
    return c;
}

/* Rounds 1 and 2 of every method. */
Test(method_diagnose, directions_and_intruders_are_those_of_the_dense_change)
{
    static double D[MEMBERS][ALL], S[SIZE], sum[SIZE];
    bool some = false, not_all = false;
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        if (m->truncates || m->keeps) continue;
        begin(m);
        for (unsigned t = 1; t <= 3; t++) {
            struct contribution c[MEMBERS];
            struct method_next next = gather_round(c, m, t);
            struct method_report report = {0};
            ok(next_reported(&report, m, at("state", t + 1), &next));
            for (unsigned k = 0; k < MEMBERS; k++)
                change_of(D[k], m, t, k);
            for (size_t i = 0; i < MODULES; i++) {
                const struct method_report_row *row = row_of(&report, i);
                memset(S, 0, sizeof S), memset(sum, 0, sizeof sum);
                add(S, at("state", t), i, 1, m->frozen ? at("frozen", 0) : NULL);
                for (unsigned k = 0; k < MEMBERS; k++)
                    for (size_t j = 0; j < SIZE; j++)
                        sum[j] += weights[k] / total_weight * D[k][i * SIZE + j];
                struct dense_count want = count_densely(sum, S, modules[i].d_out, modules[i].d_in);
                cr_expect_eq(row->directions, want.directions, "%s, round %u, %s: %u of %u", *name,
                             t, row->module, row->directions, want.directions);
                cr_expect_eq(row->intruders, want.intruders, "%s, round %u, %s: %u, dense %u",
                             *name, t, row->module, row->intruders, want.intruders);
                some = some || want.intruders;
                not_all = not_all || want.intruders < want.directions;
                if (t == 1) cr_expect_eq(row->intruders, row->directions);
            }
            method_report_close(&report);
        }
    }
    cr_expect(some && not_all, "nothing to tell apart: the test tests nothing");
}

Test(method_diagnose, disagreement_is_the_cosine_of_dense_changes)
{
    static double D[MEMBERS][ALL];
    for (const char *const *name = method_names(); *name; name++) {
        const struct method *m = method_find(*name);
        struct contribution c[MEMBERS];
        struct method_next next;
        if (m->truncates || m->keeps) continue;
        struct method_report report = run_round(m, c, &next);
        for (unsigned k = 0; k < MEMBERS; k++)
            change_of(D[k], m, 1, k);
        for (size_t i = 0; i <= MODULES; i++) { /* the last: all modules */
            const struct method_report_row *row = i < MODULES ? row_of(&report, i) : &report.total;
            size_t from = i < MODULES ? i * SIZE : 0, to = i < MODULES ? from + SIZE : ALL;
            double mean = 0, least = 1;
            for (int j = 0; j < MEMBERS; j++)
                for (int k = j + 1; k < MEMBERS; k++) {
                    double x = 0, y = 0, z = 0;
                    for (size_t h = from; h < to; h++) {
                        x += D[j][h] * D[k][h];
                        y += D[j][h] * D[j][h];
                        z += D[k][h] * D[k][h];
                    }
                    mean += x / sqrt(y * z) / 6;
                    least = fmin(least, x / sqrt(y * z));
                }
            cr_expect_eq(row->pairs, 6);
            cr_expect(fabs(row->cosine_mean - mean) < 1e-9, "%s: %g, dense %g", *name,
                      row->cosine_mean, mean);
            cr_expect(fabs(row->cosine_least - least) < 1e-9);
        }
        method_report_close(&report);
    }
}

Test(method_diagnose, members_of_one_mind_agree_and_silent_ones_are_no_pair)
{
    const struct method *m = method_find("flora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    c[1].path = c[0].path;
    c[2].path = c[0].path;
    struct sender zero = {
        .method = "flora", .member = "bravo", .round = 1, .rank = 4, .alpha = 8, .zero = true};
    send(at("update", 3), &zero);
    ok(next_reported(&report, m, at("state", 2), &next));
    cr_expect_eq(report.total.pairs, 3);
    cr_expect_float_eq(report.total.cosine_least, 1, 1e-12);
    struct bytes json = {.max = 1 << 20};
    ok(method_report_json(&json, &report));
    const char *text = (const char *)json.data;
    cr_expect(strstr(text, "\"cosine_mean\":") && strstr(text, "\"pairs\":3") &&
              strstr(text, "\"directions\":") && strstr(text, "\"intruders\":") &&
              strstr(text, "\"energy_kept\":1"));
    cr_expect(!strstr(text, "\"members\""));
    bytes_close(&json);
    method_report_close(&report);
}

Test(method_diagnose, a_report_has_only_what_was_asked_for)
{
    const struct method *m = method_find("flora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(method_next(&report, m, at("state", 2), &next));
    struct bytes json = {.max = 1 << 20};
    ok(method_report_json(&json, &report));
    cr_expect(strstr((const char *)json.data, "\"sent\":4}"));
    cr_expect(!strstr((const char *)json.data, "norm") &&
              !strstr((const char *)json.data, "error"));
    bytes_close(&json);
    json = (struct bytes){.max = 1 << 20};
    const struct method_report_options norms = {0};
    ok(method_report_make(&report, m, at("state", 2), &next, &norms));
    ok(method_report_json(&json, &report));
    cr_expect(report.total.pairs == 0 && report.total.directions == 0);
    cr_expect(strstr((const char *)json.data, "\"update_norm\":") &&
              strstr((const char *)json.data, "\"relative_error\":"));
    cr_expect(!strstr((const char *)json.data, "cosine") &&
              !strstr((const char *)json.data, "intruders"));
    bytes_close(&json);
    method_report_close(&report);
}
