/* Finished payloads (states, updates, frozen factors) as files named by their digest, under
 * DATA/blobs. A file that has its final name is complete and flushed, and is never changed. Any
 * thread. */
#ifndef COORDINATOR_BLOB_H
#define COORDINATOR_BLOB_H

#include "base/digest.h"
#include "base/err.h"
#include "base/limits.h"

struct blob_path {
    char text[LIMIT_PATH_BYTES];
};
/* DATA is at most LIMIT_PATH_BYTES - 128 bytes, which store_open() has checked. */
struct blob_path blob_path(const char *data_dir, const struct digest *digest);
/* Makes the file at `part` the blob, durably: flush the file, rename it, flush the folder. `part`
 * must be on the same file system; it need not be flushed. A blob that exists already is replaced,
 * because its file may have been damaged since. */
err blob_adopt(const char *data_dir, const char *part, const struct digest *digest);
/* ERR_STATE: the blob does not exist (any more). */
err blob_size(uint64_t *out, const char *data_dir, const struct digest *digest);
/* A blob that does not exist is no error. */
err blob_remove(const char *data_dir, const struct digest *digest);

enum blob_fate {
    BLOB_USED,    /* a row names it */
    BLOB_DOOMED,  /* it was given up */
    BLOB_UNKNOWN, /* of a crash before its row, or of another database */
};
struct blob_sweep {
    const char *data_dir;
    err (*fate)(enum blob_fate *out, const struct digest *digest, void *context);
    void *context;
    size_t removed, lost; /* out: numbers of files */
};
/* Removes the blobs under DATA/blobs that were given up, and moves other files that are not in use
 * to DATA/lost: if the database is not the one that belongs to the blobs, they must survive. */
err blob_sweep(struct blob_sweep *sweep);
/* The blob exists and has its digest. Reads all of it. */
err blob_intact(bool *out, const char *data_dir, const struct digest *digest);
/* ERR_INPUT: it is not intact. `what` says what it is for. */
err blob_check(const char *data_dir, const struct digest *digest, const char *what);
/* Moves a blob to DATA/lost. One that does not exist is no error. */
err blob_lose(const char *data_dir, const struct digest *digest);
/* DATA/blobs has a file. */
err blob_any(bool *out, const char *data_dir);

#endif
