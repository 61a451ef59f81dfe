/* A real small disk (tmpfs) that tests fill. It is mounted for the test's process and its children
 * only, so it goes with them. */
#ifndef TESTS_SUPPORT_SMALL_DISK_H
#define TESTS_SUPPORT_SMALL_DISK_H

#include <criterion/criterion.h>
#include <fcntl.h>
#include <sched.h>
#include <stdbool.h>
#include <stdio.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

/* Makes the folder. False: this user may not mount a disk. size: "size=64k". */
static inline bool small_disk_mount(const char *path, const char *size)
{
    char options[128];
    snprintf(options, sizeof options, "%.64s,mode=0700", size);
    cr_assert_eq(mkdir(path, 0700), 0);
    return unshare(CLONE_NEWNS) == 0 && mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount("none", path, "tmpfs", 0, options) == 0;
}

static inline void small_disk_resize(const char *path, const char *size)
{
    char options[128];
    snprintf(options, sizeof options, "%.64s,mode=0700", size);
    cr_assert_eq(mount("none", path, "tmpfs", MS_REMOUNT, options), 0);
}

static inline void small_disk_fill(const char *path)
{
    static const char zeros[4096];
    char junk[700];
    snprintf(junk, sizeof junk, "%s/junk", path);
    int fd = open(junk, O_WRONLY | O_CREAT, 0600);
    while (write(fd, zeros, sizeof zeros) > 0)
        continue;
    close(fd);
}

static inline void small_disk_free(const char *path)
{
    char junk[700];
    snprintf(junk, sizeof junk, "%s/junk", path);
    cr_assert_eq(unlink(junk), 0);
}

#endif
