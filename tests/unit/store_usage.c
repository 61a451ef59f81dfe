#include "coordinator/store/store_usage.h"
#include "coordinator/store/store_retain.h"
#include "tests/support/store_fixture.h"

static void finish_run(const char *name)
{
    int64_t run = add_run(name);
    struct store_blob state;
    struct store_update u = make_update(run, "a", 1);
    ok(store_started(&store, &(struct store_start){.run = run, .state = make_blob("state 0")}));
    ok(store_receipts(&store, &u, 1));
    ok(publish(run, 1, &state));
    ok(db_script(&store.db, "UPDATE runs SET ended_ms=1000"));
}

/* The sweep itself removes what was told. */
Test(store_usage, tells_what_the_next_sweep_removes)
{
    struct store_usage u = {0};
    struct arena arena = {0};
    struct store_retain at = {0};
    uint64_t when = 0;
    bool done = false;
    begin();
    finish_run("r");
    struct store_place place = {.dir = dir};
    struct store_usage_rules rules = {.ended_before_ms = 1000};
    ok(store_usage(&u, &place, &rules, &arena));
    cr_assert_eq(u.count, 2);
    cr_expect_str_eq(u.run[1].name, "r");
    cr_expect_not(u.run[1].due, "it is not older than that");
    cr_expect_eq(u.run[1].removes_files, 0);
    cr_expect_eq(u.run[1].bytes[STORE_FILE_STATE], strlen("state 1"));
    cr_expect_eq(u.run[1].bytes[STORE_FILE_EARLIER], strlen("state 0"));
    cr_expect_eq(u.run[1].bytes[STORE_FILE_UPDATE], strlen("update of a for 1"));
    cr_expect_gt(u.database_bytes, 4096);
    rules.ended_before_ms = 1001;
    ok(store_usage(&u, &place, &rules, &arena));
    cr_expect(u.run[1].due);
    cr_expect_eq(u.run[1].removes_files, 2);
    cr_expect_eq(u.run[1].removes_bytes, strlen("state 0") + strlen("update of a for 1"));
    ok(store_archive(&when, &store, u.run[1].id, ""));
    while (!done)
        ok(store_retain_step(&done, &store, &at));
    ok(store_usage(&u, &place, &rules, &arena));
    cr_expect(u.run[1].due && u.run[1].removes_files == 0);
    cr_expect_eq(u.run[1].bytes[STORE_FILE_UPDATE] + u.run[1].bytes[STORE_FILE_EARLIER], 0);
    arena_close(&arena);
    end();
}

Test(store_usage, refuses_a_folder_that_is_no_store)
{
    struct store_usage u = {0};
    struct arena arena = {0};
    char empty[SUPPORT_PATH_BYTES];
    support_dir_make(empty);
    struct store_place place = {.dir = empty};
    struct store_usage_rules rules = {0};
    cr_expect_eq(store_usage(&u, &place, &rules, &arena).kind, ERR_INPUT);
    arena_close(&arena);
    support_dir_remove(empty);
}
