/* Finished payloads as files named by their digest, under DATA/blobs: states, updates, frozen
 * factors. A file that has its name is whole and flushed; nothing is ever changed in place. Any
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
/* The file at `part` (of this file system, flushed or not) becomes the blob: flush, rename, flush
 * the folder. One that is there already is kept and the part removed. */
err blob_adopt(const char *data_dir, const char *part, const struct digest *digest);
err blob_size(uint64_t *out, const char *data_dir,
              const struct digest *digest);                         /* ERR_STATE: gone */
err blob_remove(const char *data_dir, const struct digest *digest); /* absent is fine */

struct blob_sweep {
    const char *data_dir;
    err (*is_used)(bool *used, const struct digest *digest, void *context);
    void *context;
};
/* Removes every file under DATA/blobs that is not a blob in use. */
err blob_sweep(size_t *removed, const struct blob_sweep *sweep);

#endif
