/* Runs with client-level privacy: a real fedlorad over TLS, killed many times, spends exactly what
 * its ledger says, stops at the budget, and gives a round's task only to members that were drawn.
 * Members have no model. They are only three, so no real plan is accepted without --force. */
#include "base/file.h"
#include "base/json.h"
#include "coordinator/store/store.h"
#include "privacy/ledger/statement.h"
#include "tests/support/database.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MEMBERS = 3, ROUNDS = 6 };

static const struct method_module modules[] = {{"model.layers.0.self_attn.q_proj", 48, 32},
                                               {"model.layers.0.self_attn.v_proj", 16, 32}};
static const char *const ids[MEMBERS] = {"m0", "m1", "m2"};
static struct fake_base base;
static struct fake_federation federation;
static struct fake_member ops;
static char dir[SUPPORT_PATH_BYTES];

static struct fake_options options_of(const char *id)
{
    return (struct fake_options){.server = federation.address,
                                 .certs = federation.certs,
                                 .id = id,
                                 .run = "r",
                                 .base = &base,
                                 .rank = 8,
                                 .examples = 10,
                                 .give_up_ms = 30000};
}

static void open_member(struct fake_member *m, const char *id)
{
    struct fake_options options = options_of(id);
    ok(fake_open(m, &options));
}

static Fedlora__V1__Privacy privacy;
static const char *http_listen = "";
static const char *method, *weights;
static uint32_t evaluate_every, quorum;
static uint64_t deadline_ms;
static char *late;

/* With multiplier 2, four rounds spend 4.377 of the budget of 4.5 (the exact curve at multiplier
 * 1), and a fifth round would exceed it. */
static void defaults(void)
{
    fedlora__v1__privacy__init(&privacy);
    privacy.unit = "client";
    privacy.epsilon = 4.5;
    privacy.delta = 1e-5;
    privacy.noise = 2;
    privacy.clip = 0.25;
    privacy.force = true;
    method = "fed-sb";
    weights = "";
    evaluate_every = quorum = 0;
    deadline_ms = 60 * 1000;
    late = "";
}

static err create_run(void)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = "r";
    config.method = (char *)(uintptr_t)method;
    config.rounds = ROUNDS;
    config.rank = 8;
    config.quorum = quorum;
    config.deadline_ms = deadline_ms;
    config.late = late;
    config.weights = (char *)(uintptr_t)weights;
    config.evaluate_every = evaluate_every;
    config.privacy = &privacy;
    return fake_create_run(&ops, &config, MEMBERS);
}

static void begin(bool with_key)
{
    char command[4 * SUPPORT_PATH_BYTES], more[SUPPORT_PATH_BYTES + 64] = "";
    defaults();
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    snprintf(command, sizeof command,
             "umask 077 && openssl genpkey -algorithm ed25519 -out %s/ledger.pem && "
             "openssl pkey -in %s/ledger.pem -pubout -out %s/ledger.pub",
             dir, dir, dir);
    cr_assert_eq(system(command), 0);
    if (with_key)
        snprintf(more, sizeof more, "[privacy]\nledger_key = %s/ledger.pem\n[http]\nlisten = %s\n",
                 dir, http_listen);
    ok(fake_federation_open(&federation, dir, MEMBERS, more));
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops");
}

static void end(void)
{
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    support_dir_remove(dir);
}

static struct digest run_everyone(int kills)
{
    static struct fake_joining joining[MEMBERS];
    const struct fake_options options = options_of(NULL);
    for (int i = 0; i < MEMBERS; i++)
        fake_join_begin(&joining[i], i, &options);
    for (int k = 0; k < kills; k++) {
        usleep(40000 + 23000 * (unsigned)k);
        cr_expect_eq(fake_federation_stop(&federation, SIGKILL), -1);
        ok(fake_federation_start(&federation));
    }
    for (int i = 0; i < MEMBERS; i++) {
        ok(fake_join_end(&joining[i]));
        cr_expect(digest_equal(&joining[i].last, &joining[0].last));
    }
    return joining[0].last;
}

/* The ledger as an auditor gets it: the file beside the database. */
static char *ledger_text(size_t *size)
{
    char path[SUPPORT_PATH_BYTES + 64], *text = NULL;
    snprintf(path, sizeof path, "%s/ledgers/r.jsonl", federation.store);
    ok(file_read_all(&text, size, path, 1 << 24));
    return text;
}

static void read_ledger(struct ledger *ledger, struct statement *s)
{
    size_t size = 0;
    char *text = ledger_text(&size);
    ok(ledger_read(ledger, text, size, "r.jsonl"));
    ok(statement_replay(s, ledger, "r.jsonl"));
    free(text);
}

static int verify(const char *more)
{
    char command[3 * SUPPORT_PATH_BYTES];
    snprintf(command, sizeof command,
             "%s/fedlora budget verify %s/ledgers/r.jsonl --key %s/ledger.pub %s >%s/said 2>&1",
             FEDLORA_BUILD_DIR, federation.store, dir, more, dir);
    int status = system(command);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void expect_said(const char *part)
{
    char path[SUPPORT_PATH_BYTES + 16], *text = NULL;
    size_t size = 0;
    snprintf(path, sizeof path, "%s/said", dir);
    ok(file_read_all(&text, &size, path, 1 << 20));
    cr_expect(strstr(text, part), "%s in:\n%s", part, text);
    free(text);
}

static void expect_stopped(void)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->phase, "stopped");
    cr_expect_eq(status->n_history, 4);
    cr_expect(
        strstr(status->waiting_for, "nothing: the run is stopped: the privacy budget is spent"),
        "%s", status->waiting_for);
    for (size_t i = 0; i < status->n_history; i++)
        cr_expect_eq(status->history[i]->train_loss, 0, "no statistic leaves beside the release");
    message_free(status);
}

/* Counted in the store, because a kill can come before the log line. */
static void expect_reason(const char *part)
{
    struct store store;
    struct arena arena = {0};
    struct store_run *run = NULL;
    size_t count = 0;
    ok(support_store_open(&store, federation.store));
    ok(store_runs(&run, &count, &store, &arena));
    cr_assert_eq(count, 1);
    cr_expect(strstr(run->reason, part) == run->reason, "%s", run->reason);
    arena_close(&arena);
    store_close(&store);
}

Test(private, a_killed_run_spends_exactly_what_its_ledger_says_and_stops_at_the_budget)
{
    struct ledger ledger = {0};
    struct statement s;
    begin(true);
    ok(create_run());
    struct digest last = run_everyone(8);
    expect_stopped();
    read_ledger(&ledger, &s);
    cr_expect_eq(s.releases, 4, "each round once, however often it was begun");
    cr_expect_float_eq(s.spent.epsilon, 4.377178, 1e-5);
    for (uint32_t i = 0; i < 4 && i < ledger.count; i++)
        cr_expect_eq(ledger.entry[i].release.round, i + 1);
    cr_expect(digest_equal(&ledger.entry[3].release.released, &last),
              "what members hold is what was charged");
    cr_expect_eq(ledger.terms.dim, 2 * 8 * 8);
    cr_expect(s.stopped && strstr(s.stopped, "the privacy budget is spent"));
    cr_expect_eq(verify(""), 0);
    expect_said("epsilon 4.37718 (PLD)");
    expect_said("(the one given)");
    cr_expect(fake_federation_logged(&federation, "event=noise.drawn"), "while members train");
    expect_reason("the privacy budget is spent: epsilon 4.377 of 4.5");
    ledger_close(&ledger);
    end();
}

Test(private, a_changed_ledger_is_refused_by_line)
{
    char path[SUPPORT_PATH_BYTES + 64];
    size_t size = 0;
    begin(true);
    ok(create_run());
    run_everyone(0);
    char *text = ledger_text(&size);
    char *digit = text;
    for (int i = 0; i < 2; i++)
        digit = strchr(digit, '\n') + 1;
    digit = strstr(digit, "\"sigma\":") + 8;
    *digit = *digit == '1' ? '2' : '1';
    snprintf(path, sizeof path, "%s/ledgers/r.jsonl", federation.store);
    ok(file_write(path, text, size, true));
    free(text);
    cr_expect_eq(verify(""), 2);
    expect_said("r.jsonl:3: the line was changed");
    cr_expect_eq(verify("--head 0123"), 2);
    end();
}

/* The seed that was committed before a round must draw the cohort of that round's release again. */
Test(private, hands_rounds_only_to_who_was_drawn)
{
    struct ledger ledger = {0};
    struct statement s;
    struct store store;
    struct arena arena = {0};
    struct store_round *round = NULL;
    struct cohort_seed last;
    const struct cohort all = {.run = "r", .round = ROUNDS, .q = 1};
    size_t count = 0;
    begin(true);
    privacy.sampling = 0.5;
    privacy.epsilon = 50;
    privacy.adaptive = true;
    privacy.sigma_b = 3;
    deadline_ms = 4000; /* that long each round lasts, so that its length tells nothing */
    ok(create_run());
    run_everyone(4);
    read_ledger(&ledger, &s);
    cr_assert_eq(s.releases, ROUNDS);
    ok(support_store_open(&store, federation.store));
    ok(store_private_seed(&last, &store, 1));
    ok(store_rounds(&round, &count, &store, 1, false, &arena));
    cr_assert_eq(count, ROUNDS);
    for (uint32_t i = 1; i <= ROUNDS; i++) {
        struct cohort cohort = {.run = "r", .round = i, .q = 0.5};
        struct cohort_seed seed;
        uint32_t drawn = 0;
        cohort_seed_before(&seed, &last, &all, i);
        struct digest anchor = cohort_anchor(&seed, &cohort, ids, MEMBERS);
        cr_expect(digest_equal(&anchor, &ledger.terms.cohorts), "committed to before round 1");
        for (int m = 0; m < MEMBERS; m++) {
            char id[16];
            snprintf(id, sizeof id, "m%d", m);
            drawn += cohort_has(&seed, &cohort, id);
        }
        cr_expect_eq(round[i - 1].updates, drawn, "round %u", i);
        cr_expect(ledger.entry[i - 1].release.denominator == 1.5, "whoever came");
    }
    cr_expect(ledger.entry[1].release.clip != ledger.entry[0].release.clip, "it adapts");
    arena_close(&arena);
    store_close(&store);
    ledger_close(&ledger);
    end();
}

static pid_t start_watch(const char *port)
{
    pid_t pid = fork();
    if (pid) return pid;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    execlp("python3", "python3", FEDLORA_SOURCE_DIR "/tests/support/secret_watch.py", port,
           (char *)NULL);
    _exit(127);
}

/* The pages for monitoring have no password, so a secret draw must not be seen there, also not
 * after a restart. */
Test(private, shows_on_no_page_who_was_drawn)
{
    char listen[32];
    int status = 0;
    snprintf(listen, sizeof listen, "127.0.0.1:%d", 20000 + (int)getpid() % 20000);
    http_listen = listen;
    begin(true);
    privacy.sampling = 0.5;
    privacy.epsilon = 50;
    deadline_ms = 900;
    ok(create_run());
    pid_t watch = start_watch(strchr(listen, ':') + 1);
    run_everyone(1);
    kill(watch, SIGTERM);
    cr_assert_eq(waitpid(watch, &status, 0), watch);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 0, "status %d of the watch", status);
    end();
}

static void refuse(const char *part)
{
    refused(create_run(), ERR_REFUSED, part);
    defaults();
}

/* Of a run whose ledger commits to a plan. */
static void refuse_changes(void)
{
    static const char *const refused_values[] = {"quorum=2", "rounds=9", "weight_cap=0.5",
                                                 "late_rounds=1", "norm_bound=5"};
    Fedlora__V1__RunChange change = FEDLORA__V1__RUN_CHANGE__INIT;
    Fedlora__V1__MemberChange member = FEDLORA__V1__MEMBER_CHANGE__INIT;
    Fedlora__V1__MemberConfig m0 = FEDLORA__V1__MEMBER_CONFIG__INIT;
    char *value[1];
    change.run = member.run = "r";
    change.set = value;
    change.n_set = 1;
    for (size_t i = 0; i < sizeof refused_values / sizeof *refused_values; i++) {
        value[0] = (char *)(uintptr_t)refused_values[i];
        refused(fake_call(&ops, RPC_PATH_ADMIN(set_run), &change.base), ERR_REFUSED,
                "its ledger commits to a plan that counts on it");
    }
    value[0] = "deadline=0s";
    refused(fake_call(&ops, RPC_PATH_ADMIN(set_run), &change.base), ERR_REFUSED,
            "privacy: without a deadline");
    value[0] = "deadline=2h";
    ok(fake_call(&ops, RPC_PATH_ADMIN(set_run), &change.base));
    m0.id = "m0";
    member.member = &m0;
    refused(fake_call(&ops, RPC_PATH_ADMIN(drop_member), &member.base), ERR_REFUSED,
            "its ledger commits to the number of its members");
}

Test(private, refuses_promises_that_cannot_be_kept)
{
    begin(true);
    privacy.force = false;
    ok(create_run());             /* shapes decide, and they are not known yet */
    for (int i = 0; i < 2; i++) { /* a majority agrees on them */
        struct fake_member m;
        Fedlora__V1__HelloReply *reply = NULL;
        open_member(&m, ids[i]);
        ok(fake_hello(&reply, &m));
        message_free(reply);
        fake_close(&m);
    }
    for (int i = 0; i < 200 && !fake_federation_logged(&federation, "privacy: hopeless"); i++)
        usleep(20000);
    cr_expect(fake_federation_logged(&federation, "privacy: hopeless: the noise in the mean is "));
    refuse_changes();
    defaults();
    method = "flora";
    refuse("privacy: flora sends every member's factors to all members");
    method = "fedit";
    refuse("privacy: fedit sends both factors");
    weights = "examples";
    refuse("privacy: weights by example counts depend on the data");
    privacy.delta = 0.4;
    refuse("privacy: delta 0.4 is not below one over the 3 members");
    privacy.epsilon = 0;
    refuse("privacy: the budget is missing");
    quorum = 2;
    refuse("privacy: a quorum makes one member's part depend on the others'");
    evaluate_every = 1;
    refuse("privacy: members' evaluations reveal something that the budget does not count");
    late = "next";
    refuse("privacy: late updates would count a member in a round it was not drawn for");
    deadline_ms = 0;
    refuse("privacy: without a deadline, one member that never answers would decide");
    privacy.unit = "planet";
    refuse("privacy: unit \"planet\"");
    privacy.clip = 0;
    refuse("clip norm 0");
    privacy.noise = 0.5;
    refuse("privacy: noise multiplier 0.5 spends more than epsilon 4.5 in one round");
    end();
    begin(false);
    refuse("privacy: this coordinator has no privacy.ledger_key");
    end();
}
