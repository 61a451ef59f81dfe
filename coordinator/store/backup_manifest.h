/* The list of the files of a backup (backup.h), as JSON. */
#ifndef COORDINATOR_BACKUP_MANIFEST_H
#define COORDINATOR_BACKUP_MANIFEST_H

#include "coordinator/store/store.h"

enum { BACKUP_NAME_BYTES = 144 };
struct backup_file {
    /* "fedlora.db", "blobs/DIGEST" or "audit/NAME": its place in the store */
    char name[BACKUP_NAME_BYTES];
    struct store_blob blob;
    bool missing; /* the store had lost it, so the backup does not have it */
    bool linked;  /* made now, as a hard link; not written */
};
struct backup_manifest {
    int64_t store_version;
    uint64_t made_ms; /* wall clock */
    char software[80], federation[LIMIT_NAME_BYTES];
    struct backup_file *file; /* sorted by digest once written or read, each digest once */
    size_t files, room;
};
#define BACKUP_DATABASE "fedlora.db"

err backup_manifest_add(struct backup_manifest *m, const struct backup_file *file);
void backup_manifest_sort(struct backup_manifest *m);
/* NULL: it lists no file with this digest. After backup_manifest_sort(). */
const struct backup_file *backup_manifest_find(const struct backup_manifest *m,
                                               const struct digest *digest);
/* NULL: it lists no database. */
const struct backup_file *backup_manifest_database(const struct backup_manifest *m);
err backup_manifest_write(const struct backup_manifest *m, const char *dir);
/* ERR_INPUT: DIR has none, or one that this program would not have written. */
err backup_manifest_read(struct backup_manifest *out, const char *dir);
bool backup_manifest_exists(const char *dir);
void backup_manifest_close(struct backup_manifest *m);
/* The path of the content in a backup. */
err backup_manifest_path(char out[LIMIT_PATH_BYTES], const char *dir, const struct digest *digest);

#endif
