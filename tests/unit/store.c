#include "tests/support/store_fixture.h"

#include <errno.h>
#include <math.h>

Test(store, keeps_what_it_has_acknowledged)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob first = make_blob("state 0");
    struct store_update update[2] = {make_update(run, "b", 1), make_update(run, "a", 1)},
                        *row = NULL;
    struct arena arena = {0};
    struct store_run *runs = NULL;
    struct store_member *member = NULL;
    size_t count;
    ok(store_started(&store, &(struct store_start){.run = run, .state = first}));
    ok(store_receipts(&store, update, 2));
    ok(store_receipts(&store, update, 1));
    store_close(&store);
    ok(support_store_open(&store, dir));
    ok(store_runs(&runs, &count, &store, &arena));
    cr_assert_eq(count, 1);
    cr_expect_str_eq(runs->name, "r");
    cr_expect(runs->started && digest_equal(&runs->state.digest, &first.digest));
    cr_expect_eq(runs->published, 0);
    ok(store_updates(&row, &count, &store, run, 1, &arena));
    cr_assert_eq(count, 2, "the one acknowledged twice is there once");
    cr_expect_str_eq(row[0].member, "a", "sorted by member");
    cr_expect_eq(row[1].examples, 7);
    ok(store_members(&member, &count, &store, run, &arena));
    cr_expect_eq(member[1].counted_in, 1);
    cr_expect_eq(member[1].bytes_up, update[0].blob.size, "counted once");
    arena_close(&arena);
    end();
}

Test(store, keeps_evaluations_and_sums_them_up_by_rows)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state = make_blob("state 0");
    struct store_member *member = NULL, hello = {.id = "b", .libraries = "", .eval_rows = 30};
    struct store_round *round = NULL;
    struct arena arena = {0};
    size_t count;
    ok(store_started(&store, &(struct store_start){.run = run, .state = state}));
    ok(store_hello(&store, run, &hello, true));
    ok(publish(run, 1, &state));
    ok(publish(run, 2, &state));
    ok(store_evaluated(&store, run, "a", &(struct store_evaluation){1, 10, 2.0, 0.5}));
    ok(store_evaluated(&store, run, "b", &(struct store_evaluation){1, 30, 9.0, 0.25}));
    ok(store_evaluated(&store, run, "b", &(struct store_evaluation){1, 30, 1.0, 0.75}));
    ok(store_evaluated(&store, run, "b", &(struct store_evaluation){2, 30, 0.5, -1}));
    /* Earlier versions accepted such numbers, whose sum is no 64-bit integer. */
    for (int i = 0; i < 2; i++)
        ok(store_evaluated(&store, run, i ? "c" : "d",
                           &(struct store_evaluation){1, INT64_MAX, 7.0, 0.5}));
    ok(store_rounds(&round, &count, &store, run, false, &arena));
    cr_assert_eq(count, 2);
    cr_expect_eq(round[0].evaluation.rows, 40);
    cr_expect_float_eq(round[0].evaluation.loss, (10 * 2.0 + 30 * 1.0) / 40, 1e-12);
    cr_expect_float_eq(round[0].evaluation.accuracy, (10 * 0.5 + 30 * 0.75) / 40, 1e-12);
    cr_expect(round[1].evaluation.accuracy < 0, "not told");
    cr_expect_str_eq(round[0].report_json, "");
    ok(store_members(&member, &count, &store, run, &arena));
    cr_expect_eq(member[0].evaluation->round, 1);
    cr_expect_eq(member[1].evaluation->round, 2, "the newest");
    cr_expect_eq(member[1].eval_rows, 30);
    arena_close(&arena);
    end();
}

/* A status asks for this count, on the loop thread, in runs with millions of other events. */
/* Of a method whose members keep a factor. */
Test(store, keeps_the_report_of_a_round_without_norms)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state = make_blob("state 1");
    struct store_round *round = NULL;
    size_t count = 0;
    struct arena arena = {0};
    ok(publish(run, 1, &state));
    ok(store_report(
        &store, run,
        &(struct store_round){
            .round = 1, .update_norm = NAN, .error = NAN, .report_json = "{\"rank\":2}"}));
    ok(store_rounds(&round, &count, &store, run, true, &arena));
    cr_assert_eq(count, 1);
    cr_expect(round[0].reported);
    cr_expect_eq(round[0].update_norm, 0);
    cr_expect_str_eq(round[0].report_json, "{\"rank\":2}");
    arena_close(&arena);
    end();
}

static void expect_count_uses_index(const char *name)
{
    struct db_query q = {0};
    bool row = false;
    ok(db_query_open(&q, &store.db,
                     "EXPLAIN QUERY PLAN "
                     "SELECT count(*) FROM events WHERE run=?"
                     " AND event='report.skipped'",
                     "i", (int64_t)1));
    ok(db_query_next(&row, &q));
    cr_assert(row);
    cr_expect(strstr(db_query_text(&q, 3), name), "%s", db_query_text(&q, 3));
    db_query_close(&q);
}

/* Undoes the versions from 6 on in which a table or a column is added that cannot be added
 * twice. */
#define WITHOUT_6                                                                                  \
    STORE_WITHOUT_9                                                                                \
    "DROP INDEX states_kept; ALTER TABLE rounds DROP COLUMN gone;"                                 \
    " ALTER TABLE members DROP COLUMN refused_in; ALTER TABLE members DROP COLUMN excused_in;"     \
    " ALTER TABLE members DROP COLUMN refusal; ALTER TABLE rounds DROP COLUMN norm;"

Test(store, opens_what_the_version_before_has_made)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    begin();
    int64_t run = add_run("r");
    struct db *db = &store.db;
    struct store_member *member = NULL;
    struct arena arena = {0};
    size_t count;
    ok(db_script(db, WITHOUT_6
                 "ALTER TABLE members DROP COLUMN eval_rows; ALTER TABLE members DROP COLUMN"
                 " pruned; ALTER TABLE runs DROP COLUMN memory; ALTER TABLE runs DROP COLUMN"
                 " memory_size; DROP TABLE evaluations; DROP TABLE ledger; DROP TABLE"
                 " private_rounds; DROP TABLE ledger_copies; PRAGMA user_version = 1;"));
    store_close(&store);
    ok(support_store_open(&store, dir));
    cr_expect_eq(store.migrated_from, 1);
    ok(store_members(&member, &count, &store, run, &arena));
    cr_assert_eq(count, 2);
    cr_expect(member[0].evaluation == NULL && member[0].eval_rows == 0);
    ok(db_script(&store.db,
                 WITHOUT_6 "DROP TABLE ledger; DROP TABLE private_rounds; DROP TABLE ledger_copies;"
                           " PRAGMA user_version = 2;"));
    store_close(&store);
    ok(support_store_open(&store, dir));
    struct store_private row = {.clip = 7};
    ok(store_private_load(&row, &store, run, 1));
    cr_expect(row.clip == 0 && row.noisy.size == 0);
    ok(db_script(&store.db, WITHOUT_6 "DROP TABLE ledger_copies; PRAGMA user_version = 3;"));
    store_close(&store);
    ok(support_store_open(&store, dir));
    struct bytes none = {.max = 1};
    ok(store_ledger_part(&none, &store, run, "a", 0));
    cr_expect_eq(none.size, 0);
    ok(db_script(&store.db, WITHOUT_6 "DROP INDEX reports_skipped; PRAGMA user_version = 4;"));
    store_close(&store);
    ok(support_store_open(&store, dir));
    expect_count_uses_index("reports_skipped");
    arena_close(&arena);
    end();
}

/* Earlier versions forgot the digest of a state together with its file. */
Test(store, knows_which_states_a_version_before_has_given_up)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state = make_blob("state 0");
    struct store_round *round = NULL;
    struct arena arena = {0};
    size_t count;
    ok(store_started(&store, &(struct store_start){.run = run, .state = state}));
    for (uint32_t i = 1; i <= 2; i++)
        ok(publish(run, i, &state));
    ok(db_script(&store.db, WITHOUT_6 "UPDATE rounds SET state=NULL WHERE round=1;"
                                      " PRAGMA user_version = 5;"));
    store_close(&store);
    ok(support_store_open(&store, dir));
    ok(store_rounds(&round, &count, &store, run, false, &arena));
    cr_assert_eq(count, 2);
    cr_expect(round[0].gone && round[0].state.size == 0);
    cr_expect(!round[1].gone && digest_equal(&round[1].state.digest, &state.digest));
    arena_close(&arena);
    end();
}

/* The release of a noisy state of round 1, charged to a budget of its own. */
static struct release *release_of(struct ledger_head *head, const struct ledger_key *key,
                                  const struct digest *state)
{
    const struct central_spec spec = {.dim = 1, .noise = 2, .clip = 1, .denominator = 2};
    struct central central = {0};
    struct spend spend = {0};
    struct release *release = NULL;
    ok(spend_open(&spend, 9, 1e-5));
    ok(central_restore(&central, &spec, 0.75));
    ok(release_noisy(&release, &spend, head, key, &central, state,
                     &(struct release_charge){.round = 1, .sampling = 1}));
    spend_close(&spend);
    return release;
}

/* A ledger of the run with its first line, its head and key; the run starts with it. */
static void start_private(struct ledger_head *head, struct ledger_key *key, struct bytes *text,
                          int64_t run, const struct cohort_seed *one)
{
    struct ledger_terms terms = {
        .job = "r", .party = "coordinator", .purpose = "training", .epsilon = 9, .delta = 1e-5};
    uint8_t seed[32] = {9};
    crypto_sign_seed_keypair(key->public, key->secret, seed);
    ok(ledger_start(text, head, key, &terms));
    ok(store_started(&store, &(struct store_start){.run = run,
                                                   .state = make_blob("state 0"),
                                                   .ledger = (const char *)text->data,
                                                   .seed = one}));
}

static void expect_noisy_until_reported(int64_t run, const struct store_round *round,
                                        const struct store_private *made)
{
    struct store_private row;
    struct store_recovered found;
    ok(store_trim(&store));
    cr_expect(has_blob(&made->noisy), "the report still needs it");
    ok(store_report(&store, run, round));
    ok(store_private_load(&row, &store, run, 1));
    cr_expect_eq(row.noisy.size, 0);
    ok(store_trim(&store));
    cr_expect(!has_blob(&made->noisy));
    ok(store_private_noisy(&store, run, 1, made)); /* as if its report had been lost in a crash */
    ok(store_recover(&found, &store, 0));
    ok(store_private_load(&row, &store, run, 1));
    cr_expect_eq(row.noisy.size, 0);
}

/* The seed comes with the ledger's first line; a noisy mean is kept until its release stands, which
 * is charged with it, and is reported. */
Test(store, publishes_a_private_state_with_its_ledger_line_or_not_at_all)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state = make_blob("state 1");
    struct cohort_seed one = {{1}}, two = {{2}};
    struct digest last;
    bool found = false;
    struct store_private row, made = {.noisy = make_blob("noisy"), .next_clip = 0.75};
    struct ledger_head head = {0};
    struct ledger_key key;
    struct bytes text = {.max = 1 << 20};
    struct release *release = NULL;
    struct store_recovered left;
    refused(store_private_seed(&two, &store, run), ERR_STATE, "no seed to draw members from");
    start_private(&head, &key, &text, run, &one);
    ok(store_private_seed(&two, &store, run));
    cr_expect_eq(memcmp(&one, &two, sizeof one), 0);
    ok(store_ledger_head(&found, &last, &store, run));
    cr_expect(found && digest_equal(&last, &head.hash));
    ok(store_private_noisy(&store, run, 1, &made));
    ok(store_recover(&left, &store, 0));
    ok(store_private_load(&row, &store, run, 1));
    cr_expect(row.next_clip == 0.75);
    cr_expect(digest_equal(&row.noisy.digest, &made.noisy.digest) && has_blob(&made.noisy));
    release = release_of(&head, &key, &state.digest);
    state = make_blob("state 1");
    struct store_publish p = {.run = run,
                              .keep = 2,
                              .updates_keep = 1,
                              .round = {.round = 1, .state = state, .report_json = "{}"},
                              .release = release,
                              .next_clip = 0.75,
                              .stop = "spent",
                              .next_line = "a last line\n"};
    ok(store_publish(&store, &p));
    ok(bytes_printf(&text, "%sa last line\n", release_line(release)));
    struct bytes got = {.max = 1 << 20};
    ok(store_ledger(&got, &store, run));
    cr_expect_str_eq((char *)got.data, (char *)text.data);
    expect_noisy_until_reported(run, &p.round, &made);
    ok(store_private_load(&row, &store, run, 2));
    cr_expect_eq(row.clip, 0.75);
    struct store_run *runs = NULL;
    struct arena arena = {0};
    size_t count;
    ok(store_runs(&runs, &count, &store, &arena));
    cr_expect_str_eq(runs->hold, "stopped");
    cr_expect_str_eq(runs->reason, "spent");
    cr_expect_eq(runs->published, 1);
    release_close(release);
    arena_close(&arena);
    bytes_close(&got);
    bytes_close(&text);
    end();
}

/* A state that is gone is still named, but it is no blob that the store has. */
static void expect_digests(int64_t run, const struct store_blob state[5])
{
    struct store_round *round = NULL;
    struct arena arena = {0};
    size_t count;
    bool known, may;
    ok(store_rounds(&round, &count, &store, run, false, &arena));
    cr_assert_eq(count, 4);
    for (size_t i = 0; i < count; i++) {
        const struct digest *digest = &state[i + 1].digest;
        cr_expect(digest_equal(&round[i].state.digest, digest), "round %zu", i + 1);
        cr_expect_eq(round[i].gone, i < 2, "round %zu", i + 1);
        ok(store_blob_known(&known, &store, digest));
        ok(store_blob_public(&may, &store, run, digest));
        cr_expect(known == !round[i].gone && may == known, "round %zu", i + 1);
    }
    arena_close(&arena);
}

Test(store, gives_up_old_states_and_updates_and_nothing_else)
{
    begin();
    int64_t run = add_run("r");
    struct store_blob state[5] = {make_blob("state 0")};
    struct store_update update[5];
    ok(store_started(&store, &(struct store_start){.run = run, .state = state[0]}));
    for (uint32_t round = 1; round < 5; round++) {
        update[round] = make_update(run, "a", round);
        ok(store_receipts(&store, &update[round], 1));
        ok(publish(run, round, &state[round]));
        ok(store_trim(&store));
        cr_expect(has_blob(&update[round].blob), "kept until the next round is published");
        cr_expect(round == 1 || !has_blob(&update[round - 1].blob), "used in round %u", round - 1);
        for (uint32_t i = 0; i <= round; i++)
            cr_expect_eq(has_blob(&state[i]), i + 2 > round, "state %u after round %u", i, round);
    }
    expect_digests(run, state);
    end();
}

Test(store, lets_nobody_fetch_an_update)
{
    begin();
    int64_t run = add_run("r");
    struct store_update update = make_update(run, "a", 1);
    bool known;
    ok(store_receipts(&store, &update, 1));
    ok(store_blob_public(&known, &store, 0, &update.blob.digest));
    cr_expect(!known);
    ok(store_blob_known(&known, &store, &update.blob.digest));
    cr_expect(known);
    end();
}

Test(store, a_full_database_is_the_operators_and_changes_nothing)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    begin();
    int64_t run = add_run("r"), id;
    struct store_run big = {.name = "big", .config_size = 1 << 20, .config = NULL};
    static char config[1 << 20];
    static const char *const members[] = {"a"};
    struct arena arena = {0};
    struct store_run *row = NULL;
    size_t count;
    big.config = config;
    memset(config, 'x', sizeof config);
    ok(db_script(&store.db, "PRAGMA max_page_count = 40"));
    err e = store_run_add(&id, &store, &big, members, 1);
    cr_expect_eq(e.kind, ERR_MACHINE);
    cr_expect_eq(e.sys, ENOSPC, "%s", e.text);
    ok(store_runs(&row, &count, &store, &arena));
    cr_expect_eq(count, 1);
    ok(store_hold(&store, run, "paused", "", &(struct store_event){.event = "run.paused"}));
    arena_close(&arena);
    end();
}

static err add_copies(int64_t run, uint64_t first, const char *const *line, size_t count)
{
    struct store_copy copy[4];
    for (size_t i = 0; i < count; i++)
        copy[i] = (struct store_copy){.text = line[i], .size = strlen(line[i])};
    return store_copies_add(&store, run, "a", first, copy, count);
}

/* A member's ledger continues from run to run. A restored older copy is not a continuation. */
Test(store, tells_a_ledger_that_was_put_back)
{
    static const char *const whole[] = {"first\n", "r\n", "s\n"}, *const back[] = {"t\n"},
                             *const other[] = {"other\n", "x\n"};
    struct bytes text = {.max = 64};
    begin();
    int64_t r = add_run("r"), s = add_run("s"), t = add_run("t"), u = add_run("u");
    ok(add_copies(r, 1, whole, 2));
    ok(add_copies(s, 1, whole, 3));
    ok(add_copies(t, 1, whole, 2));
    refused(add_copies(t, 3, back, 1), ERR_INPUT, "line 3 differs from the one sent for run s");
    ok(store_ledger_part(&text, &store, t, "a", 2));
    cr_expect_eq(text.size, 0, "nothing of it is kept");
    ok(add_copies(t, 3, whole + 2, 1));
    ok(add_copies(u, 1, other, 2)); /* of other records */
    bytes_close(&text);
    end();
}

Test(store, numbers_events_for_those_who_watch)
{
    begin();
    int64_t run = add_run("r"), other = add_run("s");
    struct arena arena = {0};
    struct store_event *event = NULL;
    size_t count;
    ok(store_event_add(&store, other, &(struct store_event){.event = "other"}));
    ok(store_opened(&store, run, 1, &(struct store_event){.event = "round.opened", .round = 1}));
    ok(store_events(&event, &count, &store, run, 0, 10, &arena));
    cr_assert_eq(count, 2);
    cr_expect_str_eq(event[0].event, "run.created");
    cr_expect_str_eq(event[1].event, "round.opened");
    cr_expect_eq(event[1].round, 1);
    uint64_t last = event[1].sequence;
    ok(store_events(&event, &count, &store, run, last, 10, &arena));
    cr_expect_eq(count, 0);
    refused(store_run_add(&run, &store,
                          &(struct store_run){.name = "s", .config = "", .config_size = 0}, NULL,
                          0),
            ERR_INPUT, "a run named s exists already");
    arena_close(&arena);
    end();
}

Test(store, removes_any_number_of_blobs_that_were_given_up)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    begin();
    struct store_blob pinned = make_blob("pinned"), given_up = make_blob("given up");
    int64_t left = -1;
    ok(store_pin(&store, &pinned, 1));
    ok(db_script(&store.db,
                 "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<600)"
                 " INSERT INTO doomed SELECT randomblob(32) FROM n;"));
    ok(db_run(&store.db, "INSERT INTO doomed VALUES(?),(?)", "hh", &pinned.digest,
              &given_up.digest));
    ok(store_trim(&store));
    ok(db_number(&left, &store.db, "SELECT count(*) FROM doomed", ""));
    cr_expect_eq(left, 0);
    cr_expect(has_blob(&pinned) && !has_blob(&given_up));
    end();
}
