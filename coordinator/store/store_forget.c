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
