/* fedex: the adapter is the mean of the factors, and the covariance that this mean loses is added
 * to the carry. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(fedex, .init = make_dir, .fini = remove_dir);

Test(fedex, the_carry_is_the_covariance_of_the_factors)
{
    const struct method *m = method_find("fedex");
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(m, c, &next);
    struct adapter_file u[MEMBERS] = {0}, s = {0};
    ok(adapter_file_open(&s, at("state", 2)));
    for (unsigned k = 0; k < MEMBERS; k++)
        ok(adapter_file_open(&u[k], at("update", k)));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_module *x = &s.module[i];
        double want[SIZE] = {0}, got[SIZE] = {0};
        for (unsigned k = 0; k < MEMBERS; k++)
            for (size_t row = 0; row < x->d_out; row++)
                for (size_t col = 0; col < x->d_in; col++)
                    for (size_t l = 0; l < 4; l++) {
                        double a = 0, b = 0; /* the means, as the members sent them */
                        for (unsigned h = 0; h < MEMBERS; h++) {
                            const struct adapter_file_module *y = &u[h].module[i];
                            a += weights[h] / total_weight * y->factor[0].f32[l * x->d_in + col];
                            b += weights[h] / total_weight * y->factor[1].f32[row * 4 + l];
                        }
                        const struct adapter_file_module *y = &u[k].module[i];
                        want[row * x->d_in + col] += 2 * weights[k] / total_weight *
                                                     (y->factor[1].f32[row * 4 + l] - b) *
                                                     (y->factor[0].f32[l * x->d_in + col] - a);
                    }
        for (size_t row = 0; row < x->d_out; row++)
            for (size_t col = 0; col < x->d_in; col++)
                for (size_t l = 0; l < x->carry_rank; l++)
                    got[row * x->d_in + col] +=
                        (double)x->factor[ADAPTER_FILE_CARRY_B].f32[row * x->carry_rank + l] *
                        (double)x->factor[ADAPTER_FILE_CARRY_A].f32[l * x->d_in + col];
        cr_expect_lt(distance(want, got), 1e-6 * norm(want), "%g",
                     distance(want, got) / norm(want));
        cr_expect_leq(x->carry_rank, 4 * (MEMBERS - 1), "rank %u", x->carry_rank);
    }
    for (unsigned k = 0; k < MEMBERS; k++)
        adapter_file_close(&u[k]);
    adapter_file_close(&s);
    method_report_close(&report);
}

/* Rounding of the stored means alone does not become a carry. */
Test(fedex, one_member_or_the_same_one_twice_leaves_nothing_to_carry)
{
    const struct method *m = method_find("fedex");
    struct contribution c[MEMBERS];
    begin(m);
    for (size_t count = 1; count <= 3; count++) {
        struct method_next next = gather_round(c, m, 1);
        struct method_report report = {0};
        struct adapter_file s = {0};
        next.count = count;
        c[1].path = c[2].path = c[0].path;
        ok(next_reported(&report, m, at("state", 2), &next));
        ok(adapter_file_open(&s, at("state", 2)));
        for (size_t i = 0; i < MODULES; i++)
            cr_expect_eq(s.module[i].carry_rank, 0, "rank %u", s.module[i].carry_rank);
        cr_expect_lt(report.total.error, 1e-6 * report.total.update_norm);
        adapter_file_close(&s);
        method_report_close(&report);
    }
}

Test(fedex, an_initial_adapter_of_any_rank_is_carried_beside_a_fresh_one)
{
    const struct method *m = method_find("fedex");
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(method_find("flora"), c, &next);
    struct method_start start = start_of(4, 8);
    struct adapter_file s = {0};
    start.initial_path = at("state", 2);
    ok(method_start(m, at("state", 5), &start));
    ok(adapter_file_open(&s, at("state", 5)));
    for (size_t i = 0; i < MODULES; i++) {
        double want[SIZE] = {0}, got[SIZE] = {0};
        add(want, at("state", 2), i, 1, NULL);
        add(got, at("state", 5), i, 1, NULL);
        cr_expect_lt(distance(want, got), 3e-7 * norm(want));
        cr_expect_eq(s.module[i].rank, 4);
        cr_expect_neq(s.module[i].factor[ADAPTER_FILE_A].f32[0], 0);
    }
    adapter_file_close(&s);
    method_report_close(&report);
}
