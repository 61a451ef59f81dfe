/* Keeps a second coordinator out of a data folder: a lock on DATA/lock, held while the process
 * lives. The kernel drops it when the process dies, so a crash leaves nothing to clean up. */
#ifndef COORDINATOR_LOCK_H
#define COORDINATOR_LOCK_H

#include "base/err.h"

struct lock {
    int fd; /* 0 in a zeroed struct: nothing held */
};
err lock_open(struct lock *out, const char *data_dir); /* ERR_MACHINE: another process has it */
void lock_close(struct lock *lock);

#endif
