/* At the start: rows whose files are lost. Files that a run cannot do without are the run's to
 * miss (run_check_files()). */
#include "coordinator/store/store_files.h"

#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <errno.h>

/* Other errors than ENOENT, for example of a network file system, say nothing about the file. */
err store_file_there(bool *out, const char *dir, const struct store_blob *blob)
{
    struct stat st;
    struct blob_path path = blob_path(dir, &blob->digest);
    if (stat(path.text, &st) == 0)
        *out = (uint64_t)st.st_size == blob->size;
    else if (errno == ENOENT)
        *out = false;
    else
        return err_sys(errno, "%s", path.text);
    return ERR_NONE;
}

struct lost_list {
    const char *dir;
    struct arena arena;
    struct lost {
        struct lost *next;
        struct store_file file;
    } * first;
};

/* Rows are changed after the list is read, because a statement that reads them must not see its own
 * changes. */
static err find_lost(const struct store_file *file, void *context)
{
    struct lost_list *list = context;
    struct lost *lost = NULL;
    bool there = true;
    TRY(store_file_there(&there, list->dir, &file->blob));
    if (there) return ERR_NONE;
    TRY(arena_take(&lost, &list->arena, 1, sizeof *lost));
    lost->file = *file;
    TRY(arena_text(&lost->file.name, &list->arena, file->name, strlen(file->name)));
    TRY(arena_text(&lost->file.member, &list->arena, file->member, strlen(file->member)));
    lost->next = list->first;
    list->first = lost;
    return ERR_NONE;
}

/* Updates that count in the round under way are asked for again. Those of a published round are in
 * its state already, and their members have nothing to send. */
static err forget_update(const char **did, struct store *store, const struct store_file *f)
{
    const struct store_update u = {
        .run = f->run, .member = f->member, .counted_in = f->round, .blob = f->blob};
    int64_t published = 0;
    TRY(db_number(&published, &store->db, "SELECT published FROM runs WHERE id=?", "i", f->run));
    *did = f->round > published ? "its member is asked to send it again"
                                : "its round is published, so it is not needed";
    if (f->round > published) return store_forget_update(store, &u);
    return db_run(&store->db, "DELETE FROM updates WHERE run=? AND counted_in=? AND member=?",
                  "iit", f->run, (int64_t)f->round, f->member);
}

/* *did: NULL if nothing was changed. */
static err forget_row(const char **did, struct store *store, const struct store_file *f)
{
    struct db *db = &store->db;
    *did = NULL;
    switch (f->kind) {
    case STORE_FILE_UPDATE:
        return forget_update(did, store, f);
    case STORE_FILE_EARLIER:
        *did = "members that still ask for this state get the newest one";
        return db_run(db, "UPDATE rounds SET gone=1 WHERE run=? AND round=?", "ii", f->run,
                      (int64_t)f->round);
    case STORE_FILE_PIN:
        *did = "the operator has to upload it again";
        return db_run(db, "DELETE FROM pins WHERE digest=?", "h", &f->blob.digest);
    default:
        return ERR_NONE;
    }
}

err store_forget_lost(struct store *store,
                      void (*say)(const char *path, const char *text, void *context), void *context)
{
    struct lost_list list = {.dir = store->dir};
    char what[256], text[512];
    err e = store_files(&store->db, find_lost, &list);
    for (struct lost *lost = list.first; lost && !err_is(e); lost = lost->next) {
        const char *did = NULL;
        e = forget_row(&did, store, &lost->file);
        if (err_is(e) || !did) continue;
        store_file_text(what, sizeof what, &lost->file);
        snprintf(text, sizeof text, "%s: %s", what, did);
        say(blob_path(store->dir, &lost->file.blob.digest).text, text, context);
    }
    arena_close(&list.arena);
    return e;
}
