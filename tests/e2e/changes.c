/* A real fedlorad process over TLS: updates that would ruin a run, and operators who change a run
 * that is open. */
#include "tests/support/three_members.h"

#include <stdlib.h>
#include <unistd.h>

/* The member's update with every value replaced. */
static void send_huge(struct hand *h, float value)
{
    uint64_t header;
    memcpy(&header, h->update.data, sizeof header);
    for (size_t at = 8 + header; at + sizeof value <= h->update.size; at += sizeof value)
        memcpy(h->update.data + at, &value, sizeof value);
    fake_header(&h->header, &h->member, h->task->train->round, &h->update, &h->digest);
    submit_task(h);
}

static void again(void)
{
    fake_federation_stop(&federation, SIGKILL);
    ok(fake_federation_start(&federation));
    fake_close(&ops);
    open_member(&ops, "ops", 0);
}

/* Waits until the status has this text as `waiting_for`, and returns the status. */
static Fedlora__V1__RunStatus *expect_waiting(const char *part)
{
    Fedlora__V1__RunStatus *status = NULL;
    for (int i = 0; i < 200; i++, usleep(50 * 1000)) {
        message_free(status);
        ok(fake_status(&status, &ops, run_name));
        if (strstr(status->waiting_for, part)) return status;
    }
    cr_assert(false, "waiting for \"%s\", expected \"%s\"", status->waiting_for, part);
    return status;
}

static void expect_doing(const Fedlora__V1__RunStatus *status, const char *member, const char *what)
{
    for (size_t i = 0; i < status->n_members; i++)
        if (!strcmp(status->members[i]->id, member))
            cr_expect_str_eq(status->members[i]->doing, what, "%s", member);
}

static void train_and_send(const char *member, uint32_t rank)
{
    struct hand h;
    open_hand(&h, member, rank);
    submit_task(&h);
    drop_task(&h);
}

/* Of a quorum of two, one is refused; the third member's update closes the round. */
Test(changes, an_update_far_beyond_the_others_is_refused_by_name_and_stays_so)
{
    Fedlora__V1__RunStatus *status = NULL;
    struct hand h, late;
    begin("");
    ok(create_run("flora", 2));
    take_task(&h);
    open_hand(&late, "m1", 4);
    send_huge(&h, 1e38F);
    submit_task(&late);
    drop_task(&late);
    status = expect_waiting("m0 (update refused: module ");
    cr_expect(strstr(status->waiting_for, "is too large for float32"), "%s", status->waiting_for);
    expect_doing(status, "m0", "refused");
    message_free(status);
    cr_expect(fake_federation_logged(
        &federation, "event=update.refused run=r peer=client/m0 address=127.0.0.1 "));
    again();
    fake_close(&h.member);
    open_member(&h.member, "m0", 2);
    refuse_header(&h, ERR_STATE, "the update of m0 for round 1 was refused: module ");
    drop_task(&h);
    train_and_send("m2", 8);
    run_everyone(0, 0);
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    ok(fake_status(&status, &ops, "r"));
    cr_expect_str_eq(status->phase, "finished");
    cr_assert(status->n_history == ROUNDS);
    cr_expect_eq(status->history[0]->updates, 2);
    message_free(status);
    end();
}

/* ---- operators */

static err change_member(const char *path, const char *id, uint32_t rank)
{
    Fedlora__V1__MemberChange request = FEDLORA__V1__MEMBER_CHANGE__INIT;
    Fedlora__V1__MemberConfig member = FEDLORA__V1__MEMBER_CONFIG__INIT;
    member.id = (char *)(uintptr_t)id;
    member.rank = rank;
    request.run = (char *)(uintptr_t)run_name;
    request.member = &member;
    return fake_call(&ops, path, &request.base);
}

static err set(const char *assignment)
{
    Fedlora__V1__RunChange request = FEDLORA__V1__RUN_CHANGE__INIT;
    char *list[] = {(char *)(uintptr_t)assignment};
    request.run = (char *)(uintptr_t)run_name;
    request.set = list;
    request.n_set = 1;
    return fake_call(&ops, RPC_PATH_ADMIN(set_run), &request.base);
}

static uint32_t run_cohort; /* of runs that are created */

static err create(size_t members, const char *method, double norm_bound)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.cohort = run_cohort;
    config.name = (char *)(uintptr_t)run_name;
    config.method = (char *)(uintptr_t)method;
    config.rounds = ROUNDS;
    config.rank = 8;
    config.norm_bound = norm_bound;
    return fake_create_run(&ops, &config, members);
}

/* The first members take part until the run ends. */
static struct digest join(int members)
{
    static struct fake_joining joining[MEMBERS];
    for (int i = 0; i < members; i++) {
        struct fake_options options = options_of(NULL, 2u << i);
        fake_join_begin(&joining[i], i, &options);
    }
    for (int i = 0; i < members; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
        cr_expect(digest_equal(&joining[i].last, &joining[0].last));
    }
    return joining[0].last;
}

static void refuse_changes(void)
{
    refused(set("quorum=4"), ERR_REFUSED, "quorum 4 is more than the 3 members");
    refused(set("rounds=0"), ERR_REFUSED, "rounds: 0, but the run is at round 1");
    refused(set("quorums=1"), ERR_REFUSED, "did you mean quorum?");
    refused(set("quorum"), ERR_REFUSED, "expected KEY=VALUE");
    refused(set("weight_cap=2"), ERR_REFUSED, "weight_cap");
    refused(change_member(RPC_PATH_ADMIN(add_member), "m1", 0), ERR_REFUSED,
            "m1 is a member already");
    refused(change_member(RPC_PATH_ADMIN(add_member), "stranger", 0), ERR_REFUSED,
            "member stranger is not known here");
    refused(change_member(RPC_PATH_ADMIN(drop_member), "m7", 0), ERR_REFUSED,
            "m7 is not a member of run r");
}

/* A member that is added, asked, and dropped again leaves no trace in the bytes. */
Test(changes, a_run_that_was_changed_ends_as_one_that_was_created_so)
{
    struct digest last[2];
    struct hand h;
    for (int changed = 0; changed < 2; changed++) {
        begin("");
        ok(create(2, "flora", 0));
        if (changed) {
            ok(change_member(RPC_PATH_ADMIN(add_member), "m2", 0));
            refuse_changes();
            again();
            take_task(&h);
            drop_task(&h);
            open_hand(&h, "m2", 8);
            ok(set("quorum=3"));
            refused(change_member(RPC_PATH_ADMIN(drop_member), "m2", 0), ERR_REFUSED,
                    "quorum 3 would be more than the 2 members left");
            ok(set("quorum=2"));
            ok(change_member(RPC_PATH_ADMIN(drop_member), "m2", 0));
            again();
            fake_close(&h.member);
            open_member(&h.member, "m2", 8);
            refuse_header(&h, ERR_REFUSED, "an operator has dropped m2 from run r");
            Fedlora__V1__Task *task = NULL;
            h.member.options.run = "";
            refused(fake_next_task(&task, &h.member, 0), ERR_STATE,
                    "no open run that m2 can take part in");
            drop_task(&h);
        }
        last[changed] = join(2);
        fake_close(&ops);
        open_member(&ops, "ops", 0);
        refused(set("quorum=1"), ERR_STATE, "run r is finished, so it cannot be changed");
        end();
    }
    cr_expect(digest_equal(&last[0], &last[1]));
}

/* The draws of the rounds are those of the smaller run too. */
Test(changes, a_cohort_is_drawn_as_if_a_dropped_member_had_never_been)
{
    struct digest last[2];
    for (size_t members = 2; members <= 3; members++) {
        begin("");
        run_cohort = 1;
        ok(create(members, "flora", 0));
        if (members == 3) {
            struct fake_member first;
            open_member(&first, "m1", 4); /* its hello opens round 1, for which members are drawn */
            hello(&first);
            fake_close(&first);
            ok(change_member(RPC_PATH_ADMIN(drop_member), "m2", 0));
        }
        last[members - 2] = join(2);
        run_cohort = 0;
        end();
    }
    cr_expect(digest_equal(&last[0], &last[1]));
}

/* Without a norm bound the combination itself fails, names the member, and goes on without it. */
static void drop_the_update_that_fails(void)
{
    struct hand h;
    run_name = "failing";
    ok(create(3, "flexlora", -1));
    take_task(&h);
    send_huge(&h, 3e38F);
    drop_task(&h);
    train_and_send("m1", 4);
    train_and_send("m2", 8);
    message_free(expect_waiting("an operator: the update of m0 cannot be combined"));
    again();
    message_free(expect_waiting("the update of m0 cannot be combined"));
    ok(change_member(RPC_PATH_ADMIN(drop_update), "m0", 0));
    again();
    ok(fake_command(&ops, RPC_PATH_ADMIN(resume_run), run_name));
    join(3);
}

/* m2 is never seen; the quorum is all members. */
static void wait_for_no_removed_member(void)
{
    char command[700];
    struct fake_member member;
    run_name = "removed";
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    ok(create(3, "flora", 0));
    for (int i = 0; i < 2; i++) {
        open_member(&member, i ? "m1" : "m0", 2u << i);
        hello(&member);
        fake_close(&member);
    }
    message_free(expect_waiting("1 more of 3 members to join: m2"));
    snprintf(command, sizeof command,
             "sed -i 's|^members = .*|members = m0,m1|; s|^path = .*|&\\nreserve = 65MiB|;"
             " s|^key = .*|&\\nthreads = 1|; $a [log]\\nlevel = warn' %s/fedlorad.ini",
             federation.dir);
    cr_assert_eq(system(command), 0);
    kill(federation.coordinator, SIGHUP);
    message_free(expect_waiting("2 of 2 members: m0")); /* those two have agreed on the shapes */
    join(2);
    cr_expect(fake_federation_logged(&federation, "event=member.removed run=removed member=m2"));
    cr_expect(!fake_federation_logged(&federation, "event=member.removed run=diverging"),
              "that run is over");
    cr_expect(fake_federation_logged(&federation,
                                     "event=config.needs_restart changed=server.threads reason="));
    cr_expect(!fake_federation_logged(&federation, "event=config.reread"), "the level is warn now");
    snprintf(command, sizeof command,
             "sed -i 's|^level = .*|level = info|; s|65MiB|66MiB|' %s/f*.ini", federation.dir);
    cr_assert_eq(system(command), 0);
    kill(federation.coordinator, SIGHUP);
    for (int i = 0; i < 100 && !fake_federation_logged(&federation, "event=config.reread"); i++)
        usleep(20 * 1000);
    cr_expect(fake_federation_logged(
        &federation,
        "event=config.reread members=2 changed=\"store.reserve=69206016 log.level=info\""));
}

static void train_with_losses(const double loss[MEMBERS])
{
    struct hand hand[MEMBERS];
    for (int i = 0; i < MEMBERS; i++) {
        char id[16];
        snprintf(id, sizeof id, "m%d", i);
        open_hand(&hand[i], id, 2u << i);
        hand[i].header.train_loss = loss[i];
    }
    for (int i = 0; i < MEMBERS; i++) {
        submit_task(&hand[i]);
        drop_task(&hand[i]);
    }
}

/* One member that states a huge loss does not pause the run; two of three do, once. */
static void pause_once_when_losses_explode(void)
{
    Fedlora__V1__RunStatus *status = NULL;
    struct hand h;
    run_name = "diverging";
    ok(create(3, "flora", 0));
    take_task(&h);
    drop_task(&h);
    train_with_losses((const double[]){1e9, 2, 2});
    train_with_losses((const double[]){100, 100, 2});
    message_free(expect_waiting("training losses in round 2 is 100, and the lowest before it was"));
    again();
    status = expect_waiting("an operator to resume the run: the median");
    cr_expect_str_eq(status->phase, "paused");
    message_free(status);
    ok(fake_command(&ops, RPC_PATH_ADMIN(resume_run), run_name));
    train_with_losses((const double[]){1000, 1000, 1000});
    status = expect_waiting("nothing: the run is finished");
    message_free(status);
}

Test(changes, a_run_goes_on_without_an_update_or_a_member)
{
    begin("");
    pause_once_when_losses_explode();
    drop_the_update_that_fails();
    wait_for_no_removed_member();
    end();
    run_name = "r";
}
