/* A real fedlorad process and members without a model, over TLS: whole runs, kills, interrupted
 * uploads, a full disk, and requests that must be refused with a reason and without harm to the
 * run. */
#include "base/text.h"
#include "tests/support/fake_federation.h"
#include "tests/support/fake_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { MEMBERS = 3, ROUNDS = 3 };

static const struct method_module modules[] = {{"model.layers.0.self_attn.q_proj", 48, 32},
                                               {"model.layers.0.self_attn.v_proj", 16, 32}};
static struct fake_base base;
static struct fake_federation federation;
static struct fake_member ops;
static char dir[SUPPORT_PATH_BYTES];

static struct fake_options options_of(const char *id, uint32_t rank)
{
    return (struct fake_options){.server = federation.address,
                                 .certs = federation.certs,
                                 .id = id,
                                 .run = "r",
                                 .base = &base,
                                 .rank = rank,
                                 .examples = 10 + rank,
                                 .give_up_ms = 20000};
}

static void open_member(struct fake_member *m, const char *id, uint32_t rank)
{
    struct fake_options options = options_of(id, rank);
    ok(fake_open(m, &options));
}

/* With a quorum of 2, a late update counts in the next round. */
static err create_run(const char *method, uint32_t quorum)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    Fedlora__V1__MemberConfig member[MEMBERS], *list[MEMBERS];
    static char *ids[MEMBERS] = {"m0", "m1", "m2"}, *targets[] = {"q", "v_proj"};
    struct digest digest = base.digest;
    for (int i = 0; i < MEMBERS; i++) {
        fedlora__v1__member_config__init(&member[i]);
        member[i].id = ids[i];
        list[i] = &member[i];
    }
    training.steps = 1;
    config.name = "r";
    config.method = (char *)(uintptr_t)method;
    config.rounds = ROUNDS;
    config.rank = 8;
    config.quorum = quorum;
    if (quorum == 2) config.late = "next";
    config.base_digest = (ProtobufCBinaryData){DIGEST_BYTES, digest.byte};
    config.members = list;
    config.n_members = MEMBERS;
    config.targets = targets;
    config.n_targets = 2;
    config.training = &training;
    return fake_create(&ops, &config);
}

static void begin(const char *more)
{
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS, more));
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
}

static void end(void)
{
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    cr_expect(fake_federation_logged(&federation, "event=fedlorad.stopped"));
    support_dir_remove(dir);
}

/* ---- everyone at once */
/* Kills the coordinator `kills` times while the members take part. Returns the last state. Rank 0
 * stands for the ranks 2, 4 and 8. */
static struct digest run_everyone(int kills, uint32_t rank)
{
    static struct fake_joining joining[MEMBERS];
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_options options = options_of(NULL, rank ? rank : 2u << i);
        fake_join_begin(&joining[i], i, &options);
    }
    ok(fake_federation_kill(&federation, kills));
    for (int i = 0; i < MEMBERS; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
        cr_expect(digest_equal(&joining[i].last, &joining[0].last));
    }
    return joining[0].last;
}

static void expect_finished(void)
{
    Fedlora__V1__RunStatus *status = NULL;
    fake_close(&ops); /* a coordinator that was killed has dropped the connection */
    open_member(&ops, "ops", 0);
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->phase, "finished");
    cr_expect_eq(status->n_history, ROUNDS);
    for (size_t i = 0; i < status->n_history; i++) {
        const Fedlora__V1__RoundStatus *r = status->history[i];
        cr_expect_eq(r->updates, MEMBERS);
        cr_expect_eq(isnan(r->update_norm) != 0, !*r->report_json, "both or neither");
        cr_expect(!*r->report_json || strstr(r->report_json, "q_proj"));
    }
    message_free(status);
}

/* A kill between a round and its report would lose the report uncounted. */
static void expect_reports(void)
{
    size_t made = 0, skipped = 0;
    ok(fake_reports(&made, &skipped, &ops, "r"));
    cr_expect_eq(made + skipped, ROUNDS, "%zu made, %zu skipped", made, skipped);
}

Test(coordinator, kills_at_any_moment_change_no_byte_of_the_result)
{
    struct digest last[2];
    for (int killed = 0; killed < 2; killed++) {
        begin("");
        ok(create_run("flora", 0));
        last[killed] = run_everyone(killed ? 5 : 0, 0);
        expect_finished();
        if (!killed) expect_reports();
        end();
    }
    cr_expect(digest_equal(&last[0], &last[1]));
}

Test(coordinator, makes_the_frozen_factors_of_fed_sb_and_finishes)
{
    begin("");
    ok(create_run("fed-sb", 0));
    run_everyone(0, 0);
    expect_finished();
    expect_reports();
    end();
}

/* ---- one member, by hand */
struct hand {
    struct fake_member member;
    Fedlora__V1__Task *task;
    struct bytes update;
    Fedlora__V1__SubmitHeader header;
    struct digest digest;
};

static void hello(struct fake_member *m)
{
    Fedlora__V1__HelloReply *reply = NULL;
    ok(fake_hello(&reply, m));
    message_free(reply);
}

/* The member has the task of the current round and a valid update for it. */
static void open_hand(struct hand *h, const char *id, uint32_t rank)
{
    *h = (struct hand){.update = {.max = 1 << 20}};
    open_member(&h->member, id, rank);
    hello(&h->member);
    for (int i = 0; i < 10; i++) {
        ok(fake_next_task(&h->task, &h->member, 2000));
        if (h->task->kind_case == FEDLORA__V1__TASK__KIND_TRAIN) break;
        message_free(h->task);
        h->task = NULL;
    }
    cr_assert_not_null(h->task);
    ok(fake_update(&h->update, &h->member, h->task->train));
    fake_header(&h->header, &h->member, h->task->train->round, &h->update, &h->digest);
}

/* All members have said hello; m0 has the task of the first round and a valid update. */
static void take_task(struct hand *h)
{
    struct fake_member other;
    for (int i = 1; i < MEMBERS; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_member(&other, id, 2u << i);
        hello(&other);
        fake_close(&other);
    }
    open_hand(h, "m0", 2);
}

static uint32_t submit_task(struct hand *h)
{
    Fedlora__V1__SubmitReply *reply = NULL;
    ok(fake_submit(&reply, &h->member, &h->header, &h->update, 0));
    cr_assert(reply->durable);
    uint32_t counted_in = reply->counted_in;
    message_free(reply);
    return counted_in;
}

static void drop_task(struct hand *h)
{
    message_free(h->task);
    bytes_close(&h->update);
    fake_close(&h->member);
}

/* Submits bytes other than the valid update, with the digest of these bytes. */
static void refuse_bytes(struct hand *h, const struct bytes *bytes, enum err_kind kind,
                         const char *why)
{
    Fedlora__V1__SubmitHeader header;
    Fedlora__V1__SubmitReply *reply = NULL;
    struct digest digest;
    fake_header(&header, &h->member, 1, bytes, &digest);
    refused(fake_submit(&reply, &h->member, &header, bytes, 0), kind, why);
}

static void refuse_header(struct hand *h, enum err_kind kind, const char *why)
{
    Fedlora__V1__SubmitReply *reply = NULL;
    refused(fake_submit(&reply, &h->member, &h->header, &h->update, 0), kind, why);
}

static void refuse_bad_bytes(struct hand *h)
{
    struct bytes bad = {.max = 1 << 20};
    Fedlora__V1__TrainTask other = *h->task->train;
    ok(bytes_append(&bad, h->update.data, h->update.size - 8));
    refuse_bytes(h, &bad, ERR_REFUSED, "update");
    bytes_clear(&bad);
    ok(bytes_append(&bad, h->update.data, h->update.size));
    const float nan_value = NAN;
    memcpy(bad.data + bad.size - sizeof nan_value, &nan_value, sizeof nan_value);
    refuse_bytes(h, &bad, ERR_REFUSED, "NaN");
    bad.data[0] ^= 0x40; /* the header's length */
    refuse_bytes(h, &bad, ERR_REFUSED, "update");
    bytes_clear(&bad);
    other.rank = 3;
    ok(fake_update(&bad, &h->member, &other));
    refuse_bytes(h, &bad, ERR_REFUSED, "expected (2, 32)");
    bytes_clear(&bad);
    other = *h->task->train;
    other.alpha = 0;
    ok(fake_update(&bad, &h->member, &other));
    refuse_bytes(h, &bad, ERR_REFUSED, "alpha");
    bytes_clear(&bad);
    h->member.options.base = &(struct fake_base){base.digest, modules, 1};
    ok(fake_update(&bad, &h->member, h->task->train));
    refuse_bytes(h, &bad, ERR_REFUSED, "module model.layers.0.self_attn.v_proj is missing");
    h->member.options.base = &base;
    bytes_clear(&bad);
    other = *h->task->train;
    other.round = 7;
    ok(fake_update(&bad, &h->member, &other));
    refuse_bytes(h, &bad, ERR_STATE, "round 7, expected round 1");
    bytes_close(&bad);
}

static void refuse_bad_headers(struct hand *h)
{
    Fedlora__V1__SubmitHeader good = h->header;
    struct digest other = digest_of("other", 5);
    h->header.digest.data = other.byte;
    refuse_header(h, ERR_REFUSED, "damaged on the way");
    h->header = good;
    h->header.round = 5;
    refuse_header(h, ERR_REFUSED, "update for round 5, but the run is at round 1");
    h->header = good;
    h->header.examples = 0;
    refuse_header(h, ERR_REFUSED, "examples");
    h->header = good;
    h->header.size = 1ull << 50;
    refuse_header(h, ERR_REFUSED, "bytes, expected 1 to");
    h->header = good;
    h->header.train_loss = INFINITY;
    refuse_header(h, ERR_REFUSED, "finite");
    h->header = good;
    h->header.offset = 5;
    refuse_header(h, ERR_STATE, "continues at byte 0");
    h->header = good;
}

Test(coordinator, refuses_bad_updates_by_name_and_the_run_stays_intact)
{
    struct hand h;
    Fedlora__V1__SubmitReply *reply = NULL;
    begin("");
    ok(create_run("flora", 0));
    take_task(&h);
    refuse_bad_bytes(&h);
    refuse_bad_headers(&h);
    ok(fake_submit(&reply, &h.member, &h.header, &h.update, 0));
    cr_expect(reply->durable);
    cr_expect_eq(reply->counted_in, 1);
    message_free(reply);
    ok(fake_submit(&reply, &h.member, &h.header, &h.update, 0));
    cr_expect(reply->durable, "the same update again is no error");
    message_free(reply);
    struct bytes second = {.max = 1 << 20};
    Fedlora__V1__TrainTask other = *h.task->train;
    other.alpha *= 2;
    ok(fake_update(&second, &h.member, &other));
    refuse_bytes(&h, &second, ERR_REFUSED, "a second update of m0 for round 1 with another digest");
    bytes_close(&second);
    drop_task(&h);
    run_everyone(0, 0);
    expect_finished();
    end();
}

static void refuse_hello(const char *id, const struct fake_base *other, uint32_t rank,
                         const char *why)
{
    struct fake_member m;
    Fedlora__V1__HelloReply *reply = NULL;
    struct fake_options options = {.server = federation.address,
                                   .certs = federation.certs,
                                   .id = id,
                                   .run = "r",
                                   .base = other,
                                   .rank = rank,
                                   .examples = 10};
    ok(fake_open(&m, &options));
    refused(fake_hello(&reply, &m), ERR_REFUSED, why);
    fake_close(&m);
}

Test(coordinator, refuses_members_that_do_not_fit_by_name)
{
    struct fake_base other = {digest_of("another base", 12), modules, 2};
    struct method_module wrong[2] = {modules[0], modules[1]};
    struct fake_base shapes, lacking;
    Fedlora__V1__Task *task = NULL;
    struct fake_member m;
    begin("");
    wrong[0].d_in = 31;
    shapes = (struct fake_base){base.digest, wrong, 2};
    lacking = (struct fake_base){base.digest, wrong, 1};
    ok(create_run("fedit", 0));
    open_member(&m, "m0", 8);
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "call Hello first");
    refuse_hello("m0", &other, 8, "wrong base model");
    refuse_hello("m0", &base, 4, "needs rank 8 from every member, but rank 4 is offered");
    refuse_hello("m0", &lacking, 8, "target \"v_proj\" names no module");
    hello(&m);
    refuse_hello("m1", &shapes, 8, "shape (48, 31) in your base, expected (48, 32)");
    refuse_hello("stranger", &base, 8, "stranger");
    refused(create_run("flora", 0), ERR_REFUSED, "a run named r exists already");
    refused(fake_create(&m, &(Fedlora__V1__RunConfig)FEDLORA__V1__RUN_CONFIG__INIT), ERR_REFUSED,
            "");
    fake_close(&m);
    run_everyone(0, 8);
    expect_finished();
    end();
}

Test(coordinator, refuses_runs_that_make_no_sense_by_name)
{
    begin("");
    refused(create_run("florra", 0), ERR_REFUSED,
            "method \"florra\" is not known; did you mean flora");
    refused(create_run("flora", 4), ERR_REFUSED, "quorum 4 is more than the 3 members");
    ok(create_run("flora", 3));
    ok(fake_command(&ops, RPC_PATH_ADMIN(pause_run), "r"));
    ok(fake_command(&ops, RPC_PATH_ADMIN(resume_run), "r"));
    refused(fake_command(&ops, RPC_PATH_ADMIN(stop_run), "q"), ERR_REFUSED,
            "there is no run \"q\"");
    ok(fake_command(&ops, RPC_PATH_ADMIN(stop_run), "r"));
    refused(fake_command(&ops, RPC_PATH_ADMIN(resume_run), "r"), ERR_STATE, "run r is stopped");
    end();
}

Test(coordinator, goes_on_with_an_upload_where_it_broke_off)
{
    struct hand h;
    Fedlora__V1__SubmitReply *reply = NULL;
    begin("");
    ok(create_run("flora", 0));
    take_task(&h);
    ok(fake_submit(&reply, &h.member, &h.header, &h.update, 1000));
    cr_expect_eq(reply->received, 1000);
    cr_expect(!reply->durable);
    message_free(reply);
    fake_federation_stop(&federation, SIGKILL);
    ok(fake_federation_start(&federation));
    fake_close(&h.member);
    open_member(&h.member, "m0", 2);
    ok(fake_offset(&reply, &h.member, &h.header));
    cr_expect_eq(reply->received, 1000, "it outlives the coordinator");
    message_free(reply);
    h.header.offset = 1000;
    ok(fake_submit(&reply, &h.member, &h.header, &h.update, 0));
    cr_expect(reply->durable);
    message_free(reply);
    drop_task(&h);
    run_everyone(0, 0);
    expect_finished();
    end();
}

Test(coordinator, takes_a_late_update_into_the_next_round)
{
    struct hand hand[MEMBERS], again;
    struct fake_member second;
    begin("");
    ok(create_run("flora", 2));
    open_member(&second, "m1", 4);
    hello(&second);
    fake_close(&second);
    for (int i = 0; i < MEMBERS; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_hand(&hand[i], id, 2u << i);
    }
    cr_expect_eq(submit_task(&hand[0]), 1);
    cr_expect_eq(submit_task(&hand[1]), 1);
    cr_expect_eq(submit_task(&hand[2]), 2, "the round is closed with two");
    open_hand(&again, "m0", 2);
    cr_expect_eq(again.task->train->round, 2);
    cr_expect_eq(submit_task(&again), 2);
    drop_task(&again);
    open_hand(&again, "m2", 8);
    cr_expect_eq(again.task->train->round, 3, "the late one and this one were enough");
    drop_task(&again);
    for (int i = 0; i < MEMBERS; i++)
        drop_task(&hand[i]);
    ok(fake_command(&ops, RPC_PATH_ADMIN(stop_run), "r"));
    end();
}

Test(coordinator, says_come_back_later_when_the_disk_is_full)
{
    struct hand h;
    char path[700];
    begin("");
    ok(create_run("flora", 0));
    take_task(&h);
    fake_federation_stop(&federation, SIGTERM);
    /* Simulates a disk that is almost full. */
    snprintf(path, sizeof path, "sed -i 's|^path = .*|&\\nreserve = 8000000GiB|' %s/fedlorad.ini",
             federation.dir);
    cr_assert_eq(system(path), 0);
    ok(fake_federation_start(&federation));
    fake_close(&h.member);
    open_member(&h.member, "m0", 2);
    refuse_header(&h, ERR_LIMIT, "the coordinator's disk is full");
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    snprintf(path, sizeof path, "sed -i '/^reserve/d' %s/fedlorad.ini", federation.dir);
    cr_assert_eq(system(path), 0);
    ok(fake_federation_start(&federation));
    drop_task(&h);
    run_everyone(0, 0);
    expect_finished();
    end();
}

Test(coordinator, two_cannot_share_a_folder_or_an_address)
{
    begin("");
    kill(federation.coordinator, SIGHUP);
    cr_expect_eq(fake_federation_try(&federation, NULL), 1);
    for (int i = 0; i < 100 && !fake_federation_logged(&federation, "event=certificates.reread");
         i++)
        usleep(50000);
    cr_expect(fake_federation_logged(&federation, "event=certificates.reread"));
    cr_expect(fake_federation_logged(&federation, "another process uses this folder"));
    char option[700];
    snprintf(option, sizeof option, "--set=store.path=%s/elsewhere", federation.dir);
    cr_expect_eq(fake_federation_try(&federation, option), 1);
    cr_expect(fake_federation_logged(&federation, "another program has this port"));
    cr_expect_eq(fake_federation_try(&federation, "--set=log.level=loud"), 2);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    cr_expect_eq(fake_federation_try(&federation, "--set=server.ca=/nothing"), 2);
    cr_expect(fake_federation_logged(&federation, "/nothing: no such file"));
    cr_expect_eq(fake_federation_try(&federation, "--check"), 0);
    end();
}
