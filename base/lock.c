#include "base/lock.h"

#include "base/file.h"
#include "base/limits.h"
#include "base/stop.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>

/* flock() belongs to the open file, so the lock ends with the process in any case. The file itself
 * stays, because removing it would let two processes lock two different files of one name. */
err lock_try(struct lock *out, const char *dir, bool wait)
{
    char path[LIMIT_PATH_BYTES];
    int failed;
    TRY(file_join(path, sizeof path, dir, "lock"));
    int fd = file_disk.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return err_sys(errno, "%s", path);
    do
        failed = flock(fd, LOCK_EX | (wait ? 0 : LOCK_NB));
    while (failed && errno == EINTR && !stop_asked);
    if (!failed) {
        out->fd = fd;
        return ERR_NONE;
    }
    int why = errno;
    file_disk.close(fd);
    if (why == EWOULDBLOCK) return ERR_NONE;
    return why == EINTR ? stop_check() : err_sys(why, "%s", path);
}

err lock_open(struct lock *out, const char *dir)
{
    TRY(lock_try(out, dir, false));
    if (out->fd > 0) return ERR_NONE;
    return err_make(ERR_MACHINE, "%s: another process uses this folder", dir);
}

/* Closing the file releases the lock. */
void lock_close(struct lock *lock)
{
    if (lock->fd > 0) file_disk.close(lock->fd);
    lock->fd = 0;
}

/* A line of /proc/locks: "1: FLOCK  ADVISORY  WRITE 1234 08:01:5678 0 EOF". Waiting processes have
 * "->" after the number. */
int lock_holder(const char *dir)
{
    char path[LIMIT_PATH_BYTES], line[256];
    struct stat st;
    int holder = 0;
    if (err_is(file_join(path, sizeof path, dir, "lock")) || stat(path, &st) != 0) return 0;
    FILE *locks = fopen("/proc/locks", "re");
    while (locks && !holder && fgets(line, sizeof line, locks)) {
        unsigned major_is, minor_is;
        unsigned long long inode;
        int pid;
        if (sscanf(line, "%*d: FLOCK %*s WRITE %d %x:%x:%llu", &pid, &major_is, &minor_is,
                   &inode) == 4 &&
            inode == st.st_ino && major_is == major(st.st_dev) && minor_is == minor(st.st_dev))
            holder = pid;
    }
    if (locks) fclose(locks);
    return holder > 0 ? holder : 0;
}
