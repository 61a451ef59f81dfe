#include "coordinator/store/store_files.h"

#include "base/file.h"
#include "base/text.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

enum { KEEP_WAIT_MS = 60 * 1000, KEEP_STEP_US = 20 * 1000 };

/* As in store_blob_known(). The columns are those of struct store_file, in its order. */
static const char *const tables[] = {
    [STORE_FILE_UPDATE] = "SELECT digest,size,run,r.name,member,counted_in FROM updates"
                          " JOIN runs r ON r.id=run",
    [STORE_FILE_STATE] = "SELECT state,state_size,id,name,'',published FROM runs"
                         " WHERE state IS NOT NULL",
    [STORE_FILE_FROZEN] = "SELECT frozen,frozen_size,id,name,'',published FROM runs"
                          " WHERE frozen IS NOT NULL",
    [STORE_FILE_MEMORY] = "SELECT memory,memory_size,id,name,'',published FROM runs"
                          " WHERE memory IS NOT NULL",
    [STORE_FILE_EARLIER] = "SELECT o.state,o.state_size,o.run,r.name,'',o.round FROM rounds o"
                           " JOIN runs r ON r.id=o.run WHERE o.gone=0 AND o.round<r.published",
    [STORE_FILE_NOISY] = "SELECT noisy,noisy_size,run,r.name,'',round FROM private_rounds"
                         " JOIN runs r ON r.id=run WHERE noisy IS NOT NULL",
    [STORE_FILE_PIN] = "SELECT digest,size,0,'','',0 FROM pins",
};
enum { TABLES = sizeof tables / sizeof *tables };

void store_file_text(char *out, size_t bytes, const struct store_file *f)
{
    static const char *const words[TABLES] = {
        [STORE_FILE_STATE] = "the state",
        [STORE_FILE_FROZEN] = "the frozen factors",
        [STORE_FILE_MEMORY] = "the memory of the server's optimizer",
        [STORE_FILE_EARLIER] = "the state",
        [STORE_FILE_NOISY] = "the noisy mean",
    };
    if (f->kind == STORE_FILE_PIN)
        snprintf(out, bytes, "a file that an operator has uploaded");
    else if (f->kind == STORE_FILE_UPDATE)
        snprintf(out, bytes, "the update of %s for round %u of run %s", f->member, f->round,
                 f->name);
    else
        snprintf(out, bytes, "%s of round %u of run %s", words[f->kind], f->round, f->name);
}

/* Texts of a row live until the next one, so `each` copies those that it keeps. */
static err files_of(struct db *db, int table,
                    err (*each)(const struct store_file *file, void *context), void *context)
{
    struct db_query q = {0};
    bool row = true;
    TRY(db_query_open(&q, db, tables[table], ""));
    err e = ERR_NONE;
    while (!err_is(e) && row) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        struct store_file f = {.kind = table,
                               .run = db_query_int(&q, 2),
                               .name = db_query_text(&q, 3),
                               .member = db_query_text(&q, 4),
                               .round = (uint32_t)db_query_int(&q, 5)};
        f.blob.size = (uint64_t)db_query_int(&q, 1);
        if (db_query_digest(&f.blob.digest, &q, 0)) e = each(&f, context);
    }
    db_query_close(&q);
    return e;
}

err store_files(struct db *db, err (*each)(const struct store_file *file, void *context),
                void *context)
{
    for (int i = 0; i < TABLES; i++)
        TRY(files_of(db, i, each, context));
    return ERR_NONE;
}

/* The lock is in a folder of its own, because that of DATA is held by the service. */
static err lock_folder(char out[LIMIT_PATH_BYTES], const char *dir)
{
    return file_join(out, LIMIT_PATH_BYTES, dir, "backup");
}

err store_files_begin(const char *dir)
{
    char folder[LIMIT_PATH_BYTES];
    struct lock lock = {0};
    TRY(lock_folder(folder, dir));
    TRY(file_make_dirs(folder));
    err e = lock_try(&lock, folder, /*wait*/ false);
    lock_close(&lock);
    return e;
}

/* Without the file no backup has been made yet. It is not made here, because that fails on a full
 * disk, and files are removed to make room. */
err store_files_free(bool *free, struct lock *out, const char *dir)
{
    char folder[LIMIT_PATH_BYTES], path[LIMIT_PATH_BYTES];
    TRY(lock_folder(folder, dir));
    TRY(file_join(path, sizeof path, folder, "lock"));
    *free = !file_exists(path);
    if (*free) return ERR_NONE;
    TRY(lock_try(out, folder, /*wait*/ false));
    *free = out->fd > 0;
    return ERR_NONE;
}

/* A backup by root must not leave a folder or a lock that the service, as another user, cannot
 * open. A failure shows when the service opens them. */
static void give_to_owner(const char *dir, const char *folder)
{
    char path[LIMIT_PATH_BYTES];
    struct stat st;
    if (geteuid() != 0 || stat(dir, &st) != 0 ||
        err_is(file_join(path, sizeof path, folder, "lock")))
        return;
    int failed = lchown(folder, st.st_uid, st.st_gid) | lchown(path, st.st_uid, st.st_gid);
    (void)failed;
}

/* A service holds the lock for moments only, so a longer wait is for another backup. */
err store_files_keep(struct lock *out, const char *dir)
{
    char folder[LIMIT_PATH_BYTES];
    uint64_t until = text_now_ms() + KEEP_WAIT_MS;
    TRY(lock_folder(folder, dir));
    TRY(file_make_dirs(folder));
    for (;;) {
        TRY(lock_try(out, folder, /*wait*/ false));
        give_to_owner(dir, folder);
        if (out->fd > 0) return ERR_NONE;
        if (text_now_ms() > until)
            return err_make(ERR_LIMIT, "%s: another backup of this store is being made", dir);
        usleep(KEEP_STEP_US);
    }
}
