#include "base/memory.h"

#include "base/err.h"
#include "base/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The text of a system file, which the caller frees; NULL if it cannot be read. */
static char *text_of(const char *root, const char *path, const char *name)
{
    char full[4096], *text = NULL;
    size_t size = 0;
    int n = snprintf(full, sizeof full, "%s%s%s", root, path, name);
    if (n < 0 || (size_t)n >= sizeof full || !file_exists(full)) return NULL;
    return err_is(file_read_all(&text, &size, full, 1 << 20)) ? NULL : text;
}

/* The number behind `key` at the start of a line, or `missing`. */
static uint64_t value_of(const char *text, const char *key, uint64_t missing)
{
    size_t length = strlen(key);
    for (const char *line = text; line && *line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (!strncmp(line, key, length)) return strtoull(line + length, NULL, 10);
    }
    return missing;
}

static uint64_t read_number(const char *root, const char *path, const char *name)
{
    char *text = text_of(root, path, name), *end = text;
    uint64_t n = text ? strtoull(text, &end, 10) : UINT64_MAX;
    if (end == text) n = UINT64_MAX; /* "max", or no file */
    free(text);
    return n;
}

struct group_files { /* one version of control groups */
    const char *folder, *limit, *used, *inactive, *active;
};
static const struct group_files versions[] = {
    {"/sys/fs/cgroup", "/memory.max", "/memory.current", "inactive_file ", "active_file "},
    {"/sys/fs/cgroup/memory", "/memory.limit_in_bytes", "/memory.usage_in_bytes",
     "total_inactive_file ", "total_active_file "},
};

static uint64_t group_available(const char *root, const char *path, const struct group_files *v)
{
    uint64_t limit = read_number(root, path, v->limit), used = read_number(root, path, v->used);
    if (limit == UINT64_MAX || used == UINT64_MAX) return UINT64_MAX;
    char *stat = text_of(root, path, "/memory.stat");
    uint64_t cache = value_of(stat, v->inactive, 0) + value_of(stat, v->active, 0);
    free(stat);
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

/* A group is also bound by the limits of the groups above it. In a container the named group is
 * often not visible, but the top folder has its limit. */
static uint64_t groups_available(const char *root, const char *group, const struct group_files *v)
{
    char path[2048];
    uint64_t least = UINT64_MAX;
    int n = snprintf(path, sizeof path, "%s%s", v->folder, group);
    if (n < 0 || (size_t)n >= sizeof path) return UINT64_MAX;
    for (;;) {
        uint64_t here = group_available(root, path, v);
        if (here < least) least = here;
        char *slash = strrchr(path, '/');
        if (!slash || strlen(path) <= strlen(v->folder)) return least;
        *slash = 0;
    }
}

uint64_t memory_available_under(const char *root)
{
    char *info = text_of(root, "/proc/meminfo", ""),
         *groups = text_of(root, "/proc/self/cgroup", "");
    uint64_t kib = value_of(info, "MemAvailable:", UINT64_MAX);
    uint64_t least = kib == UINT64_MAX ? UINT64_MAX : kib * 1024;
    /* A line is "0::/group" for version 2 and "4:memory:/group" for version 1. */
    for (char *line = groups, *next; line && *line; line = next) {
        next = strchr(line, '\n');
        if (next) *next++ = 0;
        char *controllers = strchr(line, ':'),
             *group = controllers ? strchr(controllers + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        const struct group_files *v = NULL;
        if (!controllers[1]) v = &versions[0];
        if (!strcmp(controllers + 1, "memory")) v = &versions[1];
        uint64_t here = v ? groups_available(root, group, v) : UINT64_MAX;
        if (here < least) least = here;
    }
    free(info);
    free(groups);
    return least;
}

uint64_t memory_available(void)
{
    return memory_available_under("");
}
