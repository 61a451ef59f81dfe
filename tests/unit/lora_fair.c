/* lora-fair: the corrected B against a dense solve. */
#include "agg/round/method.h"

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
    ok(next_reported(&plain, method_find("fedit"), at("state", 3), &next));
    cr_expect_lt(report.total.error, 0.99 * plain.total.error, "%g, fedit %g", report.total.error,
                 plain.total.error);
    adapter_file_close(&s);
    method_report_close(&report);
    method_report_close(&plain);
}

/* 1 - cos(X, B A) + lambda ||B - Bbar||, and its gradient in B (of the norm's part
 * zero at zero). */
static double objective(double *gradient, const struct dense_fair *d, const double *B,
                        double lambda)
{
    double inner = 0, product = 0, x = 0, away = 0, Y[SIZE] = {0};
    for (size_t row = 0; row < d->m; row++)
        for (size_t col = 0; col < d->n; col++) {
            size_t at = row * d->n + col;
            for (int l = 0; l < R; l++)
                Y[at] += B[row * R + l] * d->A[l * d->n + col];
            inner += d->X[at] * Y[at];
            product += Y[at] * Y[at];
            x += d->X[at] * d->X[at];
        }
    for (size_t j = 0; j < R * d->m; j++)
        away += (B[j] - d->B[j]) * (B[j] - d->B[j]);
    for (size_t row = 0; row < d->m; row++)
        for (int l = 0; l < R; l++) {
            double g = 0;
            for (size_t col = 0; col < d->n; col++) {
                size_t at = row * d->n + col;
                g += (inner / product * Y[at] - d->X[at]) * d->A[l * d->n + col];
            }
            g /= sqrt(x * product);
            size_t j = row * R + (size_t)l;
            gradient[j] = g + (away > 0 ? lambda * (B[j] - d->B[j]) / sqrt(away) : 0);
        }
    return 1 - inner / sqrt(x * product) + lambda * sqrt(away);
}

/* The least of a plain gradient descent in B, from Bbar. */
static double descend(const struct dense_fair *d, double lambda)
{
    double B[OUT * R], next[OUT * R], g[OUT * R], unused[OUT * R], step = 1;
    memcpy(B, d->B, sizeof B);
    double now = objective(g, d, B, lambda);
    for (int t = 0; t < 4000 && step > 1e-14; t++) {
        for (size_t j = 0; j < R * d->m; j++)
            next[j] = B[j] - step * g[j];
        double then = objective(unused, d, next, lambda);
        if (then >= now) {
            step /= 2;
            continue;
        }
        memcpy(B, next, sizeof B);
        step *= 1.5;
        now = objective(g, d, B, lambda);
    }
    return now;
}

Test(lora_fair, the_cosine_objective_is_no_worse_than_a_dense_gradient_descents)
{
    const struct method *m = method_find("lora-fair");
    struct contribution c[MEMBERS];
    begin(m);
    for (int i = 0; i < 2; i++) {
        const char *words[] = {"fair_solve=cosine", i ? "fair_lambda=0" : "fair_lambda=0.01"};
        struct method_start start = start_of(4, 8);
        struct method_report report = {0};
        struct adapter_file s = {0};
        double lambda = i ? 0 : 0.01;
        start.option = words;
        start.option_count = 2;
        ok(method_start(m, at("state", 1), &start));
        struct method_next next = gather_round(c, m, 1);
        ok(next_reported(&report, m, at("state", 2), &next));
        ok(adapter_file_open(&s, at("state", 2)));
        for (size_t k = 0; k < MODULES; k++) {
            struct dense_fair d = dense_fair(k);
            const struct adapter_file_module *x = adapter_file_find(&s, modules[k].name);
            double B[OUT * R] = {0}, unused[OUT * R];
            for (size_t j = 0; j < R * d.m; j++)
                B[j] = x->factor[1].f32[j];
            double got = objective(unused, &d, B, lambda), want = descend(&d, lambda);
            cr_expect_leq(got, want + 1e-7, "%.9g, dense %.9g", got, want);
            cr_expect_lt(got, objective(unused, &d, d.B, lambda) - 1e-4, "nothing was gained");
        }
        adapter_file_close(&s);
        method_report_close(&report);
    }
}

Test(lora_fair, a_heavy_norm_leaves_the_mean_as_it_is)
{
    const struct method *m = method_find("lora-fair");
    const char *words[] = {"fair_solve=cosine", "fair_lambda=100"};
    struct method_start start = start_of(4, 8);
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct adapter_file s = {0};
    start.option = words;
    start.option_count = 2;
    ok(method_start(m, at("state", 1), &start));
    struct method_next next = gather_round(c, m, 1);
    ok(next_reported(&report, m, at("state", 2), &next));
    ok(adapter_file_open(&s, at("state", 2)));
    for (size_t i = 0; i < MODULES; i++) {
        struct dense_fair d = dense_fair(i);
        const struct adapter_file_module *x = adapter_file_find(&s, modules[i].name);
        for (size_t j = 0; j < R * d.m; j++)
            cr_expect_eq(x->factor[1].f32[j], (float)d.B[j]);
    }
    adapter_file_close(&s);
    method_report_close(&report);
}
