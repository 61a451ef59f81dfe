/* Uploads in progress: DATA/spool/OWNER.DIGEST, resumable at any byte, also after a restart. These
 * files are not durable and not trusted: the digest of the whole file is checked before it becomes
 * a blob. Each owner (a member in a run) has at most one upload; a new one replaces it. Loop
 * thread. */
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
    uint64_t reserve;     /* bytes that must stay free; 0: none */
    const char *data_dir; /* borrowed */
    bool resumed;         /* part of it was received before this opening */
    char path[LIMIT_PATH_BYTES];
};

/* Bytes of this upload received so far. */
uint64_t spool_received(const char *data_dir, const struct spool_key *key);
/* Continues the upload at `offset`, which must not be past the bytes received; bytes after it are
 * dropped. ERR_LIMIT if the disk would have less than `reserve` bytes left, now or after a later
 * append. */
err spool_open(struct spool *out, const char *data_dir, const struct spool_key *key,
               uint64_t offset, uint64_t reserve);
/* All of the data or, on an error, none of it. ERR_INPUT: more than the announced size. */
err spool_append(struct spool *s, const void *data, size_t size);
void spool_close(struct spool *s); /* the file stays */
/* Removes uploads to which nothing was added for age_ms. */
err spool_expire(size_t *removed, const char *data_dir, uint64_t age_ms);
/* The same at the start, when no worker exists; also removes files of states that were being
 * made. */
err spool_sweep(size_t *removed, const char *data_dir, uint64_t age_ms);

#endif
