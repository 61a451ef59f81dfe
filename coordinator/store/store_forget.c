#include "coordinator/store/store.h"

/* A member's newest update is no longer known: made_for 0 is the round of no update. */
err store_forget_updates(struct store *store, int64_t run, uint32_t published)
{
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "DELETE FROM updates WHERE run=? AND counted_in>?", "ii", run,
                   (int64_t)published);
    if (!err_is(e))
        e = db_run(&store->db,
                   "UPDATE members SET made_for=0, counted_in=?2 WHERE run=?1 AND counted_in>?2",
                   "ii", run, (int64_t)published);
    return db_end(&store->db, e);
}

/* Between db_begin() and db_end(). */
static err delete_update(struct db *db, const struct store_update *u)
{
    TRY(db_run(db, "DELETE FROM updates WHERE run=? AND counted_in=? AND member=?", "iit", u->run,
               (int64_t)u->counted_in, u->member));
    return db_run(db,
                  "UPDATE members SET made_for=0, counted_in=0 WHERE run=? AND id=? AND digest=?",
                  "ith", u->run, u->member, &u->blob.digest);
}

/* The file goes when nothing names it any more. */
static err give_up(struct db *db, const struct store_update *u)
{
    TRY(db_run(db, "INSERT OR IGNORE INTO doomed VALUES(?)", "h", &u->blob.digest));
    return delete_update(db, u);
}

static err refuse(struct store *store, const struct store_refusal *refusal)
{
    const struct store_update *u = &refusal->update;
    struct store_event event = {.event = "update.refused",
                                .text = refusal->why,
                                .round = u->counted_in,
                                .member = u->member};
    TRY(give_up(&store->db, u));
    TRY(db_run(&store->db, "UPDATE members SET refused_in=?, refusal=? WHERE run=? AND id=?",
               "itit", (int64_t)u->counted_in, refusal->why, u->run, u->member));
    return store_event_add(store, u->run, &event);
}

err store_refuse_updates(struct store *store, const struct store_refusal *refusal, size_t count)
{
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = refuse(store, &refusal[i]);
    return db_end(&store->db, e);
}

static err find_update(struct store_update *out, bool *found, struct db *db)
{
    struct db_query q = {0};
    TRY(db_query_open(&q, db,
                      "SELECT digest FROM updates WHERE run=? AND counted_in=? AND member=?", "iit",
                      out->run, (int64_t)out->counted_in, out->member));
    err e = db_query_next(found, &q);
    if (!err_is(e) && *found) *found = db_query_digest(&out->blob.digest, &q, 0);
    db_query_close(&q);
    return e;
}

err store_excuse(struct store *store, int64_t run, uint32_t round, const char *member)
{
    struct store_update u = {.run = run, .counted_in = round, .member = member};
    struct store_event event = {.event = "update.dropped", .round = round, .member = member};
    bool found = false;
    TRY(db_begin(&store->db));
    err e = find_update(&u, &found, &store->db);
    if (!err_is(e) && found) e = give_up(&store->db, &u);
    if (!err_is(e))
        e = db_run(&store->db,
                   "UPDATE members SET refused_in=?1, excused_in=?1,"
                   " refusal='an operator dropped it' WHERE run=?2 AND id=?3",
                   "iit", (int64_t)round, run, member);
    if (!err_is(e)) e = store_event_add(store, run, &event);
    return db_end(&store->db, e);
}

err store_forgive(struct store *store, int64_t run, uint32_t round)
{
    return db_run(
        &store->db,
        "UPDATE members SET refused_in=0 WHERE run=?1 AND refused_in=?2 AND excused_in<>?2", "ii",
        run, (int64_t)round);
}

/* The rows go before the file: a crash in between leaves an update that is asked for again. A file
 * that cannot be moved is no error, because the rows are gone: it is found damaged again when the
 * member has sent its update, or moved by the next start. */
err store_forget_update(struct store *store, const struct store_update *u)
{
    struct store_event event = {.event = "update.damaged",
                                .text = "its file on the disk has changed; it is asked for again",
                                .round = u->counted_in,
                                .member = u->member};
    TRY(db_begin(&store->db));
    err e = delete_update(&store->db, u);
    if (!err_is(e)) e = store_event_add(store, u->run, &event);
    TRY(db_end(&store->db, e));
    e = blob_lose(store->dir, &u->blob.digest);
    (void)e;
    return ERR_NONE;
}

/* Files are listed as doomed, and store_trim() removes those that no row names again by then. */
err store_forget_shapes(struct store *store, int64_t run, bool keep_frozen)
{
    static const char *const script[] = {
        "INSERT OR IGNORE INTO doomed SELECT digest FROM updates WHERE run=?",
        "INSERT OR IGNORE INTO doomed SELECT state FROM rounds WHERE run=? AND state IS NOT NULL",
        "INSERT OR IGNORE INTO doomed SELECT memory FROM runs WHERE id=? AND memory IS NOT NULL",
        "DELETE FROM updates WHERE run=?",
        "DELETE FROM rounds WHERE run=?",
        "UPDATE members SET joined=0, made_for=0, counted_in=0, digest=NULL, pruned=0 WHERE run=?",
        ("UPDATE runs SET modules=NULL, opened=0, hold='', reason='', state=NULL, state_size=NULL,"
         " memory=NULL, memory_size=NULL WHERE id=?"),
        "INSERT OR IGNORE INTO doomed SELECT frozen FROM runs WHERE id=? AND frozen IS NOT NULL",
        "UPDATE runs SET frozen=NULL, frozen_size=NULL WHERE id=?",
    };
    size_t steps = sizeof script / sizeof *script - (keep_frozen ? 2 : 0);
    struct store_event event = {.event = "run.shapes_forgotten"};
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < steps && !err_is(e); i++)
        e = db_run(&store->db, script[i], "i", run);
    if (!err_is(e)) e = store_event_add(store, run, &event);
    return db_end(&store->db, e);
}
