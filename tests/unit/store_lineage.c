#include "tests/support/store_fixture.h"

/* A round with updates of a and b, whose rows and files later rounds give up. */
static void publish_made(int64_t run, uint32_t round, const char *software)
{
    char text[32];
    struct store_update update[2] = {make_update(run, "a", round), make_update(run, "b", round)};
    const double weight[2] = {7, 0.1 * round};
    struct release *release = NULL;
    ok(store_receipts(&store, update, 2));
    snprintf(text, sizeof text, "state %u", round);
    struct store_blob state = make_blob(text);
    ok(release_plain(&release, &state.digest));
    struct store_publish p = {.run = run,
                              .keep = 2,
                              .updates_keep = 1,
                              .round = {.round = round, .state = state, .updates = 2},
                              .release = release,
                              .made = {.config = digest_of(text, 3),
                                       .software = software,
                                       .update = update,
                                       .weight = weight,
                                       .updates = 2}};
    ok(store_publish(&store, &p));
    release_close(release);
    ok(store_trim(&store));
}

static void say_hello(int64_t run, const char *id, const char *software)
{
    const struct store_member hello = {.id = id, .libraries = "", .software = software};
    ok(store_hello(&store, run, &hello, false));
}

Test(store_lineage, keeps_what_every_state_was_made_from)
{
    struct store_lineage *round = NULL;
    struct store_counted *update = NULL;
    struct arena arena = {0};
    size_t count = 0;
    begin();
    int64_t run = add_run("r");
    ok(store_started(&store, &(struct store_start){.run = run, .state = make_blob("state 0")}));
    say_hello(run, "a", "fedlora 1");
    publish_made(run, 1, "fedlorad 1");
    say_hello(run, "a", "fedlora 2");
    for (uint32_t r = 2; r <= 5; r++)
        publish_made(run, r, "fedlorad 2");

    ok(store_lineage_rounds(&round, &count, &store, run, UINT32_MAX, 4, &arena));
    cr_assert_eq(count, 4);
    cr_expect(round[0].round == 0 && !round[0].known);
    cr_expect(round[1].known && round[3].round == 3);
    struct digest expected = digest_of("state 1", 7);
    cr_expect(digest_equal(&round[1].state.digest, &expected), "its file is gone, its name is not");
    cr_expect_str_eq(round[1].software, "fedlorad 1");
    cr_expect_str_eq(round[2].software, "fedlorad 2");
    ok(store_lineage_rounds(&round, &count, &store, run, 3, 100, &arena));
    cr_expect(count == 2 && round[1].round == 5);

    ok(store_lineage_counted(&update, &count, &store, run, 1, "", 100, &arena));
    cr_assert_eq(count, 2);
    expected = digest_of("update of a for 1", 17);
    cr_expect_str_eq(update[0].member, "a");
    cr_expect(digest_equal(&update[0].blob.digest, &expected));
    cr_expect(update[0].weight == 7 && update[1].weight == 0.1 && update[0].examples == 7);
    cr_expect_str_eq(update[0].software, "fedlora 1");
    cr_expect_str_eq(update[1].software, "", "it has never said what it is");
    ok(store_lineage_counted(&update, &count, &store, run, 5, "a", 100, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(update[0].member, "b");
    ok(store_lineage_counted(&update, &count, &store, run, 5, "", 1, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(update[0].software, "fedlora 2");
    arena_close(&arena);
    end();
}
