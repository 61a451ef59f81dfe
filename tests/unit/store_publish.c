/* The lasting record of published rounds. */
#include "tests/support/store_fixture.h"

#include <math.h>

static int64_t number(const char *sql)
{
    int64_t n = -1;
    ok(db_number(&n, &store.db, sql, ""));
    return n;
}

static void publish_keeping(int64_t run, uint32_t round, uint32_t updates_keep)
{
    static const double weight[] = {7, 2.5};
    struct store_update u[] = {make_update(run, "a", round), make_update(run, "b", round)};
    char text[32];
    snprintf(text, sizeof text, "state %u", round);
    struct store_blob state = make_blob(text);
    struct store_publish p = {
        .run = run,
        .keep = 2,
        .updates_keep = updates_keep,
        .round = {.round = round, .state = state, .updates = 2},
        .made = {.software = "fedlorad", .update = u, .weight = weight, .updates = 2},
        .last = round == 2};
    struct release *release = NULL;
    ok(store_receipts(&store, u, 2));
    ok(release_plain(&release, &state.digest));
    p.release = release;
    ok(store_publish(&store, &p));
    release_close(release);
}

Test(store_publish, remembers_digests_and_weights_of_updates_that_it_gives_up)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob start = make_blob("state 0");
    ok(store_started(&store, &(struct store_start){.run = run, .state = start}));
    publish_keeping(run, 1, 0);
    cr_expect_eq(number("SELECT count(*) FROM updates"), 0);
    struct store_update was = make_update(run, "b", 1);
    ok(store_trim(&store));
    cr_expect_not(has_blob(&was.blob), "nothing of an update is left after the commit");
    publish_keeping(run, 2, 1);
    cr_expect_eq(number("SELECT count(*) FROM updates"), 2);
    cr_expect_eq(number("SELECT count(*) FROM counted"), 4);
    cr_expect_eq(number("SELECT count(*) FROM counted WHERE member='b' AND weight=2.5"
                        " AND made_for=round AND size>0 AND examples=7"),
                 2);
    int64_t same = 0;
    ok(db_number(&same, &store.db, "SELECT count(*) FROM counted WHERE digest=?", "h",
                 &was.blob.digest));
    cr_expect_eq(same, 1);
    cr_expect_gt(number("SELECT ended_ms FROM runs"), 0);
    end();
}

Test(store_publish, keeps_reports_compressed_and_reads_those_of_older_versions)
{
    struct store_round *round = NULL;
    struct arena arena = {0};
    size_t count = 0;
    begin();
    int64_t run = add_run("r");
    struct store_blob start = make_blob("state 0");
    ok(store_started(&store, &(struct store_start){.run = run, .state = start}));
    publish_keeping(run, 1, 1);
    publish_keeping(run, 2, 1);
    struct store_round reported = {.round = 1, .update_norm = 2, .report_json = "{\"rank\":8}"};
    ok(store_report(&store, run, &reported));
    ok(db_script(&store.db, "UPDATE rounds SET report='{\"old\":1}' WHERE round=2"));
    cr_expect_eq(number("SELECT count(*) FROM rounds WHERE report<>''"), 1);
    ok(store_rounds(&round, &count, &store, run, true, &arena));
    cr_assert_eq(count, 2);
    cr_expect(round[0].reported && round[1].reported);
    cr_expect_str_eq(round[0].report_json, "{\"rank\":8}");
    cr_expect_str_eq(round[1].report_json, "{\"old\":1}");
    arena_close(&arena);
    end();
}
