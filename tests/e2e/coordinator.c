/* A real fedlorad process and members without a model, over TLS: whole runs, kills, interrupted
 * uploads, a full disk. */
#include "base/text.h"
#include "tests/support/database.h"
#include "tests/support/three_members.h"

#include <sqlite3.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

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

/* The database has the seed of secret draws. */
Test(coordinator, keeps_its_files_to_itself)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    char path[SUPPORT_PATH_BYTES], key[SUPPORT_PATH_BYTES];
    struct stat st;
    begin("");
    snprintf(path, sizeof path, "%s/fedlora.db", federation.store);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 077, 0, "mode %o", (unsigned)st.st_mode);
    cr_expect_eq(fake_federation_stop(&federation, SIGTERM), 0);
    cr_assert(chmod(path, 0644) == 0 && chmod(federation.store, 0755) == 0);
    snprintf(key, sizeof key, "%s/server.key", federation.certs);
    cr_assert_eq(chmod(key, 0644), 0);
    cr_expect_eq(fake_federation_try(&federation, NULL), 2);
    cr_expect(fake_federation_logged(&federation, "server.key: other users may read this key"));
    cr_assert_eq(chmod(key, 0600), 0);
    ok(fake_federation_start(&federation));
    cr_expect(stat(path, &st) == 0 && (st.st_mode & 0777) == 0600);
    cr_expect(stat(federation.store, &st) == 0 && (st.st_mode & 0777) == 0700);
    cr_expect(fake_federation_logged(&federation, "event=store.made_private"));
    end();
}

static long cpu_ticks(void)
{
    char path[64], text[512] = "";
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)federation.coordinator);
    FILE *f = fopen(path, "r");
    cr_assert(f && fread(text, 1, sizeof text - 1, f) > 0);
    fclose(f);
    const char *rest = strrchr(text, ')');
    cr_assert(rest && sscanf(rest, ") %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                             &system) == 2);
    return (long)(user + system);
}

/* Its event loop once asked for a tick that was due since the deadline, again and again. */
Test(coordinator, rests_while_a_round_waits_for_its_quorum_past_the_deadline)
{
    Fedlora__V1__RunConfig config = FEDLORA__V1__RUN_CONFIG__INIT;
    struct fake_member member[2];
    begin("");
    config.name = "r";
    config.method = "flora";
    config.rounds = ROUNDS;
    config.rank = 8;
    config.quorum = 2;
    config.deadline_ms = 1;
    ok(fake_create_run(&ops, &config, MEMBERS));
    for (int i = 0; i < 2; i++) {
        Fedlora__V1__HelloReply *reply = NULL;
        open_member(&member[i], i ? "m1" : "m0", 2);
        ok(fake_hello(&reply, &member[i]));
        message_free(reply);
    }
    usleep(100000);
    long before = cpu_ticks();
    usleep(1000000);
    cr_expect_lt(cpu_ticks() - before, sysconf(_SC_CLK_TCK) / 25);
    for (int i = 0; i < 2; i++)
        fake_close(&member[i]);
    end();
}

/* Changes the store of a coordinator that is not running. */
static void change_store(const char *sql)
{
    sqlite3 *db = NULL;
    char path[SUPPORT_PATH_BYTES];
    snprintf(path, sizeof path, "%s/fedlora.db", federation.store);
    cr_assert_eq(sqlite3_open(path, &db), SQLITE_OK);
    cr_assert_eq(sqlite3_exec(db, sql, NULL, NULL, NULL), SQLITE_OK, "%s", sqlite3_errmsg(db));
    sqlite3_close(db);
}

static void restart(const char *sql)
{
    fake_federation_stop(&federation, SIGKILL);
    change_store(sql);
    ok(fake_federation_start(&federation));
    fake_close(&ops);
    open_member(&ops, "ops", 0);
}

static void list_all(size_t runs, uint32_t limit)
{
    Fedlora__V1__ListRunsReply *page = NULL;
    uint32_t after = 0;
    size_t seen = 0;
    do {
        ok(fake_list(&page, &ops, after, limit));
        cr_assert_leq(page->n_runs, limit);
        for (size_t i = 0; i < page->n_runs; i++, seen++) {
            const Fedlora__V1__RunStatus *s = page->runs[i];
            char name[16] = "r";
            if (seen) snprintf(name, sizeof name, seen < 1024 ? "r%04zu" : "s", seen);
            cr_expect_str_eq(s->config->name, name);
            cr_expect_eq(s->member_count, MEMBERS);
            cr_expect_eq(s->config->n_members, 0);
        }
        after = page->next;
        message_free(page);
    } while (after);
    cr_expect_eq(seen, runs);
}

/* 1,024 runs, the largest number that may be open at once. A name has five bytes after its tag. */
Test(coordinator, lists_many_runs_in_pages_and_counts_the_open_ones)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    static const char *const clone =
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1023)"
        " INSERT INTO runs(name,config,created_ms,hold) SELECT printf('r%04d',i),"
        " CAST(x'0a05'||CAST(printf('r%04d',i) AS BLOB)||substr(config,4) AS BLOB),created_ms,"
        " 'stopped' FROM n,runs WHERE name='r'; INSERT INTO members(run,id) SELECT "
        "runs.id,members.id"
        " FROM runs,members WHERE run=1 AND name<>'r'";
    begin("");
    ok(create_run("flora", 0));
    restart(clone);
    run_name = "s";
    ok(create_run("flora", 0));
    list_all(1025, 300);
    restart("UPDATE runs SET hold='' WHERE name<>'r'");
    run_name = "t";
    refused(create_run("flora", 0), ERR_LIMIT, "1024 runs are open");
    list_all(1025, 1025);
    end();
}

Test(coordinator, sets_a_run_aside_that_it_cannot_read)
{
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
    Fedlora__V1__RunStatus *status = NULL;
    begin("");
    ok(create_run("flora", 0));
    /* The stored configuration of r is no message any more. */
    restart("UPDATE runs SET config=x'0a' WHERE name='r'");
    refused(fake_status(&status, &ops, "r"), ERR_REFUSED, "run r cannot be read from the store");
    cr_expect(fake_federation_logged(&federation, "event=run.unreadable"));
    end();
}

static void flip_bit(const struct digest *digest)
{
    char path[SUPPORT_PATH_BYTES + 256], name[DIGEST_TEXT_BYTES];
    digest_text(name, digest);
    snprintf(path, sizeof path, "%s/blobs/%s", federation.store, name);
    FILE *file = fopen(path, "r+b");
    cr_assert(file && fseek(file, -1, SEEK_END) == 0);
    int last = fgetc(file);
    cr_assert(fseek(file, -1, SEEK_END) == 0 && fputc(last ^ 4, file) != EOF);
    cr_assert_eq(fclose(file), 0);
}

Test(coordinator, asks_again_for_an_update_that_the_disk_has_changed)
{
    struct digest last[2];
    struct hand h;
    for (int flipped = 0; flipped < 2; flipped++) {
        begin("");
        ok(create_run("flora", 0));
        take_task(&h);
        submit_task(&h);
        if (flipped) flip_bit(&h.digest);
        drop_task(&h);
        last[flipped] = run_everyone(0, 0);
        expect_finished();
        cr_expect_eq(fake_federation_logged(&federation, "event=update.damaged"), flipped);
        end();
    }
    cr_expect(digest_equal(&last[0], &last[1]));
}

/* The last bit belongs to a value of fedit's state, which is found when the round is combined, and
 * to the header of flora's first one, which is found when an update is compared with it. */
static void fail_with_state(const char *method)
{
    Fedlora__V1__RunStatus *status = NULL;
    Fedlora__V1__SubmitReply *reply = NULL;
    struct digest state;
    struct hand h;
    begin("");
    ok(create_run(method, 1));
    open_hand(&h, "m0", 8);
    memcpy(state.byte, h.task->train->state_digest.data, DIGEST_BYTES);
    flip_bit(&state);
    err e = fake_submit(&reply, &h.member, &h.header, &h.update, 0);
    cr_expect_eq(err_is(e), !strcmp(method, "flora"), "%s", e.text);
    message_free(reply);
    drop_task(&h);
    for (int i = 0; i < 100; i++, usleep(100 * 1000)) {
        message_free(status);
        ok(fake_status(&status, &ops, "r"));
        if (!strcmp(status->phase, "failed")) break;
    }
    cr_expect_str_eq(status->phase, "failed");
    cr_expect(strstr(status->waiting_for, "the state is missing or damaged on the disk"), "%s",
              status->waiting_for);
    message_free(status);
    end();
}

Test(coordinator, fails_a_run_by_name_whose_state_the_disk_has_changed)
{
    fail_with_state("fedit");
    fail_with_state("flora");
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

static void *submit_main(void *hand)
{
    submit_task(hand);
    return NULL;
}

/* It makes no other call, and takes several times as long as limits.absent_after. */
Test(coordinator, shows_a_slow_upload_and_does_not_call_its_member_absent)
{
    struct hand h;
    pthread_t thread;
    Fedlora__V1__RunStatus *status = NULL;
    begin("[limits]\nabsent_after = 500ms\n");
    ok(create_run("flora", 0));
    take_task(&h);
    h.member.options.part_bytes = h.update.size / 20;
    h.member.options.part_us = 150 * 1000;
    cr_assert_eq(pthread_create(&thread, NULL, submit_main, &h), 0);
    for (int i = 0; i < 40; i++, usleep(50 * 1000)) {
        message_free(status);
        ok(fake_status(&status, &ops, "r"));
        if (!strcmp(status->members[1]->doing, "absent") && status->members[0]->sending_bytes)
            break;
    }
    const Fedlora__V1__MemberStatus *m = status->members[0];
    cr_expect_str_eq(m->doing, "training");
    cr_expect_eq(m->sending_size, h.update.size);
    cr_expect(m->sending_bytes > 0 && m->sending_bytes < h.update.size);
    cr_expect_str_eq(status->members[1]->doing, "absent");
    message_free(status);
    pthread_join(thread, NULL);
    ok(fake_status(&status, &ops, "r"));
    cr_expect_eq(status->members[0]->sending_size, 0, "it has been sent");
    message_free(status);
    drop_task(&h);
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
    if (!support_is_sqlite()) cr_skip_test("of SQLite files");
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
    cr_expect_eq(fake_federation_try(&federation, "--check"), 0, "beside a running service");
    cr_expect(fake_federation_logged(&federation, "; in use by a running fedlorad"));
    cr_expect(fake_federation_logged(&federation, "in use, probably by the running service"));
    cr_expect_eq(fake_federation_stop(&federation, SIGINT), 0);
    cr_expect_eq(fake_federation_try(&federation, "--set=server.ca=/nothing"), 2);
    cr_expect(fake_federation_logged(&federation, "/nothing: no such file"));
    cr_expect_eq(fake_federation_try(&federation, "--check"), 0);
    end();
}
