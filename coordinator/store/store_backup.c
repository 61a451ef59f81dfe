/* The list of backups, which another process adds to while the service runs. */
#include "coordinator/store/store.h"

#include <string.h>

enum { BACKUPS_KEPT = 100 };

err store_backup_add(struct store *store, const struct store_backup *b)
{
    TRY(db_begin(&store->db));
    err e =
        db_run(&store->db, "INSERT INTO backups(made_ms,path,files,bytes,wrong) VALUES(?,?,?,?,?)",
               "itiii", (int64_t)b->made_ms, b->path, (int64_t)b->files, (int64_t)b->bytes,
               (int64_t)b->wrong);
    if (!err_is(e))
        e = db_run(&store->db, "DELETE FROM backups WHERE id<=(SELECT max(id) FROM backups)-?", "i",
                   (int64_t)BACKUPS_KEPT);
    return db_end(&store->db, e);
}

err store_backup_last(bool *found, struct store_backup *out, struct store *store,
                      struct arena *arena)
{
    struct db_query q = {0};
    TRY(db_query_open(&q, &store->db,
                      "SELECT id,made_ms,path,files,bytes,wrong FROM backups ORDER BY id DESC"
                      " LIMIT 1",
                      ""));
    err e = db_query_next(found, &q);
    if (!err_is(e) && *found) {
        *out = (struct store_backup){.id = db_query_int(&q, 0),
                                     .made_ms = (uint64_t)db_query_int(&q, 1),
                                     .files = (uint64_t)db_query_int(&q, 3),
                                     .bytes = (uint64_t)db_query_int(&q, 4),
                                     .wrong = (uint64_t)db_query_int(&q, 5)};
        e = db_query_copy(&out->path, &q, 2, arena);
    }
    db_query_close(&q);
    return e;
}
