/* Uploads under way: DATA/spool/OWNER.DIGEST, resumable at any byte, across restarts too. What is
 * here is not durable and not believed: when the last byte is in, the whole file's digest is
 * checked before it becomes a blob. One upload an owner (a member in a run): a new one replaces the
 * old. Loop thread. */
#ifndef COORDINATOR_SPOOL_H
#define COORDINATOR_SPOOL_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

struct spool_key {
    struct digest digest; /* of the whole upload */
    uint64_t size;
    const char *run, *owner; /* run "" for an operator's blobs */
};

struct spool {
    int fd; /* -1 or, in a zeroed struct, 0: closed */
    uint64_t size, received;
    bool resumed; /* some of it came before this opening */
    char path[LIMIT_PATH_BYTES];
};

/* Where the part lies; the file need not exist. */
void spool_path(char out[LIMIT_PATH_BYTES], const char *data_dir, const struct spool_key *key);
/* How much of this upload is here. */
uint64_t spool_received(const char *data_dir, const struct spool_key *key);
/* Goes on from `offset`, which must not be past what is here; what is past it is dropped. ERR_LIMIT
 * when the disk would have less than `reserve` bytes left. */
err spool_open(struct spool *out, const char *data_dir, const struct spool_key *key,
               uint64_t offset, uint64_t reserve);
/* All of it or, on an error, none of it. ERR_INPUT past the size stated. */
err spool_append(struct spool *s, const void *data, size_t size);
void spool_close(struct spool *s); /* the part stays */
/* Removes what cannot be resumed: parts older than age_ms, and half-made states. */
err spool_sweep(size_t *removed, const char *data_dir, uint64_t age_ms);

#endif
