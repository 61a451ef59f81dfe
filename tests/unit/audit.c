#include "coordinator/audit/audit.h"
#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { NOVEMBER_30 = 1796077639 }; /* 2026-11-30T22:27:19Z */
static char dir[SUPPORT_PATH_BYTES];
static uint64_t wall, clock_ms;

static uint64_t wall_now(void)
{
    return wall;
}
static uint64_t clock_now(void)
{
    return clock_ms;
}

static void pass(uint64_t ms)
{
    wall += ms;
    clock_ms += ms;
}

static void make(void)
{
    support_dir_make(dir);
    wall = NOVEMBER_30 * 1000ull;
    clock_ms = 5000;
    audit_wall_ms = wall_now;
    audit_now_ms = clock_now;
}
static void drop(void)
{
    support_dir_remove(dir);
}
TestSuite(audit, .init = make, .fini = drop);

static const struct rpc_peer ops = {.role = RPC_ADMIN, .id = "ops", .address = "10.0.0.7"};

static void add(struct audit *a, int number)
{
    AUDIT(a, &ops, "run.created", "triage", "ok", LOG_INT("number", number));
}

/* All lines of all files are a whole chain; the actions are joined by blanks. */
static void check_chain(char *actions, size_t bytes)
{
    char command[2 * SUPPORT_PATH_BYTES], line[AUDIT_LINE_BYTES];
    struct audit_line_head head = {0};
    size_t used = 0;
    *actions = 0;
    snprintf(command, sizeof command, "cat %s/audit/*.jsonl", dir);
    FILE *f = popen(command, "r");
    while (fgets(line, sizeof line, f)) {
        struct audit_line_read read;
        size_t n = strcspn(line, "\n");
        cr_assert_eq(line[n], '\n', "cut: %s", line);
        ok(audit_line_parse(&read, line, n));
        cr_assert(read.whole && (!read.signs || read.signature), "%s", line);
        cr_assert_eq(read.seq, head.seq + 1, "%s", line);
        cr_assert(digest_equal(&read.prev, &head.hash), "%s", line);
        head = (struct audit_line_head){read.seq, read.hash};
        const char *action = strstr(line, "\"action\":\"") + strlen("\"action\":\"");
        used += (size_t)snprintf(actions + used, bytes - used, "%s%.*s", used ? " " : "",
                                 (int)strcspn(action, "\""), action);
    }
    pclose(f);
}

static void expect_actions(const char *expected)
{
    char actions[4096];
    check_chain(actions, sizeof actions);
    cr_expect_str_eq(actions, expected);
}

static bool has_file(const char *name)
{
    char path[SUPPORT_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/audit/%s", dir, name);
    return file_exists(path);
}

Test(audit, continues_its_chain_over_restarts)
{
    struct audit *a = NULL;
    for (int start = 0; start < 3; start++) {
        ok(audit_open(&a, dir, NULL));
        add(a, start);
        cr_expect(audit_pending(a));
        ok(audit_flush(a));
        cr_expect(!audit_pending(a));
        audit_close(a);
    }
    expect_actions("run.created head run.created head run.created head");
}

Test(audit, begins_a_file_a_month_and_ends_the_old_one_with_a_signed_head)
{
    struct audit *a = NULL;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    ok(audit_flush(a));
    pass(2 * 3600 * 1000);
    add(a, 2);
    add(a, 3);
    ok(audit_flush(a));
    expect_actions("run.created head run.created run.created");
    cr_expect(has_file("2026-11.jsonl") && has_file("2026-12.jsonl"));
    wall -= 40ull * 24 * 3600 * 1000; /* the clock is set back to October */
    add(a, 4);
    ok(audit_flush(a));
    cr_expect(!has_file("2026-10.jsonl"));
    audit_close(a);
    expect_actions("run.created head run.created run.created run.created head");
}

Test(audit, signs_a_head_an_hour_unless_nothing_has_followed_the_last)
{
    struct audit *a = NULL;
    wall -= 86400ull * 1000;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    for (int second = 0; second < 3 * 3600; second += 10) {
        pass(10 * 1000);
        audit_tick(a);
    }
    ok(audit_flush(a));
    expect_actions("run.created head");
    add(a, 2);
    pass(3600 * 1000);
    audit_tick(a);
    audit_close(a);
    expect_actions("run.created head run.created head");
}

Test(audit, removes_a_last_line_that_a_crash_cut_off)
{
    char path[SUPPORT_PATH_BYTES + 64];
    struct audit *a = NULL;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    add(a, 2);
    audit_close(a);
    snprintf(path, sizeof path, "%s/audit/2026-11.jsonl", dir);
    struct stat st;
    cr_assert_eq(stat(path, &st), 0);
    for (off_t size = st.st_size; size >= 0; size -= 97) {
        cr_assert_eq(truncate(path, size), 0);
        ok(audit_open(&a, dir, NULL));
        add(a, 3);
        audit_close(a);
        char actions[4096];
        check_chain(actions, sizeof actions);
        cr_assert(strlen(actions) >= strlen("run.created head"), "%s", actions);
    }
}

Test(audit, does_not_continue_a_file_whose_last_line_was_changed)
{
    char command[4 * SUPPORT_PATH_BYTES];
    struct audit *a = NULL;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    audit_close(a);
    snprintf(command, sizeof command, "sed -i '$s/coordinator/koordinator/' %s/audit/*.jsonl", dir);
    cr_assert_eq(system(command), 0);
    refused(audit_open(&a, dir, NULL), ERR_INPUT, "its last line was changed");
}

static struct file_disk real;
static int failing;
static ssize_t full_write(int fd, const void *data, size_t size)
{
    if (!failing) return real.write(fd, data, size);
    if (failing == 1)
        failing = 2; /* half a line first, as when the last block is taken */
    else {
        errno = ENOSPC;
        return -1;
    }
    return real.write(fd, data, size / 2);
}

Test(audit, keeps_lines_that_a_full_disk_does_not_take)
{
    struct audit *a = NULL;
    real = file_disk;
    file_disk.write = full_write;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    ok(audit_flush(a));
    failing = 1;
    add(a, 2);
    refused(audit_flush(a), ERR_MACHINE, "No space left");
    cr_expect(audit_pending(a));
    refused(audit_ready(a), ERR_MACHINE, "No space left");
    pass(2 * 3600 * 1000);
    add(a, 3); /* of the next month */
    refused(audit_flush(a), ERR_MACHINE, "No space left");
    failing = 0;
    ok(audit_ready(a));
    audit_close(a);
    expect_actions("run.created run.created head run.created head");
    file_disk = real;
}

Test(audit, says_how_many_lines_were_lost_when_its_memory_was_full)
{
    char command[4 * SUPPORT_PATH_BYTES];
    struct audit *a = NULL;
    real = file_disk;
    file_disk.write = full_write;
    ok(audit_open(&a, dir, NULL));
    failing = 2;
    for (int i = 0; i < 40000; i++)
        add(a, i);
    err e = audit_flush(a);
    cr_expect_eq(e.sys, ENOSPC);
    failing = 0;
    ok(audit_flush(a));
    add(a, 0);
    audit_close(a);
    snprintf(command, sizeof command,
             "n=$(grep -c run.created %s/audit/2026-11.jsonl); "
             "lost=$(grep -o '\"lines\":[0-9]*' %s/audit/2026-11.jsonl | cut -d: -f2); "
             "echo $n $lost; [ $((n + lost)) = 40001 ]",
             dir, dir);
    cr_expect_eq(system(command), 0);
    file_disk = real;
}

Test(audit, records_that_the_clock_was_stepped)
{
    struct audit *a = NULL;
    wall -= 86400ull * 1000;
    ok(audit_open(&a, dir, NULL));
    add(a, 1);
    audit_tick(a);
    wall += 1500; /* as NTP may correct it */
    audit_tick(a);
    wall += 10 * 60 * 1000;
    audit_tick(a);
    audit_tick(a);
    audit_close(a);
    expect_actions("run.created clock.stepped head");
    wall -= 3600 * 1000;
    ok(audit_open(&a, dir, NULL));
    audit_close(a);
    expect_actions("run.created clock.stepped head clock.stepped head");
}

Test(audit, writes_one_line_a_second_for_denied_calls_and_counts_the_others)
{
    struct audit *a = NULL;
    char command[4 * SUPPORT_PATH_BYTES];
    const struct rpc_peer stranger = {
        .role = RPC_CLIENT, .id = "eve", .serial = "2a", .address = "10.9.9.9"};
    wall -= 86400ull * 1000;
    ok(audit_open(&a, dir, NULL));
    for (int ms = 0; ms < 10000; ms++) { /* 1,000 a second for ten seconds */
        audit_denied(a, &stranger, "Hello", "eve is not listed");
        ok(audit_flush(a));
        pass(1);
    }
    pass(1000);
    ok(audit_flush(a));
    snprintf(command, sizeof command,
             "f=%s/audit/2026-11.jsonl; n=$(grep -c call.denied $f); "
             "left=0; for x in $(grep -o '\"left_out\":[0-9]*' $f | cut -d: -f2); do "
             "left=$((left + x)); done; echo $n $left; "
             "grep -q '\"serial\":\"2a\"' $f && [ $n -le 11 ] && [ $((n + left)) = 10000 ]",
             dir);
    cr_expect_eq(system(command), 0);
    audit_close(a);
}

Test(audit, makes_its_key_once_and_writes_the_public_half)
{
    struct audit *a = NULL;
    char path[SUPPORT_PATH_BYTES + 64], command[3 * SUPPORT_PATH_BYTES];
    uint8_t first[32], second[32];
    ok(audit_open(&a, dir, NULL));
    audit_close(a);
    snprintf(path, sizeof path, "%s/audit/audit.pub", dir);
    ok(ledger_public_open(first, path));
    ok(audit_open(&a, dir, NULL));
    audit_close(a);
    ok(ledger_public_open(second, path));
    cr_expect_arr_eq(first, second, sizeof first);
    snprintf(command, sizeof command,
             "cd %s/audit && [ $(stat -c %%a audit.key) = 600 ] && "
             "openssl pkey -in audit.key -pubout | cmp - audit.pub",
             dir);
    cr_expect_eq(system(command), 0);
}

Test(audit, gives_all_its_durable_lines_in_parts)
{
    struct audit *a = NULL;
    struct bytes all = {.max = 1 << 24};
    struct audit_place place = {0};
    char path[SUPPORT_PATH_BYTES + 64];
    ok(audit_open(&a, dir, NULL));
    for (int i = 0; i < 1000; i++) {
        add(a, i);
        if (i != 500) continue;
        ok(audit_flush(a));
        pass(2 * 3600 * 1000);
    }
    ok(audit_flush(a));
    add(a, 1000); /* pending: not given away */
    size_t parts = 0;
    for (size_t before = all.size + 1; before != all.size; parts++) {
        before = all.size;
        ok(audit_read(&all, &place, a, 0, AUDIT_LINE_BYTES));
    }
    cr_expect_gt(parts, 5);
    snprintf(path, sizeof path, "cat %s/audit/*.jsonl", dir);
    FILE *f = popen(path, "r");
    char *text = malloc(1 << 24);
    size_t size = fread(text, 1, 1 << 24, f);
    pclose(f);
    cr_expect_eq(size, all.size);
    cr_expect_eq(memcmp(text, all.data, size), 0);
    free(text);

    struct audit_place december = {0};
    bytes_clear(&all);
    ok(audit_read(&all, &december, a, wall, AUDIT_LINE_BYTES));
    cr_expect_str_eq(december.file, "2026-12.jsonl");
    struct audit_place nowhere = {.file = "2020-01.jsonl"};
    refused(audit_read(&all, &nowhere, a, 0, AUDIT_LINE_BYTES), ERR_INPUT, "no file");
    bytes_close(&all);
    audit_close(a);
}

Test(audit, does_nothing_without_a_log)
{
    struct bytes none = {.max = 1};
    struct audit_place place = {0};
    add(NULL, 1);
    audit_tick(NULL);
    audit_denied(NULL, &ops, "x", "y");
    ok(audit_ready(NULL));
    ok(audit_flush(NULL));
    ok(audit_read(&none, &place, NULL, 0, AUDIT_LINE_BYTES));
    cr_expect(!audit_pending(NULL) && !audit_key(NULL));
    audit_close(NULL);
}
