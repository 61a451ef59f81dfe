/* One coordinator a data folder: DATA/lock, held while the process lives. */
#ifndef COORDINATOR_LOCK_H
#define COORDINATOR_LOCK_H

#include "base/err.h"

struct lock {
    int fd; /* 0 in a zeroed struct: nothing held */
};
err lock_open(struct lock *out, const char *data_dir); /* ERR_MACHINE: another process has it */
void lock_close(struct lock *lock);

#endif
