/* Free space of the disk that holds the store. Uploads leave a reserve free, because publishing a
 * round and committing to the database need room. Any thread. */
#ifndef COORDINATOR_ROOM_H
#define COORDINATOR_ROOM_H

#include "base/err.h"

#include <stdint.h>

err room_left(uint64_t *bytes, const char *dir);
/* Is there room for `wanted` bytes with `reserve` left? ERR_LIMIT with ENOSPC if not, which tells a
 * peer to come back later. */
err room_check(const char *dir, uint64_t wanted, uint64_t reserve);

#endif
