#include "base/lock.h"

#include "base/file.h"
#include "base/limits.h"
#include "base/stop.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>

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
