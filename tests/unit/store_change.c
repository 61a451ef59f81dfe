/* Updates that are taken out of a round, changes of a run, and figures of earlier rounds. */
#include "tests/support/store_fixture.h"

static const struct store_member *member_of(const struct store_member *list, const char *id)
{
    return &list[strcmp(list[0].id, id) != 0];
}

Test(store_change, takes_refused_updates_out_of_their_round_at_once)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob first = make_blob("state 0");
    struct store_update update[2] = {make_update(run, "a", 1), make_update(run, "b", 1)},
                        *row = NULL;
    const struct store_refusal refusal = {.update = update[1], .why = "too large"};
    struct store_member *member = NULL;
    struct arena arena = {0};
    size_t count;
    ok(store_started(&store, &(struct store_start){.run = run, .state = first}));
    ok(store_receipts(&store, update, 2));
    ok(store_refuse_updates(&store, &refusal, 1));
    store_close(&store);
    ok(support_store_open(&store, dir));
    ok(store_updates(&row, &count, &store, run, 1, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(row->member, "a");
    ok(store_trim(&store));
    cr_expect(!has_blob(&update[1].blob) && has_blob(&update[0].blob));
    ok(store_excuse(&store, run, 1, "a"));
    ok(store_excuse(&store, run, 1, "a")); /* without an update */
    ok(store_members(&member, &count, &store, run, &arena));
    const struct store_member *a = member_of(member, "a"), *b = member_of(member, "b");
    cr_expect(b->refused_in == 1 && b->excused_in == 0 && b->counted_in == 0);
    cr_expect_str_eq(b->refusal, "too large");
    cr_expect(a->refused_in == 1 && a->excused_in == 1 && a->counted_in == 0);
    ok(store_forgive(&store, run, 1));
    ok(store_members(&member, &count, &store, run, &arena));
    cr_expect_eq(member_of(member, "b")->refused_in, 0);
    cr_expect_eq(member_of(member, "a")->refused_in, 1, "the operator's order stays");
    arena_close(&arena);
    end();
}

Test(store_change, changes_a_run_and_adds_a_member_at_once)
{
    begin();
    int64_t run = add_run("r");
    const struct store_run with = {.config = "another", .config_size = 7};
    const struct store_event event = {.event = "member.added", .member = "c"};
    struct store_member *member = NULL;
    struct store_run *runs = NULL;
    struct arena arena = {0};
    size_t count;
    ok(store_change(&store, run, &with, "c", &event));
    ok(store_change(&store, run, &with, "c", &event)); /* has a row already */
    store_close(&store);
    ok(support_store_open(&store, dir));
    ok(store_runs(&runs, &count, &store, &arena));
    cr_assert_eq(runs->config_size, 7);
    cr_expect_eq(memcmp(runs->config, "another", 7), 0);
    ok(store_members(&member, &count, &store, run, &arena));
    cr_expect_eq(count, 3);
    arena_close(&arena);
    end();
}

/* Rounds that were not measured say nothing. */
Test(store_change, remembers_norms_and_lowest_losses)
{
    static const double norm[] = {0, 4, 1, 9, 2};
    begin();
    int64_t run = add_run("r");
    double is = 7, train = 7, evaluated = 7;
    ok(store_norm(&is, &store, run));
    ok(store_losses(&train, &evaluated, &store, run));
    cr_expect(is == 0 && train == 0 && evaluated == 0);
    for (uint32_t round = 1; round <= 5; round++) {
        char text[96];
        struct store_blob state;
        ok(publish(run, round, &state));
        snprintf(text, sizeof text, "UPDATE rounds SET norm=%g, train_loss=%g WHERE round=%u",
                 norm[round - 1], round == 2 ? 0.5 : 3.0, round);
        ok(db_script(&store.db, text));
    }
    ok(store_evaluated(&store, run, "a", &(struct store_evaluation){1, 3, 2.0, -1}));
    ok(store_evaluated(&store, run, "b", &(struct store_evaluation){1, 1, 6.0, -1}));
    ok(store_evaluated(&store, run, "b", &(struct store_evaluation){2, 1, 5.0, -1}));
    ok(store_norm(&is, &store, run));
    cr_expect_eq(is, 2, "the lower middle of 1, 2, 4, 9");
    ok(store_losses(&train, &evaluated, &store, run));
    cr_expect_eq(train, 0.5);
    cr_expect_eq(evaluated, 3, "weighted by rows");
    end();
}
