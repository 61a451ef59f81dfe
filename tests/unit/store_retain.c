/* Runs that are archived and deleted, and events that are old. */
#include "coordinator/store/store_retain.h"
#include "tests/support/store_fixture.h"

static int64_t number(const char *sql)
{
    int64_t n = -1;
    ok(db_number(&n, &store.db, sql, ""));
    return n;
}

static void sweep(uint64_t events_before_ms)
{
    struct store_retain at = {.events_before_ms = events_before_ms};
    bool done = false;
    for (int steps = 0; !done; steps++) {
        cr_assert_lt(steps, 1000);
        ok(store_retain_step(&done, &store, &at));
    }
    ok(store_trim(&store));
}

/* Three published rounds; the newest two states and the updates of the last round are kept. */
static int64_t add_finished(const char *name, struct store_blob state[4])
{
    int64_t run = add_run(name);
    char text[64];
    snprintf(text, sizeof text, "%s: state 0", name);
    state[0] = make_blob(text);
    ok(store_started(&store, &(struct store_start){.run = run, .state = state[0]}));
    for (uint32_t round = 1; round <= 3; round++) {
        struct store_update u[] = {make_update(run, "a", round), make_update(run, "b", round)};
        ok(store_receipts(&store, u, 2));
        snprintf(text, sizeof text, "%s: state %u", name, round);
        state[round] = make_blob(text);
        struct store_publish p = {.run = run,
                                  .keep = 2,
                                  .updates_keep = 1,
                                  .round = {.round = round, .state = state[round], .updates = 2},
                                  .last = round == 3};
        struct release *release = NULL;
        ok(release_plain(&release, &state[round].digest));
        p.release = release;
        ok(store_publish(&store, &p));
        release_close(release);
    }
    struct store_round reported = {.round = 3, .update_norm = 2, .report_json = "{\"rank\":8}"};
    ok(store_report(&store, run, &reported));
    return run;
}

Test(store_retain, an_archived_run_keeps_its_last_state_and_every_digest)
{
    struct store_blob state[4], other[4];
    uint64_t when = 0;
    begin();
    int64_t run = add_finished("r", state), untouched = add_finished("s", other);
    cr_expect(has_blob(&state[2]) && has_blob(&state[3]));
    ok(store_archive(&when, &store, run, "admin/ops"));
    cr_expect_gt(when, 0);
    sweep(0);
    cr_expect(!has_blob(&state[2]) && has_blob(&state[3]));
    cr_expect(has_blob(&other[2]) && has_blob(&other[3]), "another run is untouched");
    cr_expect_eq(number("SELECT count(*) FROM updates WHERE run=1"), 0);
    cr_expect_eq(number("SELECT count(*) FROM updates WHERE run=2"), 2);
    cr_expect_eq(number("SELECT count(*) FROM rounds WHERE run=1 AND state IS NOT NULL"), 4);
    cr_expect_eq(number("SELECT count(*) FROM rounds WHERE run=1 AND report_z IS NOT NULL"), 1);
    struct store_run *row = NULL;
    struct arena arena = {0};
    ok(store_run_named(&row, &store, "r", &arena));
    cr_assert_not_null(row);
    cr_expect(digest_equal(&row->state.digest, &state[3].digest));
    arena_close(&arena);
    (void)untouched;
    end();
}

Test(store_retain, a_deleted_run_leaves_a_tombstone_and_its_name)
{
    struct store_blob state[4];
    struct store_grave *grave = NULL;
    struct store_run *row = NULL;
    struct arena arena = {0};
    size_t count = 0;
    begin();
    int64_t run = add_finished("r", state);
    ok(store_delete(&store, run, "admin/ops at 10.0.0.7:1"));
    sweep(0);
    cr_expect_not(has_blob(&state[3]));
    cr_expect_eq(number("SELECT count(*) FROM updates"), 0);
    cr_expect_eq(number("SELECT count(*) FROM events"), 0);
    cr_expect_eq(number("SELECT count(*) FROM members"), 0);
    cr_expect_eq(number("SELECT count(*) FROM rounds WHERE state IS NOT NULL"), 4, "digests stay");
    cr_expect_eq(number("SELECT count(*) FROM doomed"), 0);
    ok(store_run_named(&row, &store, "r", &arena));
    cr_expect_null(row);
    ok(store_runs(&row, &count, &store, &arena));
    cr_expect_eq(count, 0);
    ok(store_graves(&grave, &count, &store, 10, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(grave->name, "r");
    cr_expect_str_eq(grave->by, "admin/ops at 10.0.0.7:1");
    cr_expect_eq(grave->published, 3);
    cr_expect(digest_equal(&grave->state, &state[3].digest));
    cr_expect_gt(grave->deleted_ms, 0);
    add_run("r");
    ok(store_delete(&store, run + 1, "admin/ops"));
    ok(store_graves(&grave, &count, &store, 10, &arena));
    cr_expect_eq(count, 2);
    arena_close(&arena);
    end();
}

/* A file that another run names too must stay. */
Test(store_retain, keeps_a_state_that_another_run_continues_from)
{
    static const char *const members[] = {"a", "b"};
    struct store_blob state[4];
    int64_t id = 0;
    begin();
    int64_t run = add_finished("r", state);
    struct store_run next = {.name = "s",
                             .config = "config",
                             .config_size = 6,
                             .created_ms = 5,
                             .published = 3,
                             .state = state[3],
                             .from = "round 3 of run r"};
    ok(store_run_add(&id, &store, &next, members, 2));
    ok(store_delete(&store, run, "admin/ops"));
    sweep(0);
    cr_expect(has_blob(&state[3]));
    struct store_blob made = state[3];
    struct store_round *round = NULL;
    struct arena arena = {0};
    size_t count = 0;
    ok(store_rounds(&round, &count, &store, id, true, &arena));
    cr_expect_eq(count, 0, "the round was published by another run");
    arena_close(&arena);
    (void)made;
    end();
}

Test(store_retain, old_events_go_but_not_those_of_the_run_as_a_whole)
{
    struct store_blob state[4];
    begin();
    add_finished("r", state);
    int64_t all = number("SELECT count(*) FROM events");
    sweep(1000);
    cr_expect_eq(number("SELECT count(*) FROM events"), all, "none is that old");
    ok(db_script(&store.db, "UPDATE events SET wall_ms=500 WHERE round<=2"));
    sweep(1000);
    cr_expect_eq(number("SELECT count(*) FROM events WHERE event='run.created'"), 1);
    cr_expect_eq(number("SELECT count(*) FROM events WHERE round BETWEEN 1 AND 2"), 0);
    cr_expect_gt(number("SELECT count(*) FROM events WHERE round=3"), 0);
    end();
}

/* More rows than a step may change, and each step is one transaction. */
Test(store_retain, goes_in_bounded_steps)
{
    uint64_t when = 0;
    begin();
    int64_t run = add_run("r");
    ok(db_script(&store.db,
                 "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1000)"
                 " INSERT INTO updates SELECT 1,1,printf('m%04d',i),1,randomblob(32),9,1,0,0,0"
                 " FROM n"));
    ok(store_archive(&when, &store, run, ""));
    struct store_retain at = {0};
    bool done = false;
    int64_t before = 1000;
    for (int steps = 0; before > 0; steps++) {
        cr_assert_lt(steps, 20);
        ok(store_retain_step(&done, &store, &at));
        int64_t left = number("SELECT count(*) FROM updates");
        cr_expect_leq(before - left, STORE_RETAIN_ROWS);
        before = left;
    }
    cr_expect_eq(number("SELECT count(*) FROM doomed"), 1000);
    end();
}

static int64_t pragma(const char *what)
{
    char sql[64];
    snprintf(sql, sizeof sql, "PRAGMA %s", what);
    return number(sql);
}

static void fill_and_empty(void)
{
    ok(db_script(&store.db, "CREATE TABLE filler(x BLOB);"
                            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE"
                            " i<300) INSERT INTO filler SELECT randomblob(4000) FROM n;"
                            "DROP TABLE filler;"));
}

Test(store_retain, gives_free_pages_back_also_in_a_database_of_an_older_version)
{
    begin();
    for (int old = 0; old < 2; old++) {
        if (old) {
            ok(db_script(&store.db, "PRAGMA journal_mode=DELETE; PRAGMA auto_vacuum=NONE; VACUUM"));
            store_close(&store);
            ok(store_open(&store, dir));
            cr_expect_eq(pragma("auto_vacuum"), 0);
            ok(db_make_shrinkable(&store.db));
        }
        cr_expect_eq(pragma("auto_vacuum"), 2);
        fill_and_empty();
        int64_t pages = pragma("page_count");
        cr_expect_gt(pragma("freelist_count"), 250);
        bool more = true;
        ok(db_shrink(&more, &store.db, 16));
        cr_expect(more);
        cr_expect_gt(pragma("page_count"), pages - 20, "a step is bounded");
        for (int steps = 0; more; steps++) {
            cr_assert_lt(steps, 1000);
            ok(db_shrink(&more, &store.db, 16));
        }
        cr_expect_lt(pragma("page_count"), pages - 250);
    }
    end();
}

/* Without the setting nothing can be given back, and the caller must not try for ever. */
Test(store_retain, a_database_that_cannot_shrink_is_left_as_it_is)
{
    begin();
    ok(db_script(&store.db, "PRAGMA journal_mode=DELETE; PRAGMA auto_vacuum=NONE; VACUUM"));
    fill_and_empty();
    bool more = true;
    ok(db_shrink(&more, &store.db, 16));
    cr_expect_not(more);
    end();
}
