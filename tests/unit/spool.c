#include "coordinator/store/spool.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

static char dir[SUPPORT_PATH_BYTES];
static struct spool_key key;

static void begin(void)
{
    char path[SUPPORT_PATH_BYTES + 16];
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/spool", dir);
    ok(file_make_dirs(path));
    key = (struct spool_key){.digest = digest_of("abcdef", 6), .size = 6, .run = "r", .owner = "a"};
}

Test(spool, goes_on_where_it_stopped)
{
    struct spool s = {0};
    char *data = NULL;
    size_t size;
    begin();
    ok(spool_open(&s, dir, &key, 0, 0));
    cr_expect(!s.resumed);
    ok(spool_append(&s, "abcX", 4));
    spool_close(&s);
    cr_expect_eq(spool_received(dir, &key), 4);
    ok(spool_open(&s, dir, &key, 3, 0));
    cr_expect(s.resumed);
    ok(spool_append(&s, "def", 3));
    refused(spool_append(&s, "g", 1), ERR_INPUT, "more bytes than the 6");
    spool_close(&s);
    ok(file_read_all(&data, &size, s.path, 100));
    cr_expect_str_eq(data, "abcdef");
    free(data);
    support_dir_remove(dir);
}

Test(spool, refuses_a_gap)
{
    struct spool s = {0};
    begin();
    refused(spool_open(&s, dir, &key, 2, 0), ERR_STATE, "continues at byte 0, not 2");
    support_dir_remove(dir);
}

Test(spool, keeps_one_upload_an_owner)
{
    struct spool s = {0};
    struct spool_key second = key, other = key;
    begin();
    second = other = key;
    second.digest = digest_of("second", 6);
    other.owner = "b";
    ok(spool_open(&s, dir, &key, 0, 0));
    ok(spool_append(&s, "abc", 3));
    spool_close(&s);
    ok(spool_open(&s, dir, &other, 0, 0));
    ok(spool_append(&s, "ab", 2));
    spool_close(&s);
    ok(spool_open(&s, dir, &second, 0, 0));
    spool_close(&s);
    cr_expect_eq(spool_received(dir, &key), 0, "replaced");
    cr_expect_eq(spool_received(dir, &other), 2, "another's");
    support_dir_remove(dir);
}

static ssize_t half_write(int fd, const void *data, size_t size)
{
    static int calls;
    if (calls++ == 0) return (ssize_t)(size / 2 + write(fd, data, 0));
    errno = ENOSPC;
    return -1;
}

Test(spool, a_full_disk_takes_back_what_it_had_taken_of_a_chunk)
{
    struct spool s = {0};
    begin();
    ok(spool_open(&s, dir, &key, 0, 0));
    ok(spool_append(&s, "ab", 2));
    file_disk.write = half_write;
    err e = spool_append(&s, "cdef", 4);
    cr_expect_eq(e.kind, ERR_MACHINE);
    cr_expect_eq(e.sys, ENOSPC);
    cr_expect_eq(s.received, 2);
    spool_close(&s);
    cr_expect_eq(spool_received(dir, &key), 2);
    support_dir_remove(dir);
}

Test(spool, leaves_the_reserve_free)
{
    struct spool s = {0};
    begin();
    refused(spool_open(&s, dir, &key, 0, 1ull << 62), ERR_LIMIT, "the coordinator's disk is full");
    cr_expect_eq(spool_received(dir, &key), 0);
    support_dir_remove(dir);
}

Test(spool, leaves_the_reserve_free_while_an_upload_grows)
{
    struct spool s = {0};
    begin();
    ok(spool_open(&s, dir, &key, 0, 1));
    ok(spool_append(&s, "ab", 2));
    s.reserve = 1ull << 62; /* as if others had filled the disk meanwhile */
    err e = spool_append(&s, "cd", 2);
    cr_expect_eq(e.kind, ERR_LIMIT);
    cr_expect_eq(e.sys, ENOSPC);
    s.reserve = 1;
    ok(spool_append(&s, "cd", 2));
    cr_expect_eq(s.received, 4, "it goes on when there is room");
    spool_close(&s);
    support_dir_remove(dir);
}

static void write_old(char path[SUPPORT_PATH_BYTES + 32], const char *name, time_t age_s)
{
    const time_t then = time(NULL) - age_s;
    const struct timespec times[2] = {{.tv_sec = then}, {.tv_sec = then}};
    snprintf(path, SUPPORT_PATH_BYTES + 32, "%s/spool/%s", dir, name);
    ok(file_write(path, "half", 4, true));
    cr_assert_eq(utimensat(AT_FDCWD, path, times, 0), 0);
}

Test(spool, removes_what_nobody_continues_but_not_the_work_of_this_process)
{
    char old[SUPPORT_PATH_BYTES + 32], fresh[SUPPORT_PATH_BYTES + 32],
        made[SUPPORT_PATH_BYTES + 32];
    size_t removed = 0;
    begin();
    write_old(old, "a.old", 100);
    write_old(fresh, "a.fresh", 10);
    write_old(made, "make.1.state", 100);
    ok(spool_expire(&removed, dir, 60000));
    cr_expect_eq(removed, 1);
    cr_expect(!file_exists(old) && file_exists(fresh) && file_exists(made));
    ok(spool_sweep(&removed, dir, 60000));
    cr_expect_eq(removed, 1);
    cr_expect(file_exists(fresh) && !file_exists(made));
    support_dir_remove(dir);
}
