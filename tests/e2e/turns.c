/* A real fedlorad process over TLS: members that take part in several runs, or in none yet. */
#include "tests/support/three_members.h"

#include <stdlib.h>
#include <unistd.h>

/* Does the next task of m0, which names no run; returns "r1" for the first round of r, or "r." when
 * r is over. */
static void next_turn(char out[8], struct fake_member *m)
{
    Fedlora__V1__Task *task = NULL;
    struct bytes update = {.max = 1 << 20};
    Fedlora__V1__SubmitHeader header;
    Fedlora__V1__SubmitReply *reply = NULL;
    struct digest digest;
    for (int i = 0; i < 20 && (!task || task->kind_case == FEDLORA__V1__TASK__KIND_WAIT); i++) {
        message_free(task);
        ok(fake_next_task(&task, m, 500));
    }
    if (task->kind_case == FEDLORA__V1__TASK__KIND_FINISHED) {
        snprintf(out, 8, "%s.", task->finished->run);
        message_free(task);
        return;
    }
    cr_assert_eq(task->kind_case, FEDLORA__V1__TASK__KIND_TRAIN);
    snprintf(out, 8, "%s%u", task->train->run, task->train->round);
    ok(fake_update(&update, m, task->train));
    m->options.run = task->train->run;
    fake_header(&header, m, task->train->round, &update, &digest);
    ok(fake_submit(&reply, m, &header, &update, 0));
    m->options.run = "";
    message_free(reply);
    message_free(task);
    bytes_close(&update);
}

static void hello_for_turns(struct fake_member *m, const char *run)
{
    Fedlora__V1__HelloReply *reply = NULL;
    ok(fake_hello(&reply, m));
    cr_expect_str_eq(reply->run, run);
    message_free(reply);
}

/* Each round closes with the update of m0, so without turns one run would starve the other. */
Test(turns, gives_a_member_that_names_no_run_its_runs_in_turn)
{
    Fedlora__V1__Task *task = NULL;
    struct fake_member m;
    struct bytes trained = {.max = 64}, ended = {.max = 16};
    char turn[8];
    begin("");
    ok(create_run("flora", 1));
    open_member(&m, "m0", 2);
    m.options.run = "";
    hello_for_turns(&m, "r");
    run_name = "s";
    ok(create_run("flora", 1));
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "call Hello first");
    hello_for_turns(&m, "s");
    for (int i = 0; i < 2 * ROUNDS + 2; i++) {
        next_turn(turn, &m);
        struct bytes *list = strchr(turn, '.') ? &ended : &trained;
        ok(bytes_append(list, turn, strlen(turn)));
        if (i != 1) continue;
        ok(fake_federation_kill(&federation, 1));
        fake_close(&m);
        open_member(&m, "m0", 2);
        m.options.run = "";
        hello_for_turns(&m, "r");
    }
    cr_expect_eq(trained.size, 12);
    cr_expect_eq(memcmp(trained.data, "r1s1r2s2r3s3", trained.size), 0, "%.12s", trained.data);
    cr_expect(ended.size == 4 && ended.data[0] != ended.data[2], "each has ended once");
    bytes_close(&trained);
    bytes_close(&ended);
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "no open run that m0 can take part in");
    fake_close(&m);
    end();
}

/* The oldest run has another base model. */
Test(turns, gives_a_member_no_turn_in_a_run_that_it_cannot_serve)
{
    Fedlora__V1__HelloReply *reply = NULL;
    Fedlora__V1__Task *task = NULL;
    static const struct fake_base other = {{{7}}, modules, 2};
    struct fake_member m;
    begin("");
    run_name = "x";
    ops.options.base = &other;
    ok(create_run("flora", 0));
    run_name = "r";
    ops.options.base = &base;
    ok(create_run("flora", 0));
    open_member(&m, "m0", 2);
    m.options.run = "";
    refused(fake_hello(&reply, &m), ERR_REFUSED, "wrong base model");
    hello_for_turns(&m, "r");
    ok(fake_next_task(&task, &m, 0));
    cr_expect_eq(task->kind_case, FEDLORA__V1__TASK__KIND_WAIT);
    message_free(task);
    m.options.without = (char *)(uintptr_t) "r";
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "no open run that m0 can take part in");
    refused(fake_hello(&reply, &m), ERR_STATE, "no open run that m0 can take part in");
    fake_close(&m);
    end();
}

/* A member that stays waits without a refusal, and learns of a new run from a task. */
Test(turns, tells_a_member_that_stays_which_run_to_greet)
{
    Fedlora__V1__Task *task = NULL;
    struct fake_member m;
    begin("");
    open_member(&m, "m0", 2);
    m.options.run = "";
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "no open run that m0 can take part in");
    m.options.stay = true;
    ok(fake_next_task(&task, &m, 100));
    cr_expect_eq(task->kind_case, FEDLORA__V1__TASK__KIND_WAIT);
    cr_expect_str_eq(task->wait->reason, "");
    message_free(task);
    ok(create_run("flora", 1));
    ok(fake_next_task(&task, &m, 1000));
    cr_assert_eq(task->kind_case, FEDLORA__V1__TASK__KIND_GREET);
    cr_expect_str_eq(task->greet->run, "r");
    message_free(task);
    hello_for_turns(&m, "r");
    ok(fake_next_task(&task, &m, 10000));
    cr_expect_eq(task->kind_case, FEDLORA__V1__TASK__KIND_TRAIN);
    message_free(task);
    fake_close(&m);
    end();
}

static void expect_doing(const char *doing, const char *waiting_for)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->members[0]->doing, doing);
    cr_expect(strstr(status->waiting_for, waiting_for) != NULL, "%s", status->waiting_for);
    message_free(status);
}

/* A look changes nothing: the run still waits for the member to join. */
Test(turns, shows_a_run_to_a_member_and_shows_its_decision_to_the_operator)
{
    Fedlora__V1__HelloReply *reply = NULL;
    Fedlora__V1__ReportRequest held = FEDLORA__V1__REPORT_REQUEST__INIT;
    struct fake_member m;
    begin("");
    ok(create_run("flora", 1));
    open_member(&m, "m0", 2);
    m.options.look = true;
    ok(fake_hello(&reply, &m));
    cr_expect_str_eq(reply->method, "flora");
    cr_expect_eq(reply->rounds, ROUNDS);
    cr_expect_gt(reply->n_targets, 0);
    cr_expect_eq(reply->rank, 2);
    message_free(reply);
    held.held = (char *)(uintptr_t) "waits for its administrator (fedlora approve r)";
    held.undecided = true;
    ok(fake_report(&m, &held));
    expect_doing("waits for its administrator", "m0 (waits for its administrator)");
    held.undecided = false;
    ok(fake_report(&m, &held));
    expect_doing("declined by its policy", "m0 (declined by its policy)");
    m.options.look = false;
    ok(fake_hello(&reply, &m));
    message_free(reply);
    expect_doing("waiting", "");
    fake_close(&m);
    end();
}
