/* Statements from ledgers as the coordinator makes them, and from ledgers with false statements and
 * valid signatures. */
#include "privacy/ledger/statement.h"
#include "base/file.h"
#include "base/json.h"
#include "privacy/ledger/release.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DIM = 4, MEMBERS = 50 };

static struct ledger_key key;
static struct ledger_head head;
static struct spend budget;
static struct bytes text;
static struct ledger_terms terms;

static void make(void)
{
    uint8_t seed[32] = {7};
    cr_assert_geq(sodium_init(), 0);
    crypto_sign_seed_keypair(key.public, key.secret, seed);
    head = (struct ledger_head){0};
    text = (struct bytes){.max = 1 << 20};
    terms = (struct ledger_terms){.job = "trial",
                                  .party = "coordinator",
                                  .purpose = "training",
                                  .unit = LEDGER_CLIENT,
                                  .method = "fed-sb",
                                  .weights = "uniform",
                                  .bases = "seed",
                                  .epsilon = 5.2,
                                  .delta = 1e-5,
                                  .noise = 1,
                                  .sampling = 0.1,
                                  .clip = 0.5,
                                  .denominator = 5,
                                  .cohorts = {{1}},
                                  .units = MEMBERS,
                                  .dim = DIM,
                                  .rounds = 60,
                                  .steps = 1};
    ok(spend_open(&budget, terms.epsilon, terms.delta));
    ok(ledger_start(&text, &head, &key, &terms));
}

static void drop(void)
{
    bytes_close(&text);
    spend_close(&budget);
}

/* One round without any member: its release is charged like any other. */
static err round_of(uint32_t round, const struct adaptive *how, double clip)
{
    struct central_spec spec = {.dim = DIM,
                                .noise = terms.noise,
                                .clip = clip,
                                .denominator = terms.denominator,
                                .expected = terms.denominator};
    struct central c = {0};
    struct release *r = NULL;
    struct digest state = digest_of(&round, sizeof round);
    struct release_charge charge = {.round = round, .sampling = terms.sampling};
    double mean[DIM];
    if (how) spec.adaptive = *how;
    ok(central_begin(&c, &spec));
    central_finish(mean, &c);
    err e = release_noisy(&r, &budget, &head, &key, &c, &state, &charge);
    if (!err_is(e)) {
        cr_expect(release_private(r));
        cr_expect_eq(release_line_number(r), head.count);
        cr_expect(digest_equal(release_state(r), &state));
        ok(bytes_append(&text, release_line(r), strlen(release_line(r))));
    }
    release_close(r);
    central_close(&c);
    return e;
}

static err replay(struct statement *s, struct ledger *ledger)
{
    TRY(ledger_read(ledger, (const char *)text.data, text.size, "x.jsonl"));
    return statement_replay(s, ledger, "x.jsonl");
}

/* Rate 0.1, multiplier 1, 50 steps, delta 1e-5; computed with google/differential-privacy. */
Test(statement, replays_to_the_published_epsilon, .init = make, .fini = drop)
{
    struct ledger ledger = {0};
    struct statement s;
    struct bytes page = {.max = 1 << 20};
    json_t *json = NULL;
    for (uint32_t i = 1; i <= 50; i++)
        ok(round_of(i, NULL, 0.5));
    ok(ledger_note(&text, &head, &key, "stop", "the budget is spent"));
    ok(replay(&s, &ledger));
    cr_expect_float_eq(s.spent.epsilon, 5.148262593, 1e-6);
    cr_expect_float_eq(s.spent.rdp, 5.885427277, 1e-6);
    cr_expect(s.releases == 50 && s.steps == 50 && s.noise_least >= 1);
    cr_expect_str_eq(s.stopped, "the budget is spent");
    ok(statement_text(&page, &s));
    static const char *const says[] = {"run trial, ledger of coordinator",
                                       "one member's whole data (client level)",
                                       "epsilon 5.2 at delta 1e-05",
                                       "epsilon 5.14826 (PLD); 5.88543 by RDP",
                                       "50, of 50 noisy steps in all",
                                       "60 rounds of 1 noisy step",
                                       "if an attacker sees which members take part",
                                       "50 members at rate 0.1 (Poisson)",
                                       "(38 more; --json has them all)",
                                       "The coordinator is trusted",
                                       "Not protected",
                                       "52 lines, each with the hash",
                                       "not compared; give --key"};
    for (size_t i = 0; i < sizeof says / sizeof *says; i++)
        cr_expect(strstr((char *)page.data, says[i]), "%s in:\n%s", says[i], (char *)page.data);
    size_t lines = 0;
    for (size_t i = 0; i < page.size; i++)
        lines += page.data[i] == '\n';
    cr_expect_lt(lines, 60, "one page: %zu lines", lines);
    ok(statement_json(&json, &s));
    cr_expect_eq(json_array_size(json_object_get(json, "rounds_table")), 50);
    cr_expect_float_eq(
        json_number_value(json_object_get(json_object_get(json, "spent"), "epsilon")), 5.148262593,
        1e-6);
    json_decref(json);
    bytes_close(&page);
    ledger_close(&ledger);
}

static void begin_again(void)
{
    bytes_clear(&text);
    spend_close(&budget);
    head = (struct ledger_head){0};
    ok(spend_open(&budget, terms.epsilon, terms.delta));
    ok(ledger_start(&text, &head, &key, &terms));
}

/* Multiplier 5, everyone: 50 rounds spend 6.573, 51 more than 6.6. */
Test(statement, a_release_that_the_budget_does_not_allow_is_not_made, .init = make, .fini = drop)
{
    struct ledger ledger = {0};
    struct statement s;
    terms.sampling = 1;
    terms.noise = 5;
    terms.epsilon = 6.6;
    begin_again();
    for (uint32_t i = 1; i <= 50; i++)
        ok(round_of(i, NULL, 0.5));
    refused(round_of(51, NULL, 0.5), ERR_LIMIT,
            "the privacy budget is spent: epsilon 6.573 of 6.6 at delta 1e-05 after 50 releases");
    ok(replay(&s, &ledger)); /* and what was made stands */
    cr_expect_float_eq(s.spent.epsilon, 6.572970071, 1e-6);
    cr_expect_eq(s.releases, 50);
    ledger_close(&ledger);
}

Test(statement, adaptive_clipping_is_charged_once_a_round, .init = make, .fini = drop)
{
    struct adaptive how = {.on = true, .quantile = 0.5, .rate = 0.2, .sigma_b = 1};
    struct ledger ledger = {0};
    struct statement s;
    terms.adaptive = how;
    begin_again();
    ok(round_of(1, &how, 0.5));
    ok(round_of(2, &how, 0.47));
    ok(round_of(3, &how, 0.47));
    ok(replay(&s, &ledger));
    cr_expect_eq(s.releases, 3);
    cr_expect(s.noise_least >= 1 && s.noise_least < 1.000001, "%.17g", s.noise_least);
    ledger_close(&ledger);
}

static struct ledger_release honest(void)
{
    struct ledger_release r = {.round = 1,
                               .charged = {.noise = 1, .sampling = 0.1, .count = 1},
                               .clip = 0.5,
                               .sigma = 1 << 30,
                               .denominator = 5,
                               .dim = DIM};
    struct spend_total spent;
    ok(spend_after(&spent, &budget, &r.charged));
    r.epsilon = spent.epsilon;
    r.rdp = spent.rdp;
    r.order = spent.rdp_order;
    return r;
}

static void expect(const struct ledger_release *r, const char *part)
{
    struct ledger ledger = {0};
    struct statement s;
    size_t size = text.size;
    struct ledger_head was = head;
    ok(ledger_add(&text, &head, &key, r));
    if (part)
        refused(replay(&s, &ledger), ERR_INPUT, part);
    else
        ok(replay(&s, &ledger));
    ledger_close(&ledger);
    text.size = size;
    head = was;
}

Test(statement, refuses_a_signed_lie_and_names_the_line, .init = make, .fini = drop)
{
    struct ledger_release r = honest();
    expect(&r, NULL);
    r.sigma--;
    expect(&r, "x.jsonl:2: the noise has multiplier 1, less than the 1 charged");
    r = honest();
    r.epsilon *= 0.99;
    expect(&r, "x.jsonl:2: epsilon is ");
    r = honest();
    r.rdp += 1e-4;
    expect(&r, "x.jsonl:2: epsilon by RDP is ");
    r = honest();
    r.denominator = 4;
    expect(&r, "x.jsonl:2: the denominator is 4, but 5 was promised");
    r = honest();
    r.dim = 5;
    expect(&r, "x.jsonl:2: 5 coordinates, but 4 were promised");
    r = honest();
    r.clip = 0;
    expect(&r, "x.jsonl:2: clip norm 0");
    r = honest();
    r.clip = 0.25;
    expect(&r, "x.jsonl:2: clip norm 0.25, but 0.5 was promised");
    r = honest();
    r.sigma = 1ull << 49;
    expect(&r, "x.jsonl:2: a deviation of more than 2^48 lattice steps");
    r = honest();
    r.sigma_bits = 1;
    expect(&r, "x.jsonl:2: a count of unclipped members that was not promised");
    r = honest();
    r.order += 0.1;
    expect(&r, "x.jsonl:2: the order is ");
    r = honest();
    r.charged.mechanism = ACCOUNT_FIXED_SIZE;
    expect(&r, "x.jsonl:2: 1 steps of another mechanism, but 1 of Gaussian noise");
    r = honest();
    r.charged.sampling = 0.05;
    expect(&r, "x.jsonl:2: sampling rate 0.05, but 0.1 was promised");
    r = honest();
    r.round = 2;
    expect(&r, "x.jsonl:2: round 2 after round 0");
    ok(round_of(1, NULL, 0.5));
    r = honest();
    expect(&r, "x.jsonl:3: round 1 after round 1");
    r.round = 2;
    r.charged.count = 2;
    expect(&r, "x.jsonl:3: 2 steps of Gaussian noise, but 1 of Gaussian noise were promised");
}

/* Lines whose PLD is not computed again must lie between those whose is. */
Test(statement, refuses_an_epsilon_that_falls, .init = make, .fini = drop)
{
    struct ledger ledger = {0};
    struct statement s;
    struct ledger_release r = honest();
    terms.sampling = 1;
    terms.noise = 50;
    terms.rounds = 100;
    begin_again();
    for (uint32_t i = 1; i <= 99; i++)
        if (i != 50) {
            ok(round_of(i, NULL, 0.5));
        } else { /* the second of two: not computed again */
            struct spend_total spent;
            r.round = i;
            r.charged = (struct account_event){.noise = 50, .sampling = 1, .count = 1};
            r.sigma = 50ull << 30;
            ok(spend_after(&spent, &budget, &r.charged));
            r.epsilon = 0.01;
            r.rdp = spent.rdp;
            r.order = spent.rdp_order;
            ok(ledger_add(&text, &head, &key, &r));
            ok(spend_charge(&budget, &r.charged));
        }
    refused(replay(&s, &ledger), ERR_INPUT, "x.jsonl:51: the line has epsilon 0.01");
    ledger_close(&ledger);
    bytes_clear(&text);
    head = (struct ledger_head){0};
    spend_close(&budget);
    begin_again();
    ok(round_of(1, NULL, 0.5));
    ok(ledger_note(&text, &head, &key, "stop", "the budget is spent"));
    ok(round_of(2, NULL, 0.5));
    refused(replay(&s, &ledger), ERR_INPUT, "x.jsonl:4: a release after the stop");
    ledger_close(&ledger);
}

Test(statement, refuses_what_passes_the_budget, .init = make, .fini = drop)
{
    struct ledger_release r;
    struct spend_total spent;
    terms.steps = 400;
    begin_again();
    r = honest();
    r.charged.count = 400;
    ok(spend_after(&spent, &budget, &r.charged));
    r.epsilon = spent.epsilon;
    r.rdp = spent.rdp;
    r.order = spent.rdp_order;
    expect(&r, "x.jsonl:2: the budget was exceeded: epsilon ");
}

/* A basis found by two passes over everyone, then training: under one budget. */
Test(statement, a_new_plan_goes_on_under_the_same_budget, .init = make, .fini = drop)
{
    struct ledger ledger = {0};
    struct statement s;
    struct ledger_terms training = terms;
    struct bytes page = {.max = 1 << 20};
    json_t *json = NULL;
    terms.purpose = "basis";
    terms.sampling = 1;
    terms.noise = 4;
    terms.denominator = MEMBERS;
    begin_again();
    ok(round_of(1, NULL, 0.5));
    ok(round_of(2, NULL, 0.5));
    terms = training;
    ok(ledger_plan(&text, &head, &key, &terms));
    for (uint32_t i = 3; i < 6; i++)
        ok(round_of(i, NULL, 0.5));
    ok(replay(&s, &ledger));
    cr_expect(s.plans == 2 && s.releases == 5);
    cr_expect_str_eq(ledger.entry[0].terms->purpose, "basis");
    cr_expect_str_eq(ledger.entry[4].terms->purpose, "training");
    cr_expect_eq(ledger.in_force, ledger.entry[4].terms);
    ok(statement_text(&page, &s));
    cr_expect(strstr((char *)page.data, "two passes that find a basis"));
    cr_expect(strstr((char *)page.data, "plan 2           run trial, training: method fed-sb"));
    ok(statement_json(&json, &s));
    cr_expect_eq(json_array_size(json_object_get(json, "plans")), 2);
    json_decref(json);
    ledger_close(&ledger);
    ok(ledger_plan(&text, &head, &key, &terms));
    refused(replay(&s, &ledger), ERR_INPUT,
            "x.jsonl:8: another plan, but the ledger is for one run");
    ledger_close(&ledger);
    bytes_close(&page);
}

Test(statement, refuses_terms_that_promise_nothing)
{
    struct ledger ledger = {0};
    struct statement s;
    make();
    text.size = 0;
    head = (struct ledger_head){0};
    terms.units = 200000;
    ok(ledger_start(&text, &head, &key, &terms));
    refused(replay(&s, &ledger), ERR_INPUT, "x.jsonl:1: delta 1e-05 with 200000 units");
    ledger_close(&ledger);
    terms.units = MEMBERS;
    terms.cohorts = (struct digest){0};
    begin_again();
    refused(replay(&s, &ledger), ERR_INPUT,
            "x.jsonl:1: members are drawn, but the line does not commit");
    ledger_close(&ledger);
    drop();
}

Test(statement, without_privacy_a_release_says_so)
{
    struct digest state = digest_of("x", 1);
    struct release *r = NULL;
    ok(release_plain(&r, &state));
    cr_expect_not(release_private(r));
    cr_expect_str_eq(release_line(r), "");
    cr_expect(strstr(release_says(r), "no privacy"));
    cr_expect(digest_equal(release_state(r), &state));
    release_close(r);
    release_close(NULL);
}

/* The seed of the fuzz targets is a valid ledger of two plans. */
Test(statement, the_fuzz_targets_seed_replays)
{
    struct ledger ledger = {0};
    struct statement s;
    char path[SUPPORT_PATH_BYTES], *seed = NULL;
    size_t size = 0;
    support_source(path, sizeof path, "tests/fuzz/seeds/ledger.jsonl");
    ok(file_read_all(&seed, &size, path, 1 << 20));
    ok(ledger_read(&ledger, seed, size, "seed"));
    ok(statement_replay(&s, &ledger, "seed"));
    cr_expect(s.plans == 2 && s.releases == 5);
    ledger_close(&ledger);
    free(seed);
}
