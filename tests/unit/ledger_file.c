#include "privacy/ledger/ledger_file.h"
#include "base/file.h"
#include "privacy/ledger/statement.h"
#include "privacy/noise/clip.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16], key[SUPPORT_PATH_BYTES + 16];
static struct ledger_terms terms;

static void make(void)
{
    char command[3 * SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/ledger", dir);
    snprintf(key, sizeof key, "%s/key", dir);
    snprintf(command, sizeof command, "umask 077 && openssl genpkey -algorithm ed25519 -out %s",
             key);
    cr_assert_eq(system(command), 0);
    terms = (struct ledger_terms){.job = "local",
                                  .party = "ward",
                                  .purpose = "training",
                                  .unit = LEDGER_EXAMPLE,
                                  .method = "lora",
                                  .weights = "uniform",
                                  .bases = "none",
                                  .epsilon = 4.5,
                                  .delta = 1e-5,
                                  .noise = 4,
                                  .sampling = 1,
                                  .clip = 1,
                                  .denominator = 500,
                                  .units = 500,
                                  .dim = 100,
                                  .rounds = 1,
                                  .steps = 8};
}

static void drop(void)
{
    support_dir_remove(dir);
}

/* Multiplier 4, eight steps: mu^2 = 1/2 a release; two make multiplier 1, which is 4.377. */
static struct ledger_release release(void)
{
    struct clip_bound bound;
    ok(clip_bound_set(&bound, 1));
    return (struct ledger_release){.round = 1,
                                   .charged = {.noise = 4, .sampling = 1, .count = 8},
                                   .clip = 1,
                                   .sigma = clip_sigma(&bound, 4),
                                   .denominator = 500,
                                   .dim = 100};
}

static void expect_replay(size_t releases)
{
    struct ledger ledger = {0};
    struct statement s;
    char *text = NULL;
    size_t size = 0;
    ok(file_read_all(&text, &size, path, 1 << 20));
    ok(ledger_read(&ledger, text, size, "ledger"));
    ok(statement_replay(&s, &ledger, "ledger"));
    cr_expect_eq(s.releases, releases);
    ledger_close(&ledger);
    free(text);
}

Test(ledger_file, goes_on_where_it_was_and_stops_at_the_budget, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    for (int i = 0; i < 2; i++) {
        struct ledger_release r = release();
        ok(ledger_file_open(&f, path, key, &terms));
        ok(ledger_file_charge(&f, &r));
        if (i == 1) cr_expect_float_eq(r.epsilon, 4.377178, 1e-5);
        ledger_file_close(&f);
        expect_replay((size_t)i + 1);
    }
    struct ledger_release r = release();
    ok(ledger_file_open(&f, path, key, &terms));
    refused(ledger_file_charge(&f, &r), ERR_LIMIT, "the privacy budget is spent: epsilon 4.377");
    ledger_file_close(&f);
    ledger_file_close(&f);
    expect_replay(2);
}

Test(ledger_file, drops_the_line_that_a_crash_cut_off_and_nothing_else, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    struct ledger_release r = release();
    char *text = NULL;
    size_t size = 0;
    ok(ledger_file_open(&f, path, key, &terms));
    ok(ledger_file_charge(&f, &r));
    ledger_file_close(&f);
    ok(file_read_all(&text, &size, path, 1 << 20));
    ok(file_write(path, text, size - 30, true));
    ok(ledger_file_open(&f, path, key, &terms));
    cr_expect_eq(f.head.count, 1);
    ok(ledger_file_charge(&f, &r));
    ledger_file_close(&f);
    expect_replay(1);
    text[size / 4] ^= 1;
    ok(file_write(path, text, size, true));
    free(text);
    err e = ledger_file_open(&f, path, key, &terms);
    cr_expect(e.kind == ERR_INPUT && strstr(e.text, "ledger:1: "), "%s", e.text);
}

static ssize_t full(int fd, const void *data, size_t size)
{
    (void)fd, (void)data, (void)size;
    errno = ENOSPC;
    return -1;
}

static int no_sync(int fd)
{
    (void)fd;
    errno = EIO;
    return -1;
}

Test(ledger_file, what_is_not_on_disk_is_not_charged_as_done, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    struct ledger_release r = release();
    struct file_disk disk = file_disk;
    ok(ledger_file_open(&f, path, key, &terms));
    file_disk.write = full;
    refused(ledger_file_charge(&f, &r), ERR_MACHINE, "No space left on device");
    file_disk = disk;
    expect_replay(0);
    refused(ledger_file_charge(&f, &r), ERR_STATE, "a write has failed; open the ledger again");
    ledger_file_close(&f);
    ok(ledger_file_open(&f, path, key, &terms));
    file_disk.fsync = no_sync;
    refused(ledger_file_charge(&f, &r), ERR_MACHINE, "Input/output error");
    file_disk = disk;
    ledger_file_close(&f);
    expect_replay(1); /* counted though nothing left: over, never under */
    ok(ledger_file_open(&f, path, key, &terms));
    cr_expect_eq(f.head.count, 2);
    ledger_file_close(&f);
}

/* Half of a plan's budget by one run, half by another with other noise: the cap is the ledger's. */
Test(ledger_file, holds_all_runs_on_the_same_records, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    struct ledger_release r = release();
    struct ledger_terms other = terms;
    ok(ledger_file_open(&f, path, key, &terms));
    ok(ledger_file_plan(&f, &terms)); /* the same: no line */
    cr_expect_eq(f.head.count, 1);
    ok(ledger_file_charge(&f, &r));
    ledger_file_close(&f);
    other.job = "another";
    other.epsilon = 9; /* what it would keep to by itself */
    other.noise = 8;
    other.steps = 32;
    r.charged = (struct account_event){.noise = 8, .sampling = 1, .count = 32};
    r.sigma *= 2;
    ok(ledger_file_open(&f, path, key, &other));
    cr_expect_str_eq(f.terms->job, "local");
    cr_expect_eq(f.spend.epsilon, 4.5);
    ok(ledger_file_plan(&f, &other));
    ok(ledger_file_charge(&f, &r));
    cr_expect_float_eq(r.epsilon, 4.377178, 1e-5);
    refused(ledger_file_charge(&f, &r), ERR_LIMIT, "the privacy budget is spent: epsilon 4.377");
    ledger_file_close(&f);
    expect_replay(2);
    ok(ledger_file_open(&f, path, key, &terms));
    cr_expect_str_eq(f.terms->job, "another");
    cr_expect_eq(f.ledger.count, 3);
    ledger_file_close(&f);
}

static void *charge_often(void *unused)
{
    (void)unused;
    for (int i = 0; i < 20; i++) {
        struct ledger_file f = {0};
        struct ledger_release r = release();
        r.charged.count = terms.steps;
        err e = ledger_file_open(&f, path, key, &terms);
        if (!err_is(e)) e = ledger_file_charge(&f, &r);
        ledger_file_close(&f);
        if (err_is(e)) return "failed";
    }
    return NULL;
}

Test(ledger_file, is_one_owners_at_a_time, .init = make, .fini = drop)
{
    pthread_t thread[2];
    void *said = NULL;
    terms.epsilon = 40;
    for (int i = 0; i < 2; i++)
        cr_assert_eq(pthread_create(&thread[i], NULL, charge_often, NULL), 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(thread[i], &said);
        cr_expect_null(said);
    }
    expect_replay(40);
}

Test(ledger_file, keeps_to_its_terms_and_its_key, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    ok(ledger_file_open(&f, path, key, &terms));
    ledger_file_close(&f);
    terms.unit = LEDGER_CLIENT;
    refused(ledger_file_open(&f, path, key, &terms), ERR_INPUT, "has another unit of privacy");
    terms.unit = LEDGER_EXAMPLE;
    terms.units = 100000;
    ok(ledger_file_open(&f, path, key, &terms));
    refused(ledger_file_plan(&f, &terms), ERR_INPUT, "not below one over the 100000 records");
    ledger_file_close(&f);
    char command[3 * SUPPORT_PATH_BYTES];
    snprintf(command, sizeof command, "umask 077 && openssl genpkey -algorithm ed25519 -out %s",
             key);
    cr_assert_eq(system(command), 0);
    refused(ledger_file_open(&f, path, key, &terms), ERR_INPUT, "was created with another key");
}

Test(ledger_file, never_continues_a_ledger_of_the_other_kind, .init = make, .fini = drop)
{
    struct ledger_file f = {0};
    struct ledger_terms simulated = terms;
    simulated.simulated = true;
    ok(ledger_file_open(&f, path, key, &terms));
    ledger_file_close(&f);
    refused(ledger_file_open(&f, path, key, &simulated), ERR_INPUT, "is a real ledger");
    cr_assert_eq(remove(path), 0);
    ok(ledger_file_open(&f, path, key, &simulated));
    ledger_file_close(&f);
    refused(ledger_file_open(&f, path, key, &terms), ERR_INPUT, "ledger of a simulation");
}
