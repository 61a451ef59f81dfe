/* Files that are whole or absent, whatever disk call fails. */
#include "base/file.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];

/* ---- a disk that fails at the n-th call and keeps a record ---- */
static struct file_disk real;
static int calls, fail_at, fail_with;
static bool short_writes;
static char record[4096]; /* one letter a call: o w f r u c t */

static bool failing(char what)
{
    size_t n = strlen(record);
    if (n + 1 < sizeof record) record[n] = what;
    if (++calls != fail_at) return false;
    errno = fail_with;
    return true;
}

static int open_(const char *p, int flags, mode_t mode)
{
    return failing('o') ? -1 : real.open(p, flags, mode);
}
static ssize_t write_(int fd, const void *data, size_t size)
{
    if (failing('w')) return -1;
    return real.write(fd, data, short_writes && size > 3 ? 3 : size);
}
static int fsync_(int fd)
{
    struct stat st;
    fstat(fd, &st);
    return failing(S_ISDIR(st.st_mode) ? 'd' : 'f') ? -1 : real.fsync(fd);
}
static int rename_(const char *a, const char *b)
{
    return failing('r') ? -1 : real.rename(a, b);
}
static int unlink_(const char *p)
{
    return failing('u') ? -1 : real.unlink(p);
}
static int close_(int fd)
{
    bool fails = failing('c');
    int result = real.close(fd); /* as Linux: closed even when it says EIO */
    if (fails) errno = fail_with;
    return fails ? -1 : result;
}
static int ftruncate_(int fd, off_t size)
{
    return failing('t') ? -1 : real.ftruncate(fd, size);
}

static void disk_begin(int at, int with)
{
    calls = 0;
    fail_at = at;
    fail_with = with;
    memset(record, 0, sizeof record);
    file_disk = (struct file_disk){open_, write_, fsync_, rename_, unlink_, close_, ftruncate_};
}

static void begin(void)
{
    real = file_disk;
    short_writes = false;
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "state"));
}

static void end(void)
{
    file_disk = real;
    support_dir_remove(dir);
}

TestSuite(file, .init = begin, .fini = end);

static void expect_content(const char *want)
{
    char *text = NULL;
    size_t size = 0;
    ok(file_read_all(&text, &size, path, 1000));
    cr_expect_str_eq(text, want);
    free(text);
}

static int entries(void)
{
    DIR *d = opendir(dir);
    int n = 0;
    for (struct dirent *e; (e = readdir(d));)
        n += e->d_name[0] != '.';
    closedir(d);
    return n;
}

Test(file, whatever_call_fails_the_old_file_or_the_whole_new_one_is_there)
{
    static const int causes[] = {ENOSPC, EIO};
    for (int c = 0; c < 2; c++) {
        int at = 1;
        for (bool failed = true; failed; at++) {
            file_disk = real;
            ok(file_write(path, "old", 3, true));
            disk_begin(at, causes[c]);
            err e = file_write(path, "new content", 11, true);
            failed = err_is(e);
            bool renamed = strchr(record, 'r') && !(fail_at <= calls && record[at - 1] == 'r');
            bool past = calls < at;
            file_disk = real;
            if (past) break;
            /* Closing the directory's or a read-only handle may fail without harm. */
            cr_expect(failed || record[at - 1] == 'c', "call %d (%s) failed and nobody said so", at,
                      record);
            if (failed) cr_expect_eq(e.kind, ERR_MACHINE, "%s", e.text);
            if (failed && e.sys) cr_expect_eq(e.sys, causes[c], "%s", e.text);
            expect_content(renamed ? "new content" : "old");
            if (record[at - 1] != 'u')
                cr_expect_eq(entries(), 1, "call %d (%s): a part is left", at, record);
            failed = true;
        }
        cr_expect_geq(at, 8, "the disk was never asked: %d calls", at);
    }
}

Test(file, flushes_before_the_name_and_the_folder_after_it)
{
    disk_begin(0, 0);
    short_writes = true;
    ok(file_write(path, "0123456789", 10, false));
    cr_expect(strstr(record, "wwwwf") != NULL, "%s: fsync after the last write", record);
    cr_expect(strstr(record, "fro") != NULL, "%s: rename after fsync", record);
    cr_expect(strchr(strchr(record, 'r'), 'd') != NULL, "%s: folder flushed after the rename",
              record);
    expect_content("0123456789");
}

Test(file, an_abandoned_part_disappears_and_the_old_file_stays)
{
    ok(file_write(path, "old", 3, false));
    struct file_out out = {0};
    ok(file_out_open(&out, path, true));
    ok(file_out_append(&out, "half", 4));
    cr_expect_eq(out.size, 4);
    file_out_close(&out);
    file_out_close(&out);
    expect_content("old");
    cr_expect_eq(entries(), 1);
}

Test(file, never_replaces_without_being_told)
{
    ok(file_write(path, "old", 3, false));
    refused(file_write(path, "new", 3, false), ERR_INPUT, "state: exists already");
    expect_content("old");
    /* One that appears while we write is kept as well. */
    char other[SUPPORT_PATH_BYTES];
    ok(file_join(other, sizeof other, dir, "late"));
    struct file_out out = {0};
    ok(file_out_open(&out, other, false));
    ok(file_out_append(&out, "ours", 4));
    int fd = open(other, O_CREAT | O_WRONLY, 0600);
    cr_assert_geq(fd, 0);
    close(fd);
    refused(file_out_commit(&out), ERR_INPUT, "late: exists already");
    file_out_close(&out);
    cr_expect_eq(entries(), 2);
}

Test(file, two_writers_of_one_path_do_not_mix)
{
    struct file_out first = {0}, second = {0};
    ok(file_out_open(&first, path, true));
    ok(file_out_append(&first, "first", 5));
    refused(file_out_open(&second, path, true), ERR_STATE,
            "in use by another process that is writing it");
    ok(file_out_commit(&first));
    file_out_close(&first);
    ok(file_write(path, "second", 6, true));
    expect_content("second");
}

Test(file, a_part_left_by_a_crash_is_written_over)
{
    char part[SUPPORT_PATH_BYTES + 8];
    snprintf(part, sizeof part, "%s.part", path);
    ok(file_write(part, "a longer text of a crashed process", 34, false));
    ok(file_write(path, "new", 3, false));
    expect_content("new");
    cr_expect_eq(entries(), 1);
}

Test(file, says_what_is_no_file)
{
    struct file_map map = {0};
    char *text = NULL;
    size_t size = 7;
    refused(file_map_open(&map, dir), ERR_INPUT, "is a directory, expected a file");
    refused(file_map_open(&map, path), ERR_INPUT, "state: no such file");
    refused(file_read_all(&text, &size, dir, 10), ERR_INPUT, "is a directory");
    ok(file_write(path, "12345", 5, false));
    refused(file_read_all(&text, &size, path, 4), ERR_INPUT, "5 bytes, expected at most 4");
    refused(file_write(dir, "x", 1, true), ERR_INPUT, "is a directory");
    refused(file_make_dirs(path), ERR_INPUT, "is a file, expected a directory");
    cr_expect(map.data == NULL && text == NULL && size == 7, "an output was touched");
}

Test(file, maps_what_was_written_and_an_empty_file_too)
{
    struct file_map map = {0};
    static char big[100000];
    memset(big, 'x', sizeof big);
    ok(file_write(path, big, sizeof big, false));
    ok(file_map_open(&map, path));
    cr_assert_eq(map.size, sizeof big);
    file_map_drop(&map, 10, 90000);
    cr_expect_eq(memcmp(map.data, big, sizeof big), 0);
    file_map_close(&map);
    ok(file_write(path, "", 0, true));
    ok(file_map_open(&map, path));
    cr_expect(map.data == NULL && map.size == 0);
    file_map_close(&map);
}

Test(file, what_is_written_has_the_umasks_mode)
{
    struct stat st;
    mode_t before = umask(027);
    ok(file_write(path, "x", 1, false));
    umask(before);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0640);
}

Test(file, a_secret_is_for_its_owner_alone_whatever_the_umask)
{
    struct stat st;
    mode_t before = umask(0);
    ok(file_write_secret(path, "x", 1, false));
    umask(before);
    cr_assert_eq(stat(path, &st), 0);
    cr_expect_eq(st.st_mode & 0777, 0600);
    ok(file_check_secret(path));
}

Test(file, joins_and_makes_folders)
{
    char out[SUPPORT_PATH_BYTES], small[8];
    ok(file_join(out, sizeof out, "a", "b"));
    cr_expect_str_eq(out, "a/b");
    ok(file_join(out, sizeof out, "a/", "b"));
    cr_expect_str_eq(out, "a/b");
    ok(file_join(out, sizeof out, "", "b"));
    cr_expect_str_eq(out, "b");
    refused(file_join(small, sizeof small, "abcd", "efgh"), ERR_INPUT, "too long");
    ok(file_join(small, sizeof small, "abc", "def"));
    ok(file_join(out, sizeof out, dir, "x/y/z"));
    ok(file_make_dirs(out));
    ok(file_make_dirs(out));
    cr_expect(file_is_dir(out));
}

static unsigned mode_of(const char *at)
{
    struct stat st;
    cr_assert_eq(stat(at, &st), 0);
    return st.st_mode & 07777;
}

Test(file, takes_from_others_what_is_private)
{
    unsigned was = 1;
    ok(file_make_private(&was, "/nowhere/at/all"));
    cr_assert_eq(chmod(dir, 0755), 0);
    ok(file_make_private(&was, dir));
    cr_expect_eq(was, 0755);
    cr_expect_eq(mode_of(dir), 0700);
    ok(file_make_private(&was, dir));
    cr_expect_eq(was, 0, "nothing to change");
    cr_assert_eq(chmod(dir, 01777), 0);
    refused(file_make_private(&was, dir), ERR_INPUT, "many users may write to this folder");
    cr_expect_eq(mode_of(dir), 01777, "as it was");
    cr_assert_eq(chmod(dir, 0755), 0);
    if (geteuid() == 0 && chown(dir, 12345, 12345) == 0) {
        refused(file_make_private(&was, dir), ERR_INPUT, "it belongs to user 12345");
        cr_assert_eq(chown(dir, 0, 0), 0);
    }
}

Test(file, a_secret_that_others_may_read_is_refused)
{
    ok(file_write(path, "key", 3, false));
    cr_assert_eq(chmod(path, 0600), 0);
    ok(file_check_secret(path));
    static const mode_t open_to_others[] = {0640, 0644, 0604, 0620};
    for (size_t i = 0; i < sizeof open_to_others / sizeof *open_to_others; i++) {
        cr_assert_eq(chmod(path, open_to_others[i]), 0);
        refused(file_check_secret(path), ERR_INPUT, "expected mode 0600");
    }
}
