/* fedsa: the mean of A, a B that no one sends, and what its state cannot say. */
#include "agg/round/method.h"

#include "agg/round/method_options.h"
#include "tests/support/method_fixture.h"

TestSuite(fedsa, .init = make_dir, .fini = remove_dir);

Test(fedsa, publishes_the_mean_of_a_and_leaves_b_zero)
{
    const struct method *m = method_find("fedsa");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct adapter_file u[MEMBERS] = {0}, s = {0};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    ok(next_reported(&report, m, at("state", 2), &next));
    cr_expect_not(report.measured);
    ok(adapter_file_open(&s, at("state", 2)));
    for (unsigned k = 0; k < MEMBERS; k++)
        ok(adapter_file_open(&u[k], at("update", k)));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_factor *A = &s.module[i].factor[ADAPTER_FILE_A],
                                         *B = &s.module[i].factor[ADAPTER_FILE_B];
        for (size_t j = 0; j < (size_t)A->rows * A->cols; j++) {
            double mean = 0;
            for (unsigned k = 0; k < MEMBERS; k++)
                mean += weights[k] / total_weight * u[k].module[i].factor[ADAPTER_FILE_A].f32[j];
            cr_assert_float_eq(A->f32[j], mean, 1e-6 * (1 + fabs(mean)));
        }
        for (size_t j = 0; j < (size_t)B->rows * B->cols; j++)
            cr_assert_eq(B->f32[j], 0);
    }
    for (unsigned k = 0; k < MEMBERS; k++)
        adapter_file_close(&u[k]);
    adapter_file_close(&s);
    method_report_close(&report);
}

Test(fedsa, rules_that_compare_whole_changes_are_refused)
{
    static const char *const rules[] = {"robust=norm", "robust=krum", "robust=geometric"};
    struct method_options parsed;
    for (size_t i = 0; i < sizeof rules / sizeof *rules; i++)
        refused(method_options_parse(&parsed, method_find("fedsa"), &rules[i], 1), ERR_INPUT,
                "expected median or trimmed");
    ok(method_options_parse(&parsed, method_find("fedsa"), &(const char *){"robust=median"}, 1));
}
