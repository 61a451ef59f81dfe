#include "coordinator/store/lock.h"

#include "base/file.h"
#include "base/limits.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>

/* flock() belongs to the open file, so the lock ends with the process in any case. LOCK_NB, because
 * a second coordinator must fail at once instead of waiting. The file itself stays, because
 * removing it would let two processes lock two different files of one name. */
err lock_open(struct lock *out, const char *data_dir)
{
    char path[LIMIT_PATH_BYTES];
    TRY(file_join(path, sizeof path, data_dir, "lock"));
    int fd = file_disk.open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (fd < 0) return err_sys(errno, "%s", path);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
        int why = errno;
        file_disk.close(fd);
        if (why == EWOULDBLOCK)
            return err_make(ERR_MACHINE, "%s: another process uses this folder", data_dir);
        return err_sys(why, "%s", path);
    }
    out->fd = fd;
    return ERR_NONE;
}

/* Closing the file releases the lock. */
void lock_close(struct lock *lock)
{
    if (lock->fd > 0) file_disk.close(lock->fd);
    lock->fd = 0;
}
