/* The page for browsers: bounded, escaped, and without anything that privacy hides. e2e/pages.c
 * shows it to a browser. */
#include "coordinator/http/overview.h"

#include "base/json.h"
#include "base/text.h"
#include "tests/support/runs_fixture.h"

#include <inttypes.h>
#include <math.h>

static struct runs_fixture f;

static const char *page(struct bytes *out)
{
    bytes_clear(out);
    out->max = OVERVIEW_BYTES_MAX;
    err e = overview_html(out, &f.facts);
    cr_assert(!err_is(e), "%s", e.text);
    return (const char *)out->data;
}

static json_t *document(struct bytes *out)
{
    json_t *all = NULL;
    bytes_clear(out);
    out->max = 4 << 20;
    err e = overview_json(out, &f.facts);
    if (!err_is(e)) e = json_parse(&all, (const char *)out->data, out->size, "status.json");
    cr_assert(!err_is(e), "%s", e.text);
    return all;
}

/* A round of the run in the store, with this loss. */
static void add_round(struct run *run, int round, double loss)
{
    err e = ERR_NONE;
    if (round == 1) {
        e = db_run(&f.store.db, "INSERT INTO runs(name,config,created_ms) VALUES(?,x'00',1)", "t",
                   run->config->name);
        cr_assert(!err_is(e), "%s", e.text);
        e = db_number(&run->id, &f.store.db, "SELECT id FROM runs WHERE name=?", "t",
                      run->config->name);
        cr_assert(!err_is(e), "%s", e.text);
    }
    const struct store_event event = {.event = "round.closed", .round = (uint32_t)round};
    e = db_run(&f.store.db,
               "INSERT INTO rounds(run,round,state_size,updates,took_ms,aggregate_ms,train_loss,"
               "update_norm,error,dropped,report) VALUES(?,?,0,2,1,1,?,0,0,0,'')",
               "iid", run->id, (int64_t)round, loss);
    cr_assert(!err_is(e), "%s", e.text);
    e = store_event_add(&f.store, run->id, &event);
    cr_assert(!err_is(e), "%s", e.text);
}

static void add_event(const struct run *run, const char *name, const char *member, const char *text)
{
    const struct store_event event = {.event = name, .member = member, .text = text, .round = 3};
    err e = store_event_add(&f.store, run->id, &event);
    cr_assert(!err_is(e), "%s", e.text);
}

#define HAS(text, part) cr_expect(strstr(text, part), "no %s", part)
#define HAS_NOT(text, part) cr_expect(!strstr(text, part), "%s is shown", part)

Test(overview_html, shows_a_run_with_its_rounds_and_losses)
{
    struct bytes b = {0};
    runs_fixture_open(&f, 3);
    struct run *run = runs_fixture_add(&f, "triage");
    for (int i = 1; i <= 3; i++)
        add_round(run, i, 2.5 / i);
    run->round.published = 3;
    const char *text = page(&b);
    HAS(text, "<title>clinics</title>");
    HAS(text, "<progress max=10 value=3>");
    HAS(text, "round 4 of 10");
    HAS(text, "aria-label=\"losses of 3 rounds, from 0.833 to 2.5\"");
    HAS(text, "training loss 0.8333");
    HAS(text, "round.closed 3");
    HAS(text, "Waits for 2 of 2 members: m0000 (never seen)");
    HAS_NOT(text, "<script");
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(overview_html, shows_the_error_of_a_round_once_it_has_a_report)
{
    struct bytes b = {0};
    struct store_round report = {
        .round = 2, .update_norm = 1, .error = 0.0125, .report_json = "{\"modules\":[]}"};
    runs_fixture_open(&f, 2);
    struct run *run = runs_fixture_add(&f, "triage");
    add_round(run, 1, 2);
    add_round(run, 2, 1);
    HAS_NOT(page(&b), ", error ");
    err e = store_report(&f.store, run->id, &report);
    cr_assert(!err_is(e), "%s", e.text);
    HAS(page(&b), ", error 0.0125");
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(overview_html, stays_small_and_well_formed_with_very_many_runs_and_members)
{
    struct bytes b = {0};
    char name[LIMIT_NAME_BYTES];
    enum { RUNS = 1024 };
    runs_fixture_open(&f, LIMIT_MEMBERS);
    for (int i = 0; i < RUNS; i++) {
        snprintf(name, sizeof name, "%0*d", LIMIT_NAME_BYTES - 1, i);
        struct run *run = runs_fixture_add(&f, name);
        if (i < OVERVIEW_RUNS)
            for (int round = 1; round <= OVERVIEW_ROUNDS; round++)
                add_round(run, round, 1.0 / round);
        if (i >= RUNS / 2) run->round.stage = ROUND_FINISHED;
        run->newest.state.size = 1;
    }
    const char *text = page(&b);
    cr_expect_lt(b.size, OVERVIEW_BYTES_MAX);
    HAS(text, "Open runs (512)");
    HAS(text, "more are not shown; <code>fedlora run list --open</code> has all");
    HAS(text, "Members (10000)");
    HAS(text, "Finished runs (512)");
    HAS(text, "</main></body></html>");
    json_t *all = document(&b);
    cr_expect_eq(json_array_size(json_object_get(all, "open")), OVERVIEW_RUNS);
    cr_expect_eq(json_array_size(json_object_get(all, "members")), OVERVIEW_MEMBERS);
    cr_expect_eq(json_integer_value(json_object_get(all, "open_runs")), RUNS / 2);
    json_decref(all);
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(overview_html, escapes_every_text_that_comes_from_elsewhere)
{
    static const char evil[] = "<script>alert(1)</script>\"'&\xff";
    struct bytes b = {0};
    runs_fixture_open(&f, 2);
    struct run *run = runs_fixture_add(&f, "triage");
    add_round(run, 1, 1);
    add_event(run, "run.failed", "<b>m</b>", evil);
    run->round.hold = ROUND_FAILED;
    snprintf(run->round.reason, sizeof run->round.reason, "%s", evil);
    f.facts.ready = f.facts.passes[FACTS_STORE] = false;
    snprintf(f.facts.why[FACTS_STORE], FACTS_TEXT_BYTES, "%s", evil);
    cr_assert(!err_is(troubles_open(&f.serve.shop.troubles)));
    trouble_raise(f.serve.shop.troubles,
                  &(struct trouble_case){.kind = TROUBLE_CALL_REFUSED, .text = evil}, 1);
    const char *text = page(&b);
    HAS_NOT(text, "<script");
    HAS_NOT(text, "<b>m<");
    HAS(text, "clinics: not ready</title>");
    HAS(text, "Not ready: &lt;script&gt;");
    HAS(text, "Waits for an operator: &lt;script&gt;");
    HAS(text, "Needs attention");
    json_decref(document(&b));
    troubles_close(f.serve.shop.troubles);
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(overview_html, hides_losses_of_private_runs_and_the_draw_of_secret_ones)
{
    struct bytes b = {0};
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    runs_fixture_open(&f, 2);
    struct run *run = runs_fixture_add(&f, "secret");
    privacy.unit = (char *)(uintptr_t) "client";
    privacy.epsilon = 6;
    run->config->privacy = &privacy;
    run->round.rules.secret = true;
    add_round(run, 1, 1.2345);
    add_event(run, "update.received", "m0001", "");
    add_event(run, "privacy.spent", "", "epsilon 1.5");
    tally_hide(&f.serve.tally, true);
    const char *text = page(&b);
    HAS(text, "losses are private");
    HAS(text, "epsilon 0 of 6 spent");
    HAS(text, "privacy.spent");
    HAS(text, "Waits for the end of the round");
    HAS_NOT(text, "1.23");
    HAS_NOT(text, "update.received");
    HAS_NOT(text, "m0001 (");
    HAS_NOT(text, "in secret");
    json_t *all = document(&b);
    text = (const char *)b.data;
    HAS_NOT(text, "1.23");
    HAS_NOT(text, "update.received");
    HAS_NOT(text, "\"updates\"");
    json_decref(all);
    run->config->privacy = NULL;
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(overview_html, tells_how_long_the_disk_lasts_from_an_hour_of_samples_on)
{
    static struct facts_disk disk;
    const uint64_t minute = 60000, hour = 60 * minute;
    facts_disk_note(&disk, 1000, hour);
    facts_disk_note(&disk, 999, hour + minute); /* too soon after the first */
    cr_expect_eq(disk.count, 1);
    cr_expect_lt(facts_disk_days(&disk, 900, hour + 30 * minute), 0);
    cr_expect_float_eq(facts_disk_days(&disk, 500, 13 * hour), 0.5, 1e-9);
    cr_expect_lt(facts_disk_days(&disk, 1000, 13 * hour), 0, "it does not fill");
    for (uint64_t i = 1; i <= 2 * FACTS_SAMPLES; i++)
        facts_disk_note(&disk, 1000 - i, hour + i * 10 * minute);
    cr_expect_eq(disk.count, FACTS_SAMPLES);
    cr_expect_eq(disk.free[FACTS_SAMPLES - 1], 1000 - 2 * FACTS_SAMPLES);
}
