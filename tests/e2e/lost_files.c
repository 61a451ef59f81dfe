/* A real fedlorad process over TLS whose store has lost one file: each file in turn. */
#include "base/file.h"
#include "coordinator/store/store_files.h"
#include "tests/support/three_members.h"

#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

static char was[SUPPORT_PATH_BYTES + 32]; /* the whole store */

static void shell(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void shell(const char *format, ...)
{
    char command[4 * SUPPORT_PATH_BYTES];
    va_list args;
    va_start(args, format);
    vsnprintf(command, sizeof command, format, args);
    va_end(args);
    cr_assert_eq(system(command), 0, "%s", command);
}

static void train_and_send(const char *member, uint32_t rank)
{
    struct hand h;
    open_hand(&h, member, rank);
    submit_task(&h);
    drop_task(&h);
}

static void greet(const char *id, uint32_t rank)
{
    struct fake_member m;
    open_member(&m, id, rank);
    hello(&m);
    fake_close(&m);
}

/* A run in round 2, for which one update is in. The coordinator is stopped. */
static void begin_run(void)
{
    begin("");
    ok(create_run("flora", 3));
    for (int i = 0; i < MEMBERS; i++)
        greet((const char *[]){"m0", "m1", "m2"}[i], 2u << i);
    train_and_send("m0", 2);
    train_and_send("m1", 4);
    train_and_send("m2", 8);
    train_and_send("m0", 2);
    fake_close(&ops);
    cr_assert_eq(fake_federation_stop(&federation, SIGTERM), 0);
    snprintf(was, sizeof was, "%s/store.was", dir);
    shell("cp -a %s %s", federation.store, was);
}

static void start(void)
{
    ok(fake_federation_start(&federation));
    open_member(&ops, "ops", 0);
}
static void stop(void)
{
    fake_close(&ops);
    cr_assert_eq(fake_federation_stop(&federation, SIGTERM), 0);
}

static Fedlora__V1__RunStatus *status(void)
{
    Fedlora__V1__RunStatus *s = NULL;
    ok(fake_status(&s, &ops, "r"));
    return s;
}

static bool submitted(const Fedlora__V1__RunStatus *s, const char *member)
{
    for (size_t i = 0; i < s->n_members; i++)
        if (!strcmp(s->members[i]->id, member)) return !strcmp(s->members[i]->doing, "submitted");
    return false;
}

static void expect_failed_until_restored(const char *file)
{
    Fedlora__V1__RunStatus *s = status();
    cr_expect_str_eq(s->phase, "failed");
    cr_expect(strstr(s->waiting_for, file), "\"%s\" does not name %s", s->waiting_for, file);
    message_free(s);
    refused(fake_command(&ops, RPC_PATH_ADMIN(resume_run), "r"), ERR_REFUSED, file);
    shell("cp %s/blobs/%s %s/blobs/", was, file, federation.store);
    ok(fake_command(&ops, RPC_PATH_ADMIN(resume_run), "r"));
    s = status();
    cr_expect_str_eq(s->phase, "training");
    message_free(s);
}

static int tried[STORE_FILE_PIN + 1];

static err lose_and_look(const struct store_file *f, void *context)
{
    char file[DIGEST_TEXT_BYTES];
    bool cut = *(bool *)context;
    digest_text(file, &f->blob.digest);
    tried[f->kind]++;
    shell("rm -rf %s && cp -a %s %s", federation.store, was, federation.store);
    shell(cut ? "truncate -s 10 %s/blobs/%s" : "rm %s/blobs/%s", federation.store, file);
    start();
    if (f->kind == STORE_FILE_STATE) {
        expect_failed_until_restored(file);
    } else {
        Fedlora__V1__RunStatus *s = status();
        bool asked_again = f->kind == STORE_FILE_UPDATE && f->round == 2;
        cr_expect_str_eq(s->phase, "training");
        cr_expect_eq(submitted(s, "m0"), !asked_again, "%s, round %u", f->member, f->round);
        cr_expect(fake_federation_logged(&federation, file), "the log does not name %s", file);
        message_free(s);
    }
    stop();
    shell("rm %s", federation.log);
    return ERR_NONE;
}

/* Every file of the store is removed, and cut, by itself. */
Test(lost_files, any_one_is_named_and_asked_for_again_or_fails_its_run)
{
    struct store store = {0};
    begin_run();
    for (int cut = 0; cut <= 1; cut++) {
        bool is_cut = cut;
        ok(store_open_beside(&store, &(struct store_place){.dir = was}));
        ok(store_files(&store.db, lose_and_look, &is_cut));
        store_close(&store);
    }
    cr_expect(tried[STORE_FILE_UPDATE] == 8 && tried[STORE_FILE_STATE] == 2 &&
                  tried[STORE_FILE_EARLIER] == 2,
              "%d updates, %d states, %d earlier", tried[STORE_FILE_UPDATE],
              tried[STORE_FILE_STATE], tried[STORE_FILE_EARLIER]);
    start();
    run_everyone(0, 0); /* the member still has its update */
    expect_finished();
    end();
}
