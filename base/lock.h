/* Keeps a second process out of a folder: a lock on DIR/lock, held while the process lives. The
 * kernel drops it when the process dies, so a crash leaves nothing to clean up. */
#ifndef BASE_LOCK_H
#define BASE_LOCK_H

#include "base/err.h"

#include <stdbool.h>

struct lock {
    int fd; /* 0 in a zeroed struct: nothing held */
};
/* *out holds nothing if another process has the lock; with `wait`, that is waited for, until the
 * user interrupts (ERR_STOPPED). */
err lock_try(struct lock *out, const char *dir, bool wait);
err lock_open(struct lock *out, const char *dir); /* ERR_MACHINE: another process has it */
void lock_close(struct lock *lock);
/* The id of the process that has the lock. 0: none, or one that this process cannot see. */
int lock_holder(const char *dir);

#endif
