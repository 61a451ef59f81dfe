/* fedsvd: the product of the pair is the same after the pair is re-based. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(fedsvd, .init = make_dir, .fini = remove_dir);

/* sum_j x[a][j] y[b][j] */
static double dot(const float *x, const float *y, size_t n)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++)
        sum += (double)x[j] * (double)y[j];
    return sum;
}

/* Rank 12 is more than layers.0.k_proj has rows, 32 more than it has columns. */
Test(fedsvd, a_becomes_orthonormal_and_keeps_its_row_space_at_any_rank)
{
    const struct method *m = method_find("fedsvd");
    static const uint32_t rank_of[] = {4, 12, 32};
    for (size_t g = 0; g < 3; g++) {
        uint32_t r = rank_of[g];
        struct method_start start = start_of(r, 2 * r);
        struct method_report report = {0};
        struct sender x = {
            .method = "fedsvd", .member = "a", .round = 1, .rank = r, .alpha = 2 * r, .seed = g};
        struct contribution c[] = {{"a", 1, at("update", 0)}};
        struct method_next next = {.state_path = at("state", 1), .contribution = c, .count = 1};
        struct adapter_file was = {0}, is = {0};
        ok(method_start(m, at("state", 1), &start));
        send(c[0].path, &x);
        ok(next_reported(&report, m, at("state", 2), &next));
        ok(adapter_file_open(&was, at("state", 1)));
        ok(adapter_file_open(&is, at("state", 2)));
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_module *p = &was.module[i], *q = &is.module[i];
            size_t n = q->d_in, k = r < n ? r : n;
            const float *A = q->factor[0].f32, *B = q->factor[1].f32;
            for (size_t a = 0; a < r; a++)
                for (size_t b = 0; b < r; b++) {
                    double unit = a == b && a < k, cross = 0;
                    cr_expect(fabs(dot(A + a * n, A + b * n, n) - unit) < 1e-6);
                    for (size_t row = 0; row < q->d_out && a != b; row++)
                        cross += (double)B[row * r + a] * (double)B[row * r + b];
                    cr_expect(fabs(cross) < 1e-6, "columns of B %zu, %zu: %g", a, b, cross);
                }
            for (size_t a = 0; a < r; a++) { /* ||A_new a|| = ||a|| for every old row a */
                const float *old = p->factor[0].f32 + a * n;
                double within = 0, whole = dot(old, old, n);
                for (size_t b = 0; b < k; b++)
                    within += pow(dot(A + b * n, old, n), 2);
                cr_expect(fabs(within - whole) < 1e-5 * whole, "row %zu of %s", a, q->name);
            }
            double want[SIZE] = {0}, got[SIZE] = {0};
            add_member(want, at("state", 1), at("update", 0), NULL, i, 1, false);
            add(got, at("state", 2), i, 1, NULL);
            cr_expect_lt(distance(want, got), 1e-6 * norm(want));
            cr_expect(row_of(&report, i)->error < 1e-6 * norm(want));
        }
        adapter_file_close(&was);
        adapter_file_close(&is);
        method_report_close(&report);
    }
}

Test(fedsvd, nothing_is_rebased_while_b_is_zero)
{
    struct method_report report = expect_a_stays("fedsvd", 4);
    cr_expect_eq(report.total.update_norm, 0);
    method_report_close(&report);
}
