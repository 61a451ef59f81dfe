/* A real fedlorad process over TLS: what it tells operators when something is wrong. */
#include "base/file.h"
#include "client/session/remote.h"
#include "tests/support/small_disk.h"
#include "tests/support/three_members.h"

#include <stdlib.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DISK_BYTES = 2 << 20 };

/* ---- status */

/* Waits until the status of the run has, or has not, a trouble with these words. */
static void expect_trouble(const char *words, bool there)
{
    for (int i = 0; i < 100; i++, usleep(100 * 1000)) {
        Fedlora__V1__RunStatus *status = NULL;
        ok(fake_status(&status, &ops, run_name));
        bool found = false;
        for (size_t k = 0; k < status->n_troubles; k++)
            found = found || strstr(status->troubles[k], words);
        message_free(status);
        if (found == there) return;
    }
    cr_assert(false, "\"%s\" is %s the status", words, there ? "not in" : "still in");
}

static size_t logged(const char *part)
{
    char *text = NULL;
    size_t size, n = 0;
    ok(file_read_all(&text, &size, federation.log, 64 << 20));
    for (const char *at = text; (at = strstr(at, part)); at++)
        n++;
    free(text);
    return n;
}

static err watch_events(Fedlora__V1__WatchReply **reply)
{
    Fedlora__V1__WatchRequest request = FEDLORA__V1__WATCH_REQUEST__INIT;
    struct bytes in = {.max = 4096}, back = {.max = RPC_MESSAGE_BYTES};
    request.run = (char *)(uintptr_t) "r";
    err e = message_pack(&in, &request.base);
    if (!err_is(e)) e = rpc_client_unary(&back, ops.client, RPC_PATH_ADMIN(watch_run), &in, 60000);
    if (!err_is(e))
        e = message_unpack(reply, &fedlora__v1__watch_reply__descriptor, back.data, back.size);
    bytes_close(&in);
    bytes_close(&back);
    return e;
}

/* The journal of the run has this event with this text. */
static void expect_event(const char *event, const char *words)
{
    Fedlora__V1__WatchReply *reply = NULL;
    bool found = false;
    ok(watch_events(&reply));
    for (size_t i = 0; i < reply->n_events; i++)
        found = found ||
                (!strcmp(reply->events[i]->event, event) && strstr(reply->events[i]->text, words));
    cr_expect(found, "no event %s with \"%s\"", event, words);
    message_free(reply);
}

static void remove_blob(const ProtobufCBinaryData *name)
{
    char path[SUPPORT_PATH_BYTES + 256], text[DIGEST_TEXT_BYTES];
    struct digest digest;
    memcpy(digest.byte, name->data, DIGEST_BYTES);
    digest_text(text, &digest);
    snprintf(path, sizeof path, "%s/blobs/%s", federation.store, text);
    cr_assert_eq(unlink(path), 0);
}

static void be_refused_as_stranger(void)
{
    struct fake_member m;
    Fedlora__V1__HelloReply *reply = NULL;
    open_member(&m, "stranger", 8);
    for (int i = 0; i < 50; i++)
        refused(fake_hello(&reply, &m), ERR_REFUSED, "not listed");
    refused(fake_create(&m, &(Fedlora__V1__RunConfig)FEDLORA__V1__RUN_CONFIG__INIT), ERR_REFUSED,
            "only an admin may call this");
    fake_close(&m);
}

static void expect_paused_by(void)
{
    Fedlora__V1__RunStatus *status = NULL;
    ok(fake_command(&ops, RPC_PATH_ADMIN(pause_run), "r"));
    ok(fake_status(&status, &ops, "r"));
    cr_expect(strstr(status->waiting_for, "(paused by admin/ops at 127.0.0.1"), "%s",
              status->waiting_for);
    message_free(status);
    ok(fake_command(&ops, RPC_PATH_ADMIN(resume_run), "r"));
    expect_event("run.created", "admin/ops at 127.0.0.1");
    expect_event("run.paused", "admin/ops at 127.0.0.1");
    cr_expect_eq(logged("event=run.paused run=r by=\"admin/ops at 127.0.0.1"), 1);
}

/* A member without a row that teaches says so before it joins. Once it joins, that is over. */
static void expect_cannot_train(const char *run)
{
    struct fake_member m;
    char long_text[600];
    Fedlora__V1__ReportRequest report = FEDLORA__V1__REPORT_REQUEST__INIT;
    Fedlora__V1__HelloReply *reply = NULL;
    open_member(&m, "m2", 2);
    m.options.run = run;
    report.cannot_train = "none of 4 rows \x1b[31mteaches";
    ok(fake_report(&m, &report));
    expect_trouble("member.cannot_train since 20", true);
    expect_trouble("client/m2 at 127.0.0.1: none of 4 rows ?[31mteaches", true);
    memset(long_text, 'x', sizeof long_text - 1);
    long_text[sizeof long_text - 1] = 0;
    report.cannot_train = long_text;
    refused(fake_report(&m, &report), ERR_REFUSED, "cannot_train is 599 bytes");
    ok(fake_hello(&reply, &m));
    message_free(reply);
    expect_trouble("member.cannot_train", false);
    report.cannot_train = "";
    report.eval_loss = 1;
    refused(fake_report(&m, &report), ERR_REFUSED, "over 0 rows");
    fake_close(&m);
}

Test(troubles, names_members_that_cannot_train)
{
    begin("");
    ok(create_run("flora", 2));
    expect_cannot_train("r");
    expect_cannot_train("");
    cr_expect_eq(logged("event=member.cannot_train"), 2);
    cr_expect_eq(logged("event=member.can_train"), 2);
    end();
}

static size_t events(const char *name)
{
    static const struct remote_method method = {RPC_PATH_ADMIN(watch_run),
                                                &fedlora__v1__watch_reply__descriptor};
    Fedlora__V1__WatchRequest request = FEDLORA__V1__WATCH_REQUEST__INIT;
    Fedlora__V1__WatchReply *reply = NULL;
    size_t count = 0;
    request.run = "r";
    ok(remote_call(&reply, ops.client, &method, &request.base, 0));
    for (size_t i = 0; i < reply->n_events; i++)
        count += !strcmp(reply->events[i]->event, name);
    message_free(reply);
    return count;
}

Test(troubles, names_who_was_refused_is_absent_and_did_what)
{
    struct hand h;
    Fedlora__V1__ListRunsReply *list = NULL;
    begin("[limits]\nabsent_after = 300ms");
    ok(create_run("flora", 2));
    be_refused_as_stranger();
    expect_trouble("(51 times): client/stranger at 127.0.0.1:", true);
    cr_expect_eq(logged("event=call.refused peer=client/stranger address=127.0.0.1 "), 1);
    take_task(&h);
    expect_trouble("member.absent since 20", true);
    expect_trouble("run r: client/m1 at 127.0.0.1:", true);
    cr_expect_geq(events("member.absent"), 1);
    cr_expect_leq(events("member.absent"), 2, "members that are found together share an event");
    refused(fake_fetch(NULL, &h.member, &h.header.digest, 0), ERR_STATE, "does not exist");
    cr_expect_eq(logged("event=call.later run=r peer=client/m0 address=127.0.0.1 "), 1);
    cr_expect_eq(logged("event=blob.missing"), 0, "nothing names the blob that it asked for");
    h.header.train_loss = INFINITY;
    refuse_header(&h, ERR_REFUSED, "train_loss");
    expect_trouble("call.refused since", true);
    cr_expect_eq(logged("event=call.refused run=r peer=client/m0 address=127.0.0.1 "), 1);
    expect_paused_by();
    remove_blob(&h.task->train->state_digest);
    refused(fake_fetch(NULL, &h.member, &h.task->train->state_digest, 0), ERR_STATE, "");
    expect_trouble("blob.missing since", true);
    ok(fake_list(&list, &ops, 0, 0));
    cr_assert_gt(list->n_troubles, 2);
    cr_expect(strstr(list->troubles[0], "blob.missing since"), "%s", list->troubles[0]);
    message_free(list);
    drop_task(&h);
    ok(fake_command(&ops, RPC_PATH_ADMIN(pause_run), "r"));
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    ok(fake_federation_start(&federation));
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    expect_trouble("blob.missing since", true); /* found at the start, before anyone asks for it */
    end();
}

/* ---- certificates and deadlines */

/* Makes a certificate of five days, for a member that no configuration lists. */
static void make_short_certificate(void)
{
    char command[2 * SUPPORT_PATH_BYTES + 256];
    snprintf(command, sizeof command,
             "%s/deploy/make-certs.sh %s --days 5 short >%s/short.log 2>&1", FEDLORA_SOURCE_DIR,
             federation.certs, dir);
    cr_assert_eq(system(command), 0);
}

Test(troubles, names_certificates_that_end_soon_and_rounds_past_their_deadline)
{
    struct fake_member m;
    struct hand h;
    Fedlora__V1__HelloReply *reply = NULL;
    begin("");
    make_short_certificate();
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    config.name = "r";
    config.method = "flora";
    config.rounds = 1;
    config.rank = 8;
    config.quorum = 2;
    config.deadline_ms = 100;
    ok(fake_create_run(&ops, &config, MEMBERS));
    open_member(&m, "short", 8);
    for (int i = 0; i < 5; i++)
        refused(fake_hello(&reply, &m), ERR_REFUSED, "not listed");
    fake_close(&m);
    expect_trouble("client/short at 127.0.0.1:", true);
    expect_trouble("its certificate ends in ", true);
    cr_expect_eq(logged("event=certificate.ends peer=client/short"), 1);
    take_task(&h);
    expect_trouble("round.overdue since 20", true);
    expect_trouble("with 0 updates of the quorum of 2", true);
    cr_expect_eq(logged("event=round.overdue run=r"), 1);
    cr_expect_eq(events("round.overdue"), 1);
    submit_task(&h);
    drop_task(&h);
    open_hand(&h, "m1", 4);
    submit_task(&h);
    drop_task(&h);
    expect_trouble("round.overdue", false);
    config.name = (char *)(uintptr_t)(run_name = "all");
    config.quorum = 0;
    ok(fake_create_run(&ops, &config, MEMBERS));
    take_task(&h);
    expect_trouble("with 0 updates of the quorum of 3", true);
    drop_task(&h);
    end();
}

/* ---- two copies of a store */

static void open_again(struct fake_member *m)
{
    struct fake_member was = *m;
    fake_close(m);
    ok(fake_open(m, &was.options));
    memcpy(m->epoch, was.epoch, sizeof m->epoch);
    m->epoch_size = was.epoch_size;
    fake_close(&ops);
    open_member(&ops, "ops", 0);
}

static void shell(const char *command)
{
    char text[2 * SUPPORT_PATH_BYTES];
    snprintf(text, sizeof text, "cd %s && %s", dir, command);
    cr_assert_eq(system(text), 0, "%s", command);
}

static void start_again(struct fake_member *m, const char *first)
{
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    shell(first);
    ok(fake_federation_start(&federation));
    open_again(m);
}

Test(troubles, an_old_copy_of_the_store_serves_nobody_until_the_operator_says_so)
{
    struct fake_member m;
    Fedlora__V1__HelloReply *reply = NULL;
    Fedlora__V1__Task *task = NULL;
    begin("");
    ok(create_run("flora", 0));
    open_member(&m, "m0", 2);
    hello(&m);
    start_again(&m, "cp -r store backup");
    refused(fake_next_task(&task, &m, 0), ERR_STATE, "call Hello first");
    hello(&m);
    start_again(&m, "true");
    hello(&m);
    start_again(&m, "rm -r store && mv backup store");
    refused(fake_hello(&reply, &m), ERR_STATE, "runs on an old copy of its store");
    expect_trouble("store.old_copy since 20", true);
    cr_expect_eq(logged("event=store.old_copy peer=client/m0 address=127.0.0.1 "), 1);
    cr_expect_eq(fake_federation_try(&federation, "--accept-copy"), 1, "the store is in use");
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    cr_expect_eq(fake_federation_try(&federation, "--accept-copy"), 0);
    ok(fake_federation_start(&federation));
    open_again(&m);
    hello(&m);
    fake_close(&m);
    end();
}

/* ---- a full disk */

/* Longer forms: FEDLORA_DISK_BYTES sets the size, FEDLORA_DISK_FILLS how often it is filled. */
static long setting(const char *name, long fallback)
{
    const char *text = getenv(name);
    return text ? strtol(text, NULL, 10) : fallback;
}

/* A small disk for the store; false if this user may not mount one. */
static bool begin_small(void)
{
    char size[64];
    base = (struct fake_base){digest_of("a base", 6), modules, 2};
    support_dir_make(dir);
    ok(rpc_init());
    ok(fake_federation_open(&federation, dir, MEMBERS,
                            "[store]\nreserve = 64kB\n[limits]\nretry_after = 300ms\n"));
    if (!small_disk_mount(federation.store, "size=64k")) {
        support_dir_remove(dir);
        return false;
    }
    /* A disk that is too small even for an empty database is refused, and costs nothing later. */
    cr_expect(err_is(fake_federation_start(&federation)));
    cr_expect_eq(logged("fedlora.db: database or disk is full"), 1);
    snprintf(size, sizeof size, "size=%ld", setting("FEDLORA_DISK_BYTES", DISK_BYTES));
    small_disk_resize(federation.store, size);
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
    return true;
}

Test(troubles, a_full_disk_is_told_and_costs_time_only)
{
    struct fake_joining joining[MEMBERS];
    begin("");
    ok(create_run("flora", 0));
    struct digest last = run_everyone(0, 0);
    end();
    if (!begin_small()) cr_skip("this user cannot mount a small disk");
    ok(create_run("flora", 0));
    expect_trouble("store.full", false);
    small_disk_fill(federation.store);
    for (int i = 0; i < MEMBERS; i++) {
        struct fake_options options = options_of(NULL, 2u << i);
        fake_join_begin(&joining[i], i, &options);
    }
    expect_trouble("store.full since 20", true);
    fake_federation_stop(&federation, SIGKILL);
    if (err_is(fake_federation_start(&federation))) { /* without any room it may not start */
        cr_expect_eq(logged("fedlorad: "), 2);
        small_disk_free(federation.store);
        ok(fake_federation_start(&federation));
        small_disk_fill(federation.store);
    }
    fake_close(&ops);
    open_member(&ops, "ops", 0);
    size_t before = logged("event=store.full");
    long fills = setting("FEDLORA_DISK_FILLS", 1);
    for (long i = 1;; i++) {
        expect_trouble("store.full since 20", true);
        usleep(500 * 1000);
        cr_expect_leq(logged("event=store.full"), before + (size_t)i);
        cr_expect_eq(logged("event=store.space_again"), i - 1);
        small_disk_free(federation.store);
        if (i == fills) break;
        expect_trouble("store.full", false);
        small_disk_fill(federation.store);
    }
    for (int i = 0; i < MEMBERS; i++) {
        err e = fake_join_end(&joining[i]);
        cr_assert(!err_is(e), "%s: %s", joining[i].id, e.text);
        cr_expect(digest_equal(&joining[i].last, &last), "the same bytes as without");
    }
    expect_trouble("store.full", false);
    cr_expect_eq(logged("event=store.space_again"), fills);
    fake_close(&ops);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0, "a clean stop");
    umount(federation.store);
    support_dir_remove(dir);
}
