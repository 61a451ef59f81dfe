/* A real fedlorad process over TLS: how fast a revoked member is cut off, and what happens to its
 * runs. The certificates are of make-certs.sh, so the coordinator does not know their serial
 * numbers. */
#include "base/text.h"
#include "client/session/remote.h"
#include "tests/support/three_members.h"

#include <pthread.h>
#include <stdatomic.h>
#include <unistd.h>

enum { WITHIN_MS = 1000, EVERY_US = 2000 };

struct caller { /* calls until it is refused, one call after the other */
    struct fake_member *member;
    uint32_t wait_ms;
    atomic_bool ready;
    uint64_t accepted_ms, refused_ms;
    size_t calls;
    err last;
};

static void *call(void *argument)
{
    struct caller *c = argument;
    uint64_t give_up_ms = text_now_ms() + 30 * 1000;
    while (text_now_ms() < give_up_ms) {
        Fedlora__V1__Task *task = NULL;
        c->last = fake_next_task(&task, c->member, c->wait_ms);
        message_free(task);
        atomic_store(&c->ready, true);
        /* A connection that is cut is a broken call; the next one says why. */
        if (c->last.kind == ERR_REFUSED) break;
        if (!err_is(c->last)) c->accepted_ms = text_now_ms();
        c->calls++;
        usleep(EVERY_US);
    }
    c->refused_ms = text_now_ms();
    return NULL;
}

static void change(const char *path, const char *id, bool keep)
{
    Fedlora__V1__RevokeRequest revoke = FEDLORA__V1__REVOKE_REQUEST__INIT;
    Fedlora__V1__IdentityRequest add = FEDLORA__V1__IDENTITY_REQUEST__INIT;
    Fedlora__V1__Identity *reply = NULL;
    const struct remote_method method = {path, &fedlora__v1__identity__descriptor};
    bool revokes = !strcmp(path, RPC_PATH_ADMIN(revoke_identity));
    revoke.id = add.id = (char *)(uintptr_t)id;
    revoke.reason = "a test";
    revoke.keep_runs = keep;
    ok(remote_call(&reply, ops.client, &method, revokes ? &revoke.base : &add.base, 0));
    cr_expect_str_eq(reply->state, revokes ? "revoked" : "active");
    cr_expect_str_eq(reply->software, "fake member", "as its newest Hello says");
    message_free(reply);
}

static void wait_until(atomic_bool *flag)
{
    for (int i = 0; i < 5000 && !atomic_load(flag); i++)
        usleep(1000);
    cr_assert(atomic_load(flag));
}

Test(revoked, cuts_a_member_off_within_a_second)
{
    struct fake_member busy, waiting;
    struct caller calls = {.member = &busy}, waits = {.member = &waiting, .wait_ms = 20 * 1000};
    pthread_t thread[2];
    begin("");
    ok(create_run("flora", 3));
    open_member(&busy, "m0", 2);
    open_member(&waiting, "m0", 2);
    hello(&busy);
    cr_assert_eq(pthread_create(&thread[0], NULL, call, &calls), 0);
    wait_until(&calls.ready);
    cr_assert_eq(pthread_create(&thread[1], NULL, call, &waits), 0);
    usleep(300 * 1000); /* the long poll is open now */
    cr_assert_gt(calls.calls, 10);
    change(RPC_PATH_ADMIN(revoke_identity), "m0", false);
    uint64_t revoked_ms = text_now_ms();
    for (int i = 0; i < 2; i++)
        pthread_join(thread[i], NULL);
    cr_expect_eq(calls.last.kind, ERR_REFUSED, "%s", calls.last.text);
    cr_expect(strstr(calls.last.text, "m0 was revoked by an operator"), "%s", calls.last.text);
    cr_expect_lt(calls.accepted_ms, revoked_ms + WITHIN_MS, "accepted after the revocation");
    cr_expect_lt(waits.refused_ms, revoked_ms + WITHIN_MS, "the open call was not ended");
    cr_log_info("last accepted call %lld ms after the revocation, open call ended after %lld ms",
                (long long)(calls.accepted_ms - revoked_ms),
                (long long)(waits.refused_ms - revoked_ms));
    fake_close(&busy);
    fake_close(&waiting);
    end();
}

/* The first state may still be in the making. */
static bool waits_for(const char *id)
{
    bool is = false, making = true;
    for (int i = 0; i < 100 && making; i++) {
        Fedlora__V1__RunStatus *status = NULL;
        ok(fake_status(&status, &ops, "r"));
        is = strstr(status->waiting_for, id) != NULL;
        making = strstr(status->waiting_for, "first state") != NULL;
        message_free(status);
        usleep(50 * 1000);
    }
    return is;
}

/* The round that waited for three closes with the two that are left, also after a restart. */
Test(revoked, is_not_waited_for_unless_the_operator_says_so)
{
    struct fake_member m[3];
    char id[16];
    begin("");
    ok(create_run("flora", 0));
    for (int i = 0; i < 3; i++) {
        snprintf(id, sizeof id, "m%d", i);
        open_member(&m[i], id, 2);
        hello(&m[i]);
    }
    change(RPC_PATH_ADMIN(revoke_identity), "m0", /*keep*/ true);
    cr_expect(waits_for("m0"), "a revoked member that stays in its runs is waited for");
    change(RPC_PATH_ADMIN(revoke_identity), "m0", /*keep*/ false);
    cr_expect(!waits_for("m0"), "the run waits for a member that left it");
    cr_expect(waits_for("m1"));
    cr_assert_eq(fake_federation_stop(&federation, SIGTERM), 0);
    ok(fake_federation_start(&federation));
    Fedlora__V1__Task *task = NULL;
    err e = err_make(ERR_MACHINE, "not asked");
    for (int i = 0; i < 50 && e.kind == ERR_MACHINE; i++)
        e = fake_next_task(&task, &m[0], 0);
    refused(e, ERR_REFUSED, "m0 was revoked");
    for (int i = 0; i < 3; i++)
        fake_close(&m[i]);
    end();
}
