/* Backups of a store: made while its service runs, checked, and restored.
 *
 *     DIR/manifest.json    the list of files with sizes and digests; written last
 *     DIR/files/DIGEST     their contents
 *
 * The manifest's rename is the moment at which a backup counts: after a crash before it, DIR is no
 * backup yet, or still the one before. The files are those of one snapshot of the database: the
 * database, the blobs that its rows name, and the audit log. Uploads under way are not in it,
 * because members send them again, and no private key is, because keys are kept outside of the
 * store. The database itself is a secret: it has the seed of secret draws. */
#ifndef COORDINATOR_BACKUP_H
#define COORDINATOR_BACKUP_H

#include "base/err.h"
#include "base/limits.h"
#include "coordinator/store/store.h"

#include <stddef.h>
#include <stdint.h>

/* A line for the operator about one file that is missing or damaged. */
struct backup_notes {
    void (*say)(const char *text, void *context);
    void *context;
};

struct backup_options {
    const char *data, *to; /* the store, and the folder of the backup */
    const char *federation;
    bool incremental; /* `to` has a backup already; files in it are not copied again */
    bool copy;        /* never make hard links, also on the same file system */
};
struct backup_result {
    size_t files;                /* of the backup */
    size_t copied, linked, kept; /* made now, of those; or in `to` before */
    size_t wrong;                /* missing or damaged in the store, or in the backup */
    uint64_t bytes, copied_bytes, took_ms;
};
/* Files that the store itself has lost are noted, listed in the manifest and counted in `wrong`. */
err backup_make(struct backup_result *out, const struct backup_options *options,
                const struct backup_notes *notes);
/* Reads all of it: the manifest, every file, the database with its indexes, and whether each file
 * that a row names is there. Needs no right to write. ERR_INPUT: it is no backup. */
err backup_verify(struct backup_result *out, const char *dir, const struct backup_notes *notes);
/* The same for a store, beside its service. */
err backup_verify_store(struct backup_result *out, const struct store_place *place,
                        const struct backup_notes *notes);

struct backup_restore {
    const char *from, *to; /* `to` must not exist, or be empty */
    bool accept; /* members accept this copy from now on (store_epoch_accept()); else those that
                    have seen a later start of the original refuse it until the operator says so */
};
/* `to` appears, complete, with one rename. The file BACKUP_NOTE in it says where it comes from,
 * until a service has written that to its audit log. */
#define BACKUP_NOTE "restored"
err backup_restore(struct backup_result *out, const struct backup_restore *options,
                   const struct backup_notes *notes);

#endif
