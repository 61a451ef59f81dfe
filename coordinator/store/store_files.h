/* The files of a store that its rows name, and the lock that keeps them while a backup copies them.
 * Files are given up by a running service at any time; a backup needs those of one moment. */
#ifndef COORDINATOR_STORE_FILES_H
#define COORDINATOR_STORE_FILES_H

#include "base/lock.h"
#include "coordinator/store/store.h"

struct store_file {
    struct store_blob blob;
    enum {
        STORE_FILE_UPDATE,
        STORE_FILE_STATE, /* the newest of its run */
        STORE_FILE_FROZEN,
        STORE_FILE_MEMORY,
        STORE_FILE_EARLIER, /* a state of an earlier round */
        STORE_FILE_NOISY,
        STORE_FILE_PIN,
    } kind;
    int64_t run;               /* 0: of no run */
    const char *name, *member; /* of the run; of an update, else "" */
    uint32_t round;            /* in which an update counts, or that published the state */
};
/* "the update of north for round 7 of run r", for messages. */
void store_file_text(char *out, size_t bytes, const struct store_file *file);
/* Calls `each` for every file that a row names; a file that several rows name comes several times.
 * Ends with the first error of `each`, which must not change the database. */
err store_files(struct db *db, err (*each)(const struct store_file *file, void *context),
                void *context);

/* False: the file does not exist, or has another size than its row says. */
err store_file_there(bool *out, const char *dir, const struct store_blob *blob);
/* Drops the rows of files that are lost and that a run can do without: updates, states of earlier
 * rounds, an operator's uploads. `say` gets the path of each, and a sentence. Before any other
 * thread uses DATA. */
err store_forget_lost(struct store *store,
                      void (*say)(const char *path, const char *text, void *context),
                      void *context);

/* Makes the file of the lock, so that the next two find it. At the start of a service. */
err store_files_begin(const char *dir);
/* *free: no backup is being made, and none begins before lock_close(). */
err store_files_free(bool *free, struct lock *out, const char *dir);
/* For a backup: no file is removed before lock_close(). ERR_LIMIT: another backup is being made. */
err store_files_keep(struct lock *out, const char *dir);

#endif
