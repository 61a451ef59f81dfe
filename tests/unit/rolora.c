/* rolora: the factor that trains in each round, and the one that stays. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(rolora, .init = make_dir, .fini = remove_dir);

Test(rolora, b_trains_first_then_a_and_the_other_keeps_its_bits)
{
    const struct method *m = method_find("rolora");
    begin(m);
    for (unsigned t = 1; t <= 4; t++) {
        struct contribution c[MEMBERS];
        struct method_next next = gather_round(c, m, t);
        struct method_report report = {0};
        struct adapter_file x = {0}, y = {0};
        size_t frozen = t % 2 ? ADAPTER_FILE_A : ADAPTER_FILE_B, trained = 1 - frozen;
        cr_assert_eq(m->factors(t), t % 2 ? METHOD_B : METHOD_A);
        ok(next_reported(&report, m, at("state", t + 1), &next));
        ok(adapter_file_open(&x, at("state", t)));
        ok(adapter_file_open(&y, at("state", t + 1)));
        for (size_t i = 0; i < MODULES; i++) {
            const struct adapter_file_factor *a = x.module[i].factor, *b = y.module[i].factor;
            cr_expect_arr_eq(a[frozen].f32, b[frozen].f32,
                             (size_t)a[frozen].rows * a[frozen].cols * sizeof(float));
            cr_expect(memcmp(a[trained].f32, b[trained].f32,
                             (size_t)a[trained].rows * a[trained].cols * sizeof(float)) != 0);
        }
        adapter_file_close(&x);
        adapter_file_close(&y);
        method_report_close(&report);
    }
}

Test(rolora, another_rank_or_scale_or_the_other_factor_is_refused)
{
    const struct method *m = method_find("rolora");
    struct contribution c[MEMBERS];
    struct method_report report = {0};
    struct sender x = {.method = "rolora", .member = "delta", .round = 1, .rank = 5, .alpha = 10};
    begin(m);
    struct method_next next = gather_round(c, m, 1);
    send(at("update", 0), &x);
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT,
            "rank 5 at scale 2, but a mean of factors needs rank 4 at scale 2");
    x.rank = 4;
    send(at("update", 0), &x);
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT, "rank 4 at scale 2.5");
    x.alpha = 8;
    x.round = 2; /* A, where B is due */
    send(at("update", 0), &x);
    refused(method_next(&report, m, at("state", 2), &next), ERR_INPUT,
            "expected lora_B of rank at most 4");
    cr_expect_not(file_exists(at("state", 2)));
}
