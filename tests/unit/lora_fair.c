/* lora-fair: the corrected B against a dense solve. */
#include "agg/method.h"

#include "tests/support/method_fixture.h"

TestSuite(lora_fair, .init = make_dir, .fini = remove_dir);

enum { R = 4 };

struct dense_fair {               /* one module, densely; s is 2 and stays out */
    double X[SIZE];               /* sum p B A (d_out, d_in) */
    double A[R * IN], B[OUT * R]; /* the means */
    uint32_t m, n;
};

static struct dense_fair dense_fair(size_t i)
{
    struct dense_fair d = {.m = modules[i].d_out, .n = modules[i].d_in};
    for (unsigned k = 0; k < MEMBERS; k++) {
        struct adapter_file u = {0};
        ok(adapter_file_open(&u, at("update", k)));
        const struct adapter_file_module *x = adapter_file_find(&u, modules[i].name);
        double p = weights[k] / total_weight;
        for (size_t j = 0; j < R * d.n; j++)
            d.A[j] += p * x->factor[0].f32[j];
        for (size_t j = 0; j < R * d.m; j++)
            d.B[j] += p * x->factor[1].f32[j];
        adapter_file_close(&u);
        add(d.X, at("update", k), i, p / 2, NULL);
    }
    return d;
}

/* x g = y for x, in place; g (R, R) symmetric: Gaussian elimination. */
static void solve(double *y /* (m, R) */, uint32_t m, double g[R][R])
{
    double inverse[R][R] = {{0}};
    for (int i = 0; i < R; i++)
        inverse[i][i] = 1;
    for (int i = 0; i < R; i++) {
        double pivot = g[i][i];
        for (int j = 0; j < R; j++) {
            g[i][j] /= pivot;
            inverse[i][j] /= pivot;
        }
        for (int h = 0; h < R; h++) {
            double f = h == i ? 0 : g[h][i];
            for (int j = 0; j < R; j++) {
                g[h][j] -= f * g[i][j];
                inverse[h][j] -= f * inverse[i][j];
            }
        }
    }
    for (uint32_t row = 0; row < m; row++) {
        double x[R] = {0};
        for (int j = 0; j < R; j++)
            for (int h = 0; h < R; h++)
                x[j] += y[row * R + h] * inverse[h][j];
        memcpy(y + row * R, x, sizeof x);
    }
}

Test(lora_fair, the_closed_form_is_the_ridge_solution_of_the_dense_problem)
{
    const struct method *m = method_find("lora-fair");
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(m, c, &next), plain = {0};
    struct adapter_file s = {0};
    ok(adapter_file_open(&s, at("state", 2)));
    for (size_t i = 0; i < MODULES; i++) {
        struct dense_fair d = dense_fair(i);
        const struct adapter_file_module *x = adapter_file_find(&s, modules[i].name);
        double d_b[OUT * R] = {0}, g[R][R] = {{0}}, trace = 0;
        for (size_t row = 0; row < d.m; row++)
            for (size_t col = 0; col < d.n; col++) {
                double e = d.X[row * d.n + col];
                for (int l = 0; l < R; l++)
                    e -= d.B[row * R + l] * d.A[l * d.n + col];
                for (int l = 0; l < R; l++)
                    d_b[row * R + l] += e * d.A[l * d.n + col];
            }
        for (int a = 0; a < R; a++)
            for (int b = 0; b < R; b++)
                for (size_t j = 0; j < d.n; j++)
                    g[a][b] += d.A[a * d.n + j] * d.A[b * d.n + j];
        for (int a = 0; a < R; a++)
            trace += g[a][a];
        for (int a = 0; a < R; a++)
            g[a][a] += 0.01 * trace / R;
        solve(d_b, d.m, g);
        for (size_t j = 0; j < R * d.n; j++)
            cr_expect_eq(x->factor[0].f32[j], (float)d.A[j]);
        for (size_t j = 0; j < R * d.m; j++)
            cr_expect(fabs(x->factor[1].f32[j] - (d.B[j] + d_b[j])) < 1e-6, "%.9g, %.9g",
                      x->factor[1].f32[j], d.B[j] + d_b[j]);
        struct dense_round round = dense_round(m, 1, i, false);
        expect_row(&report, &round, i);
    }
    for (unsigned k = 0; k < MEMBERS; k++) { /* the same updates, as fedit's */
        struct sender x = {.method = "fedit",
                           .member = member_names[k],
                           .round = 1,
                           .rank = 4,
                           .alpha = 8,
                           .seed = k};
        send(at("update", k), &x);
    }
    begin(method_find("fedit"));
    ok(method_next(&plain, method_find("fedit"), at("state", 3), &next));
    cr_expect_lt(report.total.error, 0.99 * plain.total.error, "%g, fedit %g", report.total.error,
                 plain.total.error);
    adapter_file_close(&s);
    method_report_close(&report);
    method_report_close(&plain);
}
