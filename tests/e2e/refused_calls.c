/* A real fedlorad process over TLS: calls that must be refused with a reason and without harm to
 * the run. */
#include "tests/support/three_members.h"

#include <unistd.h>

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

/* The header is no JSON, so the error shows that it was refused unread. */
static void refuse_long_header(struct hand *h)
{
    struct bytes bad = {.max = 1 << 20};
    uint64_t length =
        adapter_file_header_most(2, strlen(modules[0].name) + strlen(modules[1].name)) + 1;
    ok(bytes_append(&bad, &length, sizeof length));
    for (uint64_t i = 0; i < length; i++)
        ok(bytes_append(&bad, "[", 1));
    refuse_bytes(h, &bad, ERR_REFUSED, "update: its header has more than");
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
    refuse_header(h, ERR_STATE, "update for round 5, but the run is at round 1");
    h->header = good;
    h->header.examples = 0;
    refuse_header(h, ERR_REFUSED, "examples");
    h->header.examples = good.examples + 1;
    refuse_header(h, ERR_REFUSED, "examples: 13, expected 1 to 12, the number in your Hello");
    h->header = good;
    h->header.size = 1ull << 50;
    refuse_header(h, ERR_REFUSED, "size is 1.12589991e+15, expected 1 to");
    h->header = good;
    h->header.size = h->update.size + (1 << 20);
    refuse_header(h, ERR_REFUSED, "bytes; the modules of run r at rank 2 need at most");
    h->header = good;
    h->header.train_loss = INFINITY;
    refuse_header(h, ERR_REFUSED, "train_loss is inf");
    h->header = good;
    h->header.offset = 5;
    refuse_header(h, ERR_STATE, "continues at byte 0");
    h->header = good;
}

Test(refused_calls, refuses_bad_updates_by_name_and_the_run_stays_intact)
{
    struct hand h;
    Fedlora__V1__SubmitReply *reply = NULL;
    begin("");
    ok(create_run("flora", 0));
    take_task(&h);
    refuse_bad_bytes(&h);
    refuse_long_header(&h);
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
    refuse_bytes(&h, &second, ERR_STATE, "a second update of m0 for round 1 with another digest");
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

Test(refused_calls, refuses_members_that_do_not_fit_by_name)
{
    struct fake_base other = {digest_of("another base", 12), modules, 2};
    struct method_module wrong[2] = {modules[0], modules[1]};
    struct fake_base lacking;
    Fedlora__V1__Task *task = NULL;
    struct fake_member m;
    begin("");
    lacking = (struct fake_base){base.digest, wrong, 1};
    ok(create_run("fedit", 0));
    open_member(&m, "m0", 8);
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "call Hello first");
    refuse_hello("m0", &other, 8, "wrong base model");
    refuse_hello("m0", &base, 4, "needs rank 8 from every member, but rank 4 is offered");
    refuse_hello("m0", &lacking, 8, "target \"v_proj\" names no module");
    hello(&m);
    refuse_hello("stranger", &base, 8, "stranger");
    refused(create_run("flora", 0), ERR_REFUSED, "a run named r exists already");
    refused(fake_create(&m, &(Fedlora__V1__RunConfig)FEDLORA__V1__RUN_CONFIG__INIT), ERR_REFUSED,
            "");
    fake_close(&m);
    run_everyone(0, 8);
    expect_finished();
    end();
}

/* ---- shapes of the base ---- */

static struct method_module wrong_modules[2];
static struct fake_base wrong_base;

static void make_wrong(void)
{
    memcpy(wrong_modules, modules, sizeof wrong_modules);
    wrong_modules[0].d_in = 31;
    wrong_base = (struct fake_base){base.digest, wrong_modules, 2};
}

static void hello_of(const char *id, const struct fake_base *other)
{
    struct fake_member m;
    open_member(&m, id, 8);
    m.options.base = other;
    hello(&m);
    fake_close(&m);
}

static err forget_shapes(void)
{
    Fedlora__V1__RunName name = FEDLORA__V1__RUN_NAME__INIT;
    name.run = "r";
    name.forget_shapes = true;
    return fake_call(&ops, RPC_PATH_ADMIN(resume_run), &name.base);
}

static void expect_waiting_for(const char *part)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, "r"));
    cr_expect(strstr(status->waiting_for, part), "%s: %s", status->waiting_for, part);
    message_free(status);
}

static void refuse_task(const char *id, const char *why)
{
    Fedlora__V1__Task *task = NULL;
    struct fake_member m;
    open_member(&m, id, 8);
    refused(fake_next_task(&task, &m, 0), ERR_STATE, why);
    fake_close(&m);
}

Test(refused_calls, a_quorum_and_no_member_alone_decides_the_shapes_of_the_base)
{
    begin("");
    make_wrong();
    ok(create_run("fedit", 2));
    hello_of("m0", &wrong_base);
    hello_of("m1", &base);
    expect_waiting_for(
        "2 members with the same shapes of the base; 1 have said Hello with 2 modules "
        "(m0); m1: module model.layers.0.self_attn.q_proj has shape (48, 32) in their "
        "base, expected (48, 31)");
    ok(fake_federation_kill(&federation, 1));
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    refuse_task("m1", "call Hello first");
    hello_of("m0", &wrong_base);
    hello_of("m1", &base);
    hello_of("m2", &base);
    refuse_task("m0", "call Hello first");
    refuse_hello("m0", &wrong_base, 8, "shape (48, 31) in your base, expected (48, 32)");
    run_everyone(0, 8);
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    expect_waiting_for("nothing: the run is finished");
    refused(forget_shapes(), ERR_STATE, "has published 3 rounds of these shapes");
    end();
}

/* Members that have said Hello do not say it again, so the change itself has to count them. */
Test(refused_calls, a_smaller_quorum_is_content_with_the_shapes_it_has)
{
    begin("");
    ok(create_run("fedit", 3));
    hello_of("m0", &base);
    hello_of("m1", &base);
    expect_waiting_for("1 more of 3 members to join: m2");
    Fedlora__V1__RunChange change = FEDLORA__V1__RUN_CHANGE__INIT;
    char *quorum = "quorum=2";
    change.run = "r";
    change.set = &quorum;
    change.n_set = 1;
    ok(fake_call(&ops, RPC_PATH_ADMIN(set_run), &change.base));
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, "r"));
    cr_expect(!strstr(status->waiting_for, "shapes"), "%s", status->waiting_for);
    message_free(status);
    end();
}

Test(refused_calls, an_operator_forgets_wrong_shapes_before_the_first_round)
{
    begin("");
    make_wrong();
    ok(create_run("fedit", 1));
    hello_of("m0", &wrong_base);
    refuse_hello("m1", &base, 8, "shape (48, 32) in your base, expected (48, 31)");
    for (int i = 0; i < 100; i++) { /* the start state is being made */
        err e = forget_shapes();
        if (!err_is(e)) break;
        refused(e, ERR_LIMIT, "work under way");
        usleep(20 * 1000);
    }
    refuse_task("m0", "call Hello first");
    hello_of("m1", &base);
    refuse_hello("m0", &wrong_base, 8, "shape (48, 31) in your base, expected (48, 32)");
    end();
}

Test(refused_calls, an_operator_gives_the_shapes_of_the_base)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__ModuleShape shape[2], *list[2] = {&shape[0], &shape[1]};
    begin("");
    make_wrong();
    config.name = "r";
    config.method = "fedit";
    config.rounds = ROUNDS;
    config.rank = 8;
    config.modules = list;
    config.n_modules = 2;
    for (int i = 0; i < 2; i++) {
        fedlora__v1__module_shape__init(&shape[i]);
        shape[i].name = (char *)(uintptr_t)modules[i].name;
        shape[i].d_out = 1 << 20;
        shape[i].d_in = 1 << 20;
    }
    config.rank = 4096;
    refused(fake_create_run(&ops, &config, MEMBERS), ERR_REFUSED,
            "bytes at rank 4096, at most 2147483648 (limits.update_bytes)");
    config.rank = 8;
    for (int i = 0; i < 2; i++) {
        shape[i].d_out = modules[i].d_out;
        shape[i].d_in = modules[i].d_in;
    }
    ok(fake_create_run(&ops, &config, MEMBERS));
    refuse_hello("m0", &wrong_base, 8, "shape (48, 31) in your base, expected (48, 32)");
    ok(fake_federation_kill(&federation, 1));
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    refuse_hello("m0", &wrong_base, 8, "shape (48, 31) in your base, expected (48, 32)");
    refused(forget_shapes(), ERR_REFUSED, "the shapes that its operator gave");
    hello_of("m0", &base);
    run_everyone(1, 8); /* a run that was loaded again checks updates by these shapes */
    end();
}

static Fedlora__V1__ReportRequest evaluation(uint64_t rows, double loss)
{
    Fedlora__V1__ReportRequest report = FEDLORA__V1__REPORT_REQUEST__INIT;
    report.round = ROUNDS;
    report.eval_rows = rows;
    report.eval_loss = loss;
    return report;
}

static void expect_evaluation(uint64_t rows, double loss)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, "r"));
    cr_expect_eq(status->history[ROUNDS - 1]->eval_rows, rows);
    cr_expect_eq(status->history[ROUNDS - 1]->eval_loss, loss);
    message_free(status);
}

Test(refused_calls, takes_one_evaluation_of_a_round_within_the_rows_of_the_hello)
{
    struct fake_member m;
    begin("");
    ok(create_run("fedit", 0));
    run_everyone(0, 8);
    expect_finished();
    open_member(&m, "m0", 8);
    m.options.eval_rows = 30;
    hello(&m);
    Fedlora__V1__ReportRequest huge = evaluation(INT64_MAX, 1), many = evaluation(31, 1),
                               negative = evaluation(30, -1), good = evaluation(30, 2),
                               again = evaluation(30, 5);
    refused(fake_report(&m, &huge), ERR_REFUSED, "eval_rows is 9.22337204e+18, expected 0 to");
    refused(fake_report(&m, &many), ERR_REFUSED,
            "an evaluation on 31 rows, but your Hello has eval_rows 30");
    refused(fake_report(&m, &negative), ERR_REFUSED, "eval_loss is -1, expected 0 to");
    ok(fake_report(&m, &good));
    ok(fake_report(&m, &again));
    expect_evaluation(30, 2);
    fake_close(&m);
    end();
}

Test(refused_calls, refuses_runs_that_make_no_sense_by_name)
{
    begin("");
    refused(create_run("florra", 0), ERR_REFUSED,
            "method \"florra\" is not known; did you mean flora?");
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

/* The one that takes part keeps its place until it has been silent for limits.absent_after. */
Test(refused_calls, lets_two_machines_with_one_certificate_lose_no_work)
{
    struct fake_member first, second;
    Fedlora__V1__HelloReply *reply = NULL;
    Fedlora__V1__Task *task = NULL;
    begin("[limits]\nabsent_after = 2s\n");
    ok(create_run("flora", 0));
    open_member(&first, "m0", 2);
    open_member(&second, "m0", 2);
    first.options.session = "0123456789abcdef";
    second.options.session = "fedcba9876543210";
    hello(&first);
    refused(fake_hello(&reply, &second), ERR_LIMIT,
            "m0 takes part in run r from another machine or work directory (127.0.0.1, seen ");
    cr_expect(fake_federation_logged(&federation, "event=member.twice run=r peer=client/m0 "
                                                  "address=127.0.0.1 "));
    ok(fake_next_task(&task, &first, 0));
    cr_assert_eq(task->kind_case, FEDLORA__V1__TASK__KIND_WAIT);
    cr_expect(strstr(task->wait->reason, "another machine"), "%s", task->wait->reason);
    message_free(task);
    refused(fake_next_task(&task, &second, 0), ERR_STATE, "from another machine");
    for (int i = 0; i < 100 && err_is(fake_hello(&reply, &second)); i++)
        usleep(100 * 1000);
    cr_assert_not_null(reply, "the first one was silent for long");
    message_free(reply);
    cr_expect(fake_federation_logged(&federation, "event=member.moved run=r member=m0"));
    refused(fake_next_task(&task, &first, 0), ERR_STATE, "from another machine");
    refused(fake_hello(&reply, &first), ERR_LIMIT, "from another machine");
    ok(fake_next_task(&task, &second, 0));
    message_free(task);
    fake_close(&first);
    fake_close(&second);
    end();
}

Test(refused_calls, lets_a_second_machine_take_the_place_where_the_operator_says_so)
{
    struct fake_member first, second;
    Fedlora__V1__Task *task = NULL;
    Fedlora__V1__HelloReply *reply = NULL;
    begin("[limits]\nsessions = replace\n");
    ok(create_run("flora", 0));
    open_member(&first, "m0", 2);
    open_member(&second, "m0", 2);
    first.options.session = "0123456789abcdef";
    second.options.session = "fedcba9876543210";
    hello(&first);
    hello(&second);
    cr_expect(fake_federation_logged(&federation, "event=member.replaced member=m0 by=client/m0 "
                                                  "address=127.0.0.1 run=r from=127.0.0.1"));
    refused(fake_next_task(&task, &first, 0), ERR_REFUSED, "was replaced by 127.0.0.1 at 2");
    refused(fake_hello(&reply, &first), ERR_REFUSED, "stop one of the two");
    ok(fake_next_task(&task, &second, 0));
    message_free(task);
    fake_close(&first);
    fake_close(&second);
    end();
}
