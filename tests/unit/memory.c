/* The available memory, from system files written by the test. */
#include "base/memory.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char root[SUPPORT_PATH_BYTES];

static void put(const char *path, const char *text)
{
    char full[SUPPORT_PATH_BYTES + 256];
    snprintf(full, sizeof full, "%s%s", root, path);
    char *slash = strrchr(full, '/');
    *slash = 0;
    ok(file_make_dirs(full));
    *slash = '/';
    ok(file_write(full, text, strlen(text), true));
}

static void open_root(void)
{
    support_dir_make(root);
}
static void close_root(void)
{
    support_dir_remove(root);
}

TestSuite(memory, .init = open_root, .fini = close_root);

Test(memory, is_unknown_without_system_files)
{
    cr_expect_eq(memory_available_under(root), UINT64_MAX);
}

Test(memory, is_what_the_kernel_calls_available)
{
    put("/proc/meminfo", "MemTotal: 900 kB\nMemFree: 1 kB\nMemAvailable:   500 kB\n");
    cr_expect_eq(memory_available_under(root), 500 * 1024);
}

Test(memory, is_bounded_by_the_control_groups_above)
{
    put("/proc/meminfo", "MemAvailable: 5000000 kB\n");
    put("/proc/self/cgroup", "0::/a/b\n");
    put("/sys/fs/cgroup/a/b/memory.max", "max\n");
    put("/sys/fs/cgroup/a/b/memory.current", "100\n");
    put("/sys/fs/cgroup/a/memory.max", "10000\n");
    put("/sys/fs/cgroup/a/memory.current", "9000\n");
    put("/sys/fs/cgroup/a/memory.stat", "anon 1\ninactive_file 500\nactive_file 300\n");
    cr_expect_eq(memory_available_under(root), 10000 - (9000 - 800));
}

Test(memory, is_bounded_by_the_group_of_a_container)
{
    put("/proc/meminfo", "MemAvailable: 5000000 kB\n");
    put("/proc/self/cgroup", "12:cpu:/x\n4:memory:/docker/123\n");
    put("/sys/fs/cgroup/memory/memory.limit_in_bytes", "7000\n");
    put("/sys/fs/cgroup/memory/memory.usage_in_bytes", "8000\n");
    cr_expect_eq(memory_available_under(root), 0);
    put("/sys/fs/cgroup/memory/memory.stat", "total_inactive_file 4000\ntotal_active_file 0\n");
    cr_expect_eq(memory_available_under(root), 3000);
}
