/* Aggregation on a disk whose n-th call fails, for every n: it returns an error, the state is
 * absent or whole, and a second try writes the same bytes as an undisturbed one. */
#include "agg/combine/combine.h"
#include "agg/round/method.h"
#include "base/digest.h"
#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static struct file_disk real;
static int calls, fail_at;
static char dir[SUPPORT_PATH_BYTES];

static bool failing(void)
{
    if (++calls != fail_at) return false;
    errno = ENOSPC;
    return true;
}

static int bad_open(const char *p, int flags, mode_t mode)
{
    return failing() ? -1 : real.open(p, flags, mode);
}

static ssize_t bad_write(int fd, const void *data, size_t size)
{
    if (failing()) return -1;
    return real.write(fd, data, size > 4096 ? 4096 : size); /* short writes are legal */
}

static int bad_fsync(int fd)
{
    return failing() ? -1 : real.fsync(fd);
}

static int bad_rename(const char *a, const char *b)
{
    return failing() ? -1 : real.rename(a, b);
}

static void begin(void)
{
    real = file_disk;
    support_dir_make(dir);
}

static void end(void)
{
    file_disk = real;
    support_dir_remove(dir);
}
TestSuite(aggregate, .init = begin, .fini = end);

static void disk_fails_at(int n)
{
    calls = 0;
    fail_at = n;
    file_disk.open = n ? bad_open : real.open;
    file_disk.write = n ? bad_write : real.write;
    file_disk.fsync = n ? bad_fsync : real.fsync;
    file_disk.rename = n ? bad_rename : real.rename;
}

static const char *at(const char *name)
{
    enum { NAMES = 16 }; /* each name has its own place, so paths stay valid */
    static char path[NAMES][SUPPORT_PATH_BYTES + 64];
    char want[sizeof path[0]];
    int i = 0;
    snprintf(want, sizeof want, "%s/%s", dir, name);
    while (path[i][0] && strcmp(path[i], want) != 0)
        i++;
    memcpy(path[i], want, sizeof want);
    return path[i];
}

static const char base[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
static const struct method_module modules[] = {{"q", 12, 20}, {"v", 8, 20}};
static float values[512];

static void write_update(const char *path, const char *member)
{
    struct adapter_file_module m[2] = {0};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE,
                                     .run = "r",
                                     .method = "flora",
                                     .base = base,
                                     .member = member,
                                     .round = 1,
                                     .rank = 4,
                                     .alpha = 4};
    for (int i = 0; i < 512; i++)
        values[i] = (float)((i * 37 + member[0]) % 101) / 50 - 1;
    for (int i = 0; i < 2; i++) {
        m[i] = (struct adapter_file_module){.name = modules[i].name, .rank = 4};
        m[i].factor[0] =
            (struct adapter_file_factor){.f32 = values, .rows = 4, .cols = modules[i].d_in};
        m[i].factor[1] =
            (struct adapter_file_factor){.f32 = values + 99, .rows = modules[i].d_out, .cols = 4};
    }
    ok(adapter_file_write(path, &meta, m, 2, true));
}

static struct digest digest_at(const char *path)
{
    struct digest d;
    ok(digest_of_file(&d, path));
    return d;
}

Test(aggregate, a_state_is_absent_or_whole_whatever_disk_call_fails)
{
    const struct method *m = method_find("flora");
    struct method_start start = {.run = "r",
                                 .base = base,
                                 .rank = 4,
                                 .alpha = 4,
                                 .module = modules,
                                 .module_count = 2,
                                 .threads = 1};
    struct contribution c[] = {{"a", 1, at("a")}, {"b", 2, at("b")}};
    struct method_next next = {
        .state_path = at("state1"), .contribution = c, .count = 2, .threads = 1};
    struct method_report report = {0};
    ok(method_start(m, next.state_path, &start));
    write_update(c[0].path, "a");
    write_update(c[1].path, "b");
    ok(method_next(&report, m, at("wanted"), &next));
    method_report_close(&report);
    struct digest wanted = digest_at(at("wanted"));
    int failures = 0;
    for (int n = 1;; n++) {
        unlink(at("state2"));
        disk_fails_at(n);
        err e = method_next(&report, m, at("state2"), &next);
        disk_fails_at(0);
        method_report_close(&report);
        if (file_exists(at("state2"))) {
            struct digest got = digest_at(at("state2"));
            cr_expect(digest_equal(&got, &wanted), "call %d: another state", n);
        } else {
            cr_expect_eq(e.kind, ERR_MACHINE, "call %d: no error, no state", n);
        }
        cr_expect_not(file_exists(at("state2.part")), "call %d: a part is left", n);
        cr_expect_not(file_exists(at("state2.scratch.part")), "call %d: scratch is left", n);
        failures += err_is(e);
        if (!err_is(e) && calls < n) break;
        cr_assert_lt(n, 1000);
    }
    cr_expect_gt(failures, 10, "only %d calls could fail", failures);
}

Test(aggregate, a_peft_directory_is_the_old_or_the_new_one_whatever_disk_call_fails)
{
    struct adapter_file_module m = {.name = "q", .rank = 2, .alpha = 2};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_PEFT};
    m.factor[0] = (struct adapter_file_factor){.f32 = values, .rows = 2, .cols = 20};
    m.factor[1] = (struct adapter_file_factor){.f32 = values, .rows = 12, .cols = 2};
    int failures = 0;
    for (int n = 1;; n++) {
        struct adapter_file f = {0};
        m.alpha = 2;
        ok(adapter_file_write_peft(at("peft"), &meta, &m, 1, true));
        m.alpha = 6;
        disk_fails_at(n);
        err e = adapter_file_write_peft(at("peft"), &meta, &m, 1, true);
        disk_fails_at(0);
        ok(adapter_file_open(&f, at("peft")));
        if (!err_is(e)) cr_expect_eq(f.module[0].alpha, 6, "call %d", n);
        cr_expect(f.module[0].alpha == 2 || f.module[0].alpha == 6, "call %d", n);
        adapter_file_close(&f);
        failures += err_is(e);
        if (!err_is(e) && calls < n) break;
        cr_assert_lt(n, 1000);
    }
    cr_expect_gt(failures, 5);
}

Test(aggregate, adapters_combine_into_the_old_or_the_new_directory_whatever_disk_call_fails)
{
    const char *const from[] = {at("one"), at("two")};
    struct adapter_file_module m = {.name = "q", .rank = 2, .alpha = 2};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_PEFT};
    struct combine_options o = {.method = method_find("flora"),
                                .path = from,
                                .count = 2,
                                .scratch = at("merged"),
                                .threads = 1};
    int failures = 0;
    for (int i = 0; i < 512; i++)
        values[i] = (float)(i % 7) - 3;
    m.factor[0] = (struct adapter_file_factor){.f32 = values, .rows = 2, .cols = 20};
    m.factor[1] = (struct adapter_file_factor){.f32 = values + 50, .rows = 12, .cols = 2};
    for (int i = 0; i < 2; i++)
        ok(adapter_file_write_peft(from[i], &meta, &m, 1, true));
    for (int n = 1;; n++) {
        struct combine c = {0};
        struct adapter_file f = {0};
        m.alpha = 6;
        ok(adapter_file_write_peft(at("merged"), &meta, &m, 1, true));
        disk_fails_at(n);
        err e = combine_open(&c, &o);
        if (!err_is(e)) e = combine_write(&c, at("merged"), true);
        combine_close(&c);
        disk_fails_at(0);
        ok(adapter_file_open(&f, at("merged")));
        bool old = f.module[0].alpha == 6;
        cr_expect(err_is(e) || !old, "call %d: no error and the old directory", n);
        adapter_file_close(&f);
        cr_expect_not(file_exists(at("merged.scratch.part")), "call %d: scratch is left", n);
        failures += err_is(e);
        if (!err_is(e) && calls < n) break;
        cr_assert_lt(n, 1000);
    }
    cr_expect_gt(failures, 5);
}
