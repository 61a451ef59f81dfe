#include "tests/support/member_bench.h"

/* The state of round 2, which carries the updates of round 1. */
static void next_state(struct member_bench *b)
{
    struct contribution contribution[MEMBERS];
    struct method_report report = {0};
    for (int i = 0; i < MEMBERS; i++) {
        train(b, 1, i, NULL);
        contribution[i] = (struct contribution){members[i], 1, b->update[i]};
    }
    const struct method_next next = {.state_path = b->state[0],
                                     .contribution = contribution,
                                     .count = MEMBERS,
                                     .rounds = 2,
                                     .threads = 1};
    OK(method_next(&report, method_find("flora"), b->state[1], &next));
    method_report_close(&report);
}

Test(member_state, members_that_share_it_send_the_same_bytes_as_alone)
{
    struct member_bench b = {0};
    struct member_state state = {0};
    struct digest alone[MEMBERS];
    bench_open(&b, "flora");
    next_state(&b);
    for (int i = 0; i < MEMBERS; i++)
        alone[i] = train(&b, 2, i, NULL);
    const struct member_round r = describe(&b, 2, 0, NULL);
    OK(member_state_open(&state, &r));
    cr_assert_gt(state.file.module[0].carry_rank, 0);
    for (int times = 0; times < 2; times++)
        for (int i = 0; i < MEMBERS; i++) {
            struct digest digest = train(&b, 2, i, &state);
            cr_expect(digest_equal(&digest, &alone[i]), "%s", members[i]);
        }
    cr_expect_not_null(state.packed[0]);
    member_state_close(&state);
    bench_close(&b);
}

Test(member_state, a_shared_adapter_uses_the_carry_in_place)
{
    struct member_bench b = {0};
    struct member_state state = {0};
    struct member_adapter a = {0};
    bench_open(&b, "flora");
    next_state(&b);
    struct member_round r = describe(&b, 2, 0, NULL);
    OK(member_state_open(&state, &r));
    r.state = &state;
    OK(member_adapter_open(&a, &b.model.arch, &r));
    const struct adapter_module *q = adapter_find(&a.adapter, 0, MODULE_Q);
    bool found = false;
    for (size_t i = 0; i < state.file.count; i++)
        found |= state.file.module[i].factor[ADAPTER_FILE_CARRY_A].f32 == q->carry_a;
    cr_expect(found);
    member_adapter_close(&a);
    member_state_close(&state);
    bench_close(&b);
}

Test(member_state, refuses_the_state_of_another_run_or_base)
{
    struct member_bench b = {0};
    struct member_state state = {0};
    bench_open(&b, "flora");
    struct member_round r = describe(&b, 1, 0, NULL);
    r.run = "s";
    cr_expect_eq(member_state_open(&state, &r).kind, ERR_INPUT);
    r.run = "r";
    r.base = "ff112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    cr_expect_eq(member_state_open(&state, &r).kind, ERR_INPUT);
    bench_close(&b);
}
