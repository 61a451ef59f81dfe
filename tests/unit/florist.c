/* florist: what is cut from a round's sum, against the dense sum's singular values. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

#include <lapacke.h>

TestSuite(florist, .init = make_dir, .fini = remove_dir);

static void sigma_of(double s[OUT], const double *x, size_t i)
{
    int m = (int)modules[i].d_out, n = (int)modules[i].d_in;
    double a[SIZE], super[OUT];
    memcpy(a, x, sizeof a);
    cr_assert_eq(LAPACKE_dgesvd(LAPACK_ROW_MAJOR, 'N', 'N', m, n, a, n, s, NULL, m, NULL, n, super),
                 0);
}

/* Each round is cut by itself, however large the carry has become. */
Test(florist, keeps_the_smallest_rank_with_the_energy_asked_for_of_every_round)
{
    const struct method *m = method_find("florist");
    extra_option = "energy=0.9";
    begin(m);
    for (unsigned t = 1; t <= 3; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES; i++) {
            struct dense_round d = dense_round(m, t, i, false);
            double change[SIZE], s[OUT], all = 0, kept = 0, tail = 0;
            uint32_t q = 0;
            for (size_t j = 0; j < SIZE; j++)
                change[j] = d.exact[j] - d.before[j];
            sigma_of(s, change, i);
            for (uint32_t j = 0; j < modules[i].d_out; j++)
                all += s[j] * s[j];
            while (kept < 0.9 * all) {
                kept += s[q] * s[q];
                q++;
            }
            for (uint32_t j = q; j < modules[i].d_out; j++)
                tail += s[j] * s[j];
            tail = sqrt(tail);
            cr_expect_gt(tail, 0.1 * d.change);
            cr_expect(fabs(d.error - tail) < 1e-6 * norm(d.after), "%.9g, tail %.9g", d.error,
                      tail);
            cr_expect(fabs(row_of(&report, i)->dropped - tail) < 1e-6 * norm(d.after));
            expect_row(&report, &d, i);
            if (t == 1) cr_expect_eq(row_of(&report, i)->rank, q);
        }
        method_report_close(&report);
    }
}

Test(florist, with_all_energy_it_is_flora)
{
    const struct method *m = method_find("florist");
    extra_option = "energy=1";
    begin(m);
    for (unsigned t = 1; t <= 2; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        ok(next_reported(&report, m, at("state", t + 1), &next));
        for (size_t i = 0; i < MODULES; i++) {
            struct dense_round d = dense_round(m, t, i, false);
            cr_expect_lt(d.error, 5e-7 * norm(d.after), "%g", d.error / norm(d.after));
        }
        method_report_close(&report);
    }
}

/* Against the same bytes spent by giving every module as near the same rank as they allow. */
Test(florist, a_budget_of_bytes_is_kept_and_spent_better_than_evenly)
{
    const struct method *m = method_find("florist");
    struct contribution c[MEMBERS];
    struct method_next next;
    extra_option = "bytes=4256";
    struct method_report report = run_round(m, c, &next);
    double bytes = 0, error = 0, even = 0, spent = 0;
    for (size_t i = 0; i < MODULES; i++) {
        struct dense_round d = dense_round(m, 1, i, false);
        double s[OUT], cost = 4.0 * (modules[i].d_out + modules[i].d_in), tail = 0;
        uint32_t q = row_of(&report, i)->rank;
        sigma_of(s, d.exact, i);
        for (uint32_t j = q; j < modules[i].d_out; j++)
            tail += s[j] * s[j];
        cr_expect_geq(q, 1);
        cr_expect(fabs(d.error - sqrt(tail)) < 1e-6 * d.change);
        expect_row(&report, &d, i);
        bytes += q * cost;
        error += tail;
        for (uint32_t j = 7; j < modules[i].d_out; j++)
            even += s[j] * s[j];
        spent += 7 * cost;
    }
    cr_expect_eq(spent, 4256, "seven directions of every module");
    cr_expect_leq(bytes, 4256);
    cr_expect_gt(bytes, 4256 - 4 * (OUT + IN));
    cr_expect_lt(error, even);
    method_report_close(&report);
    extra_option = "bytes=500";
    begin(m);
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT,
            "500 bytes are too few for rank 1 of every module");
}
