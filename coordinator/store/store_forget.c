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

/* The rows go before the file: a crash in between leaves an update that is asked for again. */
err store_forget_update(struct store *store, const struct store_update *u)
{
    struct store_event event = {.event = "update.damaged",
                                .text = "its file on the disk has changed; it is asked for again",
                                .round = u->counted_in,
                                .member = u->member};
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "DELETE FROM updates WHERE run=? AND counted_in=? AND member=?",
                   "iit", u->run, (int64_t)u->counted_in, u->member);
    if (!err_is(e))
        e = db_run(&store->db,
                   "UPDATE members SET made_for=0, counted_in=0 WHERE run=? AND id=? AND digest=?",
                   "ith", u->run, u->member, &u->blob.digest);
    if (!err_is(e)) e = store_event_add(store, u->run, &event);
    TRY(db_end(&store->db, e));
    return blob_lose(store->dir, &u->blob.digest);
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
        "UPDATE runs SET modules=NULL, opened=0, hold='', reason='', state=NULL, state_size=NULL,"
        " memory=NULL, memory_size=NULL WHERE id=?",
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
