/* A real fedlorad process over TLS: updates that would ruin a run, and operators who change a run
 * that is open. */
#include "tests/support/three_members.h"

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
        ok(fake_status(&status, &ops, "r"));
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
    cr_expect(fake_federation_logged(&federation, "event=update.refused run=r member=m0 round=1"));
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
