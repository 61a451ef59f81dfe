/* Checks of a backup and of a live store. */
#include "base/file.h"
#include "base/text.h"
#include "coordinator/store/backup.h"
#include "coordinator/store/backup_manifest.h"
#include "coordinator/store/store_files.h"

#include <errno.h>
#include <stdio.h>
#include <sys/stat.h>

struct checking {
    const struct backup_notes *notes;
    struct backup_result *result;
    struct store *store;                    /* of a live store */
    const struct backup_manifest *manifest; /* of a backup */
};

static void wrong(struct checking *c, const char *what, const char *problem)
{
    char text[1024];
    snprintf(text, sizeof text, "%.500s: %.500s", what, problem);
    c->notes->say(text, c->notes->context);
    c->result->wrong++;
}

/* *problem: "" if the file has this content. Only an error of reading ends the check. */
static err compare(const char **problem, const char *path, const struct store_blob *blob)
{
    struct digest is;
    struct stat st;
    *problem = "missing";
    if (stat(path, &st) != 0) return errno == ENOENT ? ERR_NONE : err_sys(errno, "%s", path);
    *problem = "its size is another one than listed";
    if ((uint64_t)st.st_size != blob->size) return ERR_NONE;
    TRY(digest_of_file(&is, path));
    *problem = digest_equal(&is, &blob->digest) ? "" : "damaged: its content has another digest";
    return ERR_NONE;
}

static void count(struct checking *c, const struct store_blob *blob)
{
    c->result->files++;
    c->result->bytes += blob->size;
}

/* ---- backup */

/* A file that is listed as missing is found here, and was reported with the list. */
static err find_in_manifest(const struct store_file *file, void *context)
{
    struct checking *c = context;
    char what[256];
    if (backup_manifest_find(c->manifest, &file->blob.digest)) return ERR_NONE;
    store_file_text(what, sizeof what, file);
    wrong(c, what, "the database names it, but the backup does not list it");
    return ERR_NONE;
}

/* Only after its digest was found to be right, because SQLite reads a file that it trusts. */
static err check_database(struct checking *c, const char *path)
{
    char problem[DB_PROBLEM_BYTES];
    struct db db = {0};
    TRY(db_open_still(&db, path));
    err e = db_check(problem, &db);
    if (!err_is(e) && *problem)
        wrong(c, BACKUP_DATABASE, problem);
    else if (!err_is(e))
        e = store_files(&db, find_in_manifest, c);
    db_close(&db);
    return e;
}

static err check_files(struct checking *c, const char *dir, bool *database_good)
{
    char path[LIMIT_PATH_BYTES];
    const struct backup_manifest *m = c->manifest;
    for (size_t i = 0; i < m->files; i++) {
        const struct backup_file *f = &m->file[i];
        const char *problem = "missing: the store had lost it when the backup was made";
        TRY(backup_manifest_path(path, dir, &f->blob.digest));
        if (!f->missing) TRY(compare(&problem, path, &f->blob));
        count(c, &f->blob);
        if (*problem)
            wrong(c, f->name, problem);
        else if (f == backup_manifest_database(m))
            *database_good = true;
    }
    return ERR_NONE;
}

err backup_verify(struct backup_result *out, const char *dir, const struct backup_notes *notes)
{
    char path[LIMIT_PATH_BYTES];
    struct backup_manifest m = {0};
    struct backup_result result = {0};
    struct checking c = {.notes = notes, .result = &result, .manifest = &m};
    bool good = false;
    uint64_t began = text_now_ms();
    TRY(backup_manifest_read(&m, dir));
    err e = check_files(&c, dir, &good);
    if (!err_is(e) && good)
        e = backup_manifest_path(path, dir, &backup_manifest_database(&m)->blob.digest);
    if (!err_is(e) && good) e = check_database(&c, path);
    result.took_ms = text_now_ms() - began;
    if (!err_is(e)) *out = result;
    backup_manifest_close(&m);
    return e;
}

/* ---- store */

/* A file may be given up by the service between the reading of its row and its own, so what seems
 * wrong is looked up again. */
static err check_blob(const struct store_file *file, void *context)
{
    struct checking *c = context;
    char what[256];
    const char *problem;
    bool known = true;
    struct blob_path path = blob_path(c->store->dir, &file->blob.digest);
    TRY(compare(&problem, path.text, &file->blob));
    count(c, &file->blob);
    if (!*problem) return ERR_NONE;
    TRY(store_blob_known(&known, c->store, &file->blob.digest));
    if (!known) return ERR_NONE;
    char named[LIMIT_PATH_BYTES + 256];
    store_file_text(what, sizeof what, file);
    snprintf(named, sizeof named, "%.400s, %s", path.text, what);
    wrong(c, named, problem);
    return ERR_NONE;
}

/* The list is read by a connection of its own, so that the rows looked up again are the newest. */
err backup_verify_store(struct backup_result *out, const struct store_place *place,
                        const struct backup_notes *notes)
{
    char problem[DB_PROBLEM_BYTES];
    struct store store = {0}, list = {0};
    struct backup_result result = {0};
    struct checking c = {.notes = notes, .result = &result, .store = &store};
    uint64_t began = text_now_ms();
    err e = ERR_NONE;
    TRY_OUT(e, store_open_beside(&store, place));
    TRY_OUT(e, store_open_beside(&list, place));
    TRY_OUT(e, db_check(problem, &store.db));
    if (*problem) wrong(&c, store.db.path, problem);
    if (!*problem) TRY_OUT(e, store_files(&list.db, check_blob, &c));
    result.took_ms = text_now_ms() - began;
    *out = result;
out:
    store_close(&list);
    store_close(&store);
    return e;
}
