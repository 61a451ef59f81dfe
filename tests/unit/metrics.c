/* The page /metrics: bounded, and without anything that privacy hides. e2e/http.sh gives it to
 * promtool. */
#include "coordinator/http/metrics.h"
#include "base/text.h"
#include "tests/support/runs_fixture.h"

static struct runs_fixture f;

static const char *page(struct bytes *out)
{
    bytes_clear(out);
    err e = metrics_write(out, &f.facts);
    cr_assert(!err_is(e), "%s", e.text);
    return (const char *)out->data;
}

static size_t count(const char *text, const char *part)
{
    size_t n = 0;
    for (const char *at = text; (at = strstr(at, part)); at++)
        n++;
    return n;
}

#define SAYS(text, line) cr_expect(strstr(text, line "\n"), "no line %s", line)

Test(metrics, has_a_help_and_a_kind_for_each_name_and_each_name_once)
{
    struct bytes b = {.max = METRICS_BYTES_MAX};
    char line[256];
    runs_fixture_open(&f, 2);
    const char *text = page(&b);
    for (size_t i = 0; i < metrics_count; i++) {
        const struct metrics_row *row = &metrics_rows[i];
        snprintf(line, sizeof line, "# HELP %s ", row->name);
        cr_expect_eq(count(text, line), 1, "%s", line);
        bool ends = text_ends_with(row->name, "_total");
        cr_expect_eq(ends, row->kind == METRICS_COUNTER, "%s", row->name);
    }
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(metrics, shows_the_figures_of_a_run_and_of_a_member)
{
    struct bytes b = {.max = METRICS_BYTES_MAX};
    runs_fixture_open(&f, 2);
    struct run *run = runs_fixture_add(&f, "triage");
    run->updates_counted = 5;
    run->updates_late = 1;
    run->progress_ms = 1795990000123;
    run->loss_newest = 1.25;
    run->round.published = 3;
    runs_fixture_seen(&f, "m0001", f.facts.wall_ms - 1000);
    runs_fixture_seen(&f, "m0002", f.facts.wall_ms - 1000);
    f.serve.identities.row[1].revoked = true;
    tally_received(&f.serve.tally, "m0001", 4096);
    const char *text = page(&b);
    SAYS(text, "fedlora_run_phase{run=\"triage\",phase=\"training\"} 1");
    SAYS(text, "fedlora_run_round{run=\"triage\"} 4");
    SAYS(text, "fedlora_run_train_loss{run=\"triage\"} 1.25");
    SAYS(text, "fedlora_rounds_total{run=\"triage\"} 3");
    SAYS(text, "fedlora_updates_total{run=\"triage\",outcome=\"counted\"} 5");
    SAYS(text, "fedlora_updates_total{run=\"triage\",outcome=\"late\"} 1");
    SAYS(text, "fedlora_run_progress_timestamp_seconds{run=\"triage\"} 1795990000");
    SAYS(text, "fedlora_members{state=\"connected\"} 1");
    SAYS(text, "fedlora_members{state=\"revoked\"} 1");
    SAYS(text, "fedlora_troubles{kind=\"store.full\"} 0");
    SAYS(text, "fedlora_received_bytes_total{member=\"m0001\"} 4096");
    SAYS(text, "fedlora_certificate_not_after_seconds{role=\"client\",id=\"m0001\"} 1800000000");
    /* Before its first call a member counts from the start of the coordinator. */
    SAYS(text, "fedlora_member_seen_seconds{member=\"m0000\"} 1795000000");
    SAYS(text, "fedlora_member_seen_seconds{member=\"m0001\"} 1795999999");
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(metrics, adds_runs_and_members_up_as_other_beyond_the_limits)
{
    struct bytes b = {.max = METRICS_BYTES_MAX};
    enum { RUNS = METRICS_RUNS + 50, OVER = 30, MEMBERS = METRICS_MEMBERS + 200 };
    char name[32];
    runs_fixture_open(&f, MEMBERS);
    for (int i = 0; i < RUNS; i++) {
        snprintf(name, sizeof name, "r%03d", i);
        struct run *run = runs_fixture_add(&f, name);
        run->round.published = 1;
        if (i < OVER) run->round.stage = ROUND_FINISHED;
    }
    for (int i = 0; i < MEMBERS; i++) {
        snprintf(name, sizeof name, "m%04d", i);
        tally_sent(&f.serve.tally, name, 2);
    }
    const char *text = page(&b);
    cr_expect_eq(count(text, "fedlora_run_phase{"), METRICS_RUNS);
    cr_expect_eq(count(text, "fedlora_rounds_total{"), METRICS_RUNS + 1);
    SAYS(text, "fedlora_rounds_total{run=\"other\"} 50");
    cr_expect_eq(count(text, "fedlora_sent_bytes_total{"), METRICS_MEMBERS + 1);
    SAYS(text, "fedlora_sent_bytes_total{member=\"other\"} 400");
    SAYS(text, "fedlora_runs{phase=\"finished\"} 30");
    cr_expect_lt(b.size, 1 << 20);
    bytes_close(&b);
    runs_fixture_close(&f);
}

Test(metrics, hides_losses_of_private_runs_and_the_draw_of_secret_ones)
{
    struct bytes b = {.max = METRICS_BYTES_MAX};
    Fedlora__V1__Privacy privacy = FEDLORA__V1__PRIVACY__INIT;
    runs_fixture_open(&f, 2);
    struct run *run = runs_fixture_add(&f, "secret");
    privacy.unit = (char *)(uintptr_t) "client";
    privacy.epsilon = 6;
    run->config->privacy = &privacy;
    run->round.rules.secret = true;
    run->round.published = 1;
    run->loss_newest = 1.25;
    const char *text = page(&b);
    cr_expect_eq(count(text, "fedlora_run_train_loss{"), 0);
    cr_expect_eq(count(text, "fedlora_run_awaited{"), 0);
    SAYS(text, "fedlora_run_epsilon_budget{run=\"secret\"} 6");
    SAYS(text, "fedlora_run_epsilon{run=\"secret\"} 0");
    bytes_close(&b);
    run->config->privacy = NULL;
    runs_fixture_close(&f);
}
