#include "coordinator/store/store_retain.h"
#include "coordinator/store/store_rows.h"

#include "base/text.h"

#include <string.h>

/* The mark alone. Rows and files of a large run take thousands of steps, and an operator waits
 * for this answer. */
err store_archive(uint64_t *now_ms, struct store *store, int64_t run, const char *by)
{
    struct db *db = &store->db;
    uint64_t now = text_wall_ms();
    struct store_event event = {.event = "run.archived", .text = by};
    TRY(db_begin(db));
    err e = db_run(db, "UPDATE runs SET archived_ms=? WHERE id=?", "ii", (int64_t)now, run);
    if (!err_is(e)) e = store_rows_event(db, run, &event);
    e = db_end(db, e);
    if (!err_is(e)) *now_ms = now;
    return e;
}

/* Files that the row names are listed before it forgets them. The configuration is not needed by
 * anyone any more; its digest is in the lineage of each round. A name cannot have a space, so that
 * of the tombstone meets no other. */
err store_delete(struct store *store, int64_t run, const char *by)
{
    static const char *const given_up[] = {
        "INSERT INTO doomed SELECT state FROM runs WHERE id=? AND state IS NOT NULL"
        " ON CONFLICT DO NOTHING",
        "INSERT INTO doomed SELECT frozen FROM runs WHERE id=? AND frozen IS NOT NULL"
        " ON CONFLICT DO NOTHING",
        "INSERT INTO doomed SELECT memory FROM runs WHERE id=? AND memory IS NOT NULL"
        " ON CONFLICT DO NOTHING",
    };
    struct db *db = &store->db;
    TRY(db_begin(db));
    err e = ERR_NONE;
    for (size_t i = 0; i < sizeof given_up / sizeof *given_up && !err_is(e); i++)
        e = db_run(db, given_up[i], "i", run);
    if (!err_is(e))
        e = db_run(db,
                   "UPDATE runs SET deleted_ms=?, deleted_by=?, deleted_name=name,"
                   " name=name || ' (deleted ' || id || ')', config=?, modules=NULL, state=NULL,"
                   " state_size=NULL, frozen=NULL, frozen_size=NULL, memory=NULL, memory_size=NULL"
                   " WHERE id=?",
                   "itbi", (int64_t)text_wall_ms(), by, (const void *)"", (size_t)0, run);
    return db_end(db, e);
}

/* ---- steps ---- */

/* `some` selects at most STORE_RETAIN_ROWS rows of run ?1. `doom` may be NULL: they name no
 * files. */
static const struct kind {
    const char *any, *doom, *drop;
    bool deleted_only;
} kinds[] = {
#define SOME(columns_, table_, more_)                                                              \
    "(SELECT " columns_ " FROM " table_ " WHERE run=?1 " more_ " ORDER BY " columns_ " LIMIT 256)"
#define UPDATES "WHERE run=?1 AND (counted_in,member) IN " SOME("counted_in,member", "updates", "")
    {.any = "SELECT EXISTS(SELECT 1 FROM updates WHERE run=?1)",
     .doom = "INSERT INTO doomed SELECT digest FROM updates " UPDATES " ON CONFLICT DO NOTHING",
     .drop = "DELETE FROM updates " UPDATES},
#define KEPT                                                                                       \
    "AND gone=0 AND round<>(SELECT CASE WHEN deleted_ms>0 THEN -1 ELSE published END FROM runs"    \
    " WHERE id=?1)"
#define STATES "WHERE run=?1 AND round IN " SOME("round", "rounds", KEPT)
    {.any = "SELECT EXISTS(SELECT 1 FROM rounds WHERE run=?1 " KEPT ")",
     .doom = "INSERT INTO doomed SELECT state FROM rounds " STATES
             " AND state IS NOT NULL ON CONFLICT DO NOTHING",
     .drop = "UPDATE rounds SET gone=1 " STATES},
    {.any = "SELECT EXISTS(SELECT 1 FROM events WHERE run=?1)",
     .drop = "DELETE FROM events WHERE sequence IN " SOME("sequence", "events", ""),
     .deleted_only = true},
    {.any = "SELECT EXISTS(SELECT 1 FROM evaluations WHERE run=?1)",
     .drop = "DELETE FROM evaluations WHERE run=?1 AND (round,member) IN " SOME("round,member",
                                                                                "evaluations", ""),
     .deleted_only = true},
    {.any = "SELECT EXISTS(SELECT 1 FROM members WHERE run=?1)",
     .drop = "DELETE FROM members WHERE run=?1 AND id IN " SOME("id", "members", ""),
     .deleted_only = true},
};
enum { KINDS = sizeof kinds / sizeof *kinds, EVENTS_LOOKED_AT = 1024 };
_Static_assert(STORE_RETAIN_ROWS == 256, "the limit in the statements");

/* Files are listed in `doomed` in the transaction that forgets their rows: a crash finds both
 * or neither, and store_trim() removes them later. */
static err drop_some(bool *any, struct db *db, const struct kind *kind, int64_t run)
{
    int64_t found = 0;
    TRY(db_number(&found, db, kind->any, "i", run));
    *any = found != 0;
    if (!found) return ERR_NONE;
    TRY(db_begin(db));
    err e = kind->doom ? db_run(db, kind->doom, "i", run) : ERR_NONE;
    if (!err_is(e)) e = db_run(db, kind->drop, "i", run);
    return db_end(db, e);
}

/* The next run that is archived or deleted; 0: there is none. */
static err next_run(int64_t *run, bool *deleted, struct db *db, int64_t after)
{
    struct db_query q = {0};
    bool row = false;
    TRY(db_query_open(&q, db,
                      "SELECT id,deleted_ms FROM runs WHERE id>? AND (archived_ms>0 OR"
                      " deleted_ms>0) ORDER BY id LIMIT 1",
                      "i", after));
    err e = db_query_next(&row, &q);
    *run = row ? db_query_int(&q, 0) : 0;
    *deleted = row && db_query_int(&q, 1) > 0;
    db_query_close(&q);
    return e;
}

/* Events are in the order of time, but for steps of the clock. The place moves over rows that stay,
 * so that none is looked at twice in a sweep. */
static err drop_events(bool *done, struct db *db, struct store_retain *at)
{
    int64_t last = 0, oldest = 0;
    *done = true;
    if (!at->events_before_ms) return ERR_NONE;
    TRY(db_number(&last, db,
                  "SELECT coalesce(max(sequence),0) FROM (SELECT sequence FROM events"
                  " WHERE sequence>? ORDER BY sequence LIMIT ?) e",
                  "ii", at->sequence, (int64_t)EVENTS_LOOKED_AT));
    if (!last) return ERR_NONE;
    TRY(db_number(&oldest, db, "SELECT min(wall_ms) FROM events WHERE sequence>? AND sequence<=?",
                  "ii", at->sequence, last));
    if ((uint64_t)oldest >= at->events_before_ms) return ERR_NONE;
    TRY(db_run(db,
               "DELETE FROM events WHERE sequence>? AND sequence<=? AND wall_ms<?"
               " AND " STORE_RETAIN_EVENTS,
               "iii", at->sequence, last, (int64_t)at->events_before_ms));
    at->sequence = last;
    *done = false;
    return ERR_NONE;
}

/* The kind stays until it finds nothing, so that each step is one transaction over rows of one
 * table. */
err store_retain_step(bool *done, struct store *store, struct store_retain *at)
{
    struct db *db = &store->db;
    int64_t run = 0;
    bool deleted = false, any = false;
    *done = false;
    TRY(next_run(&run, &deleted, db, at->run));
    if (!run) return drop_events(done, db, at);
    for (; at->kind < KINDS && !any; at->kind++) {
        const struct kind *kind = &kinds[at->kind];
        if (kind->deleted_only && !deleted) continue;
        TRY(drop_some(&any, db, kind, run));
        if (any) return ERR_NONE; /* the same kind again in the next step */
    }
    at->kind = 0;
    at->run = run;
    return ERR_NONE;
}

/* For the copy in store.archive, which must be made while the row still has its files. */
err store_retain_next(int64_t *run, const char **name, struct store *store, struct arena *arena)
{
    struct db_query q = {0};
    bool row = false;
    *name = NULL;
    TRY(db_query_open(&q, &store->db,
                      "SELECT id,name FROM runs r WHERE id>? AND archived_ms>0 AND deleted_ms=0"
                      " AND (EXISTS(SELECT 1 FROM updates WHERE run=r.id) OR EXISTS(SELECT 1 FROM"
                      " rounds WHERE run=r.id AND gone=0 AND round<>r.published)) ORDER BY id"
                      " LIMIT 1",
                      "i", *run));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) {
        *run = db_query_int(&q, 0);
        e = db_query_copy(name, &q, 1, arena);
    }
    db_query_close(&q);
    return e;
}

/* The digest of the last state comes from its round, because the row of the run has forgotten
 * it. */
err store_graves(struct store_grave **out, size_t *count, struct store *store, size_t most,
                 struct arena *arena)
{
    struct db_query q = {0};
    struct store_grave *grave = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&grave, arena, most, sizeof *grave));
    TRY(db_query_open(&q, &store->db,
                      "SELECT deleted_name,deleted_by,created_ms,deleted_ms,published,"
                      "(SELECT state FROM rounds WHERE run=r.id AND round=r.published)"
                      " FROM runs r WHERE deleted_ms>0 ORDER BY deleted_ms DESC, id DESC LIMIT ?",
                      "i", (int64_t)most));
    err e = ERR_NONE;
    while (n < most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        struct store_grave *g = &grave[n++];
        e = db_query_copy(&g->name, &q, 0, arena);
        if (!err_is(e)) e = db_query_copy(&g->by, &q, 1, arena);
        g->created_ms = (uint64_t)db_query_int(&q, 2);
        g->deleted_ms = (uint64_t)db_query_int(&q, 3);
        g->published = (uint32_t)db_query_int(&q, 4);
        (void)db_query_digest(&g->state, &q, 5);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = grave;
    *count = n;
    return ERR_NONE;
}
