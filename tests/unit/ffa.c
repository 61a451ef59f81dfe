/* ffa: A is frozen and stored in a separate file; only B is in the state; members train slices of
 * B. */
#include "agg/round/method.h"

#include "tests/support/method_fixture.h"

TestSuite(ffa, .init = make_dir, .fini = remove_dir);

Test(ffa, the_frozen_file_holds_orthonormal_rows_and_the_state_only_b_at_one_scale)
{
    const struct method *m = method_find("ffa");
    struct method_start start = frozen_start_of("ffa", 12, 24);
    struct adapter_file state = {0}, frozen = {0};
    ok(method_start(m, at("state", 1), &start));
    ok(adapter_file_open(&frozen, at("frozen", 0)));
    ok(adapter_file_open(&state, at("state", 1)));
    cr_expect(adapter_file_needs_frozen(&state));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_module *x = &frozen.module[i], *s = &state.module[i];
        cr_expect_eq(x->rank, i == 0 ? 8 : 12); /* layers.0.k_proj is 8 x 24 */
        cr_expect_null(x->factor[ADAPTER_FILE_B].tensor);
        cr_expect_null(s->factor[ADAPTER_FILE_A].tensor);
        cr_expect_eq(s->rank, x->rank);
        cr_expect_float_eq(s->scale, 2, 0, "alpha 24 of rank 12, in smaller modules too");
        for (size_t a = 0; a < x->rank; a++)
            for (size_t b = 0; b < x->rank; b++) {
                double sum = 0;
                for (size_t j = 0; j < x->d_in; j++)
                    sum += (double)x->factor[0].f32[a * x->d_in + j] *
                           (double)x->factor[0].f32[b * x->d_in + j];
                cr_expect(fabs(sum - (a == b)) < 1e-6);
            }
        for (size_t j = 0; j < (size_t)s->d_out * s->rank; j++)
            cr_expect_eq(s->factor[1].f32[j], 0);
    }
    ok(adapter_file_join(&state, &frozen, frozen_digest));
    cr_expect_not(adapter_file_needs_frozen(&state));
    cr_expect_not_null(state.module[1].factor[ADAPTER_FILE_A].f32);
    adapter_file_close(&state);
    adapter_file_close(&frozen);
}

Test(ffa, columns_that_nobody_trains_stay_as_they_are)
{
    const struct method *m = method_find("ffa");
    struct contribution c[MEMBERS];
    struct method_next next;
    struct method_report report = run_round(m, c, &next), again = {0};
    struct adapter_file before = {0}, after = {0};
    next = gather_round(c, m, 2);
    next.count = 2; /* ranks 3 and 6 of 12 */
    ok(next_reported(&again, m, at("state", 3), &next));
    ok(adapter_file_open(&before, at("state", 2)));
    ok(adapter_file_open(&after, at("state", 3)));
    for (size_t i = 0; i < MODULES; i++) {
        const struct adapter_file_module *x = &before.module[i], *y = &after.module[i];
        for (size_t row = 0; row < x->d_out; row++)
            for (size_t j = 0; j < x->rank; j++) {
                size_t at = row * x->rank + j;
                cr_expect((x->factor[1].f32[at] == y->factor[1].f32[at]) == (j >= 6),
                          "%s, row %zu, column %zu", x->name, row, j);
            }
    }
    adapter_file_close(&before);
    adapter_file_close(&after);
    method_report_close(&report);
    method_report_close(&again);
}

Test(ffa, a_basis_with_both_factors_serves_and_one_without_a_does_not)
{
    struct method_start start = frozen_start(12); /* made for fed-sb: A and B */
    struct adapter_file state = {0}, frozen = {0};
    ok(method_start(method_find("ffa"), at("state", 1), &start));
    ok(adapter_file_open(&frozen, at("frozen", 0)));
    ok(adapter_file_open(&state, at("state", 1)));
    ok(adapter_file_join(&state, &frozen, frozen_digest));
    for (size_t j = 0; j < (size_t)state.module[1].d_out * 12; j++)
        cr_expect_eq(state.module[1].factor[1].f32[j], 0, "B is the state's own");
    start = frozen_start_of("ffa", 12, 12);
    refused(method_start(method_find("fed-sb"), at("state", 1), &start), ERR_INPUT,
            "has no lora_B, which fed-sb needs");
    adapter_file_close(&state);
    adapter_file_close(&frozen);
}
