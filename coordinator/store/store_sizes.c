#include "coordinator/store/store_sizes.h"

#include "base/file.h"

static err sum(uint64_t *out, struct db *db, const char *sql)
{
    int64_t bytes = 0;
    TRY(db_number(&bytes, db, sql, ""));
    *out += bytes > 0 ? (uint64_t)bytes : 0;
    return ERR_NONE;
}

/* Only runs with a secret draw have rows in private_rounds. */
static err sum_all(struct store_sizes *out, struct db *db)
{
    struct store_sizes s = {0};
    TRY(sum(&s.states, db, "SELECT COALESCE(SUM(state_size),0) FROM rounds WHERE gone=0"));
    TRY(sum(&s.states, db,
            "SELECT COALESCE(SUM(COALESCE(frozen_size,0)+COALESCE(memory_size,0)),0) FROM runs"));
    TRY(sum(&s.updates, db,
            "SELECT COALESCE(SUM(size),0) FROM updates"
            " WHERE run NOT IN (SELECT run FROM private_rounds)"));
    *out = s;
    return ERR_NONE;
}

err store_sizes(struct store_sizes *out, const struct store_place *place)
{
    char log[LIMIT_PATH_BYTES];
    struct store store = {0};
    TRY(file_join(log, sizeof log, place->dir, "fedlora.db-wal"));
    TRY(store_open_beside(&store, place));
    err e = sum_all(out, &store.db);
    if (!err_is(e)) out->database = file_size(store.db.path) + file_size(log);
    store_close(&store);
    return e;
}
