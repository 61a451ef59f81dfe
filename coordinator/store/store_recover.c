/* The start of a coordinator: rows and files are brought together. */
#include "base/text.h"
#include "coordinator/store/spool.h"
#include "coordinator/store/store.h"
#include "coordinator/store/store_files.h"

#include <errno.h>
#include <string.h>

static err fate_of(enum blob_fate *out, const struct digest *digest, void *context)
{
    struct store *store = context;
    bool used = false;
    int64_t doomed = 0;
    TRY(store_blob_known(&used, store, digest));
    TRY(db_number(&doomed, &store->db, "SELECT EXISTS(SELECT 1 FROM doomed WHERE digest=?)", "h",
                  digest));
    *out = used ? BLOB_USED : doomed ? BLOB_DOOMED : BLOB_UNKNOWN;
    return ERR_NONE;
}

/* While a backup is made its files stay, and their rows in `doomed` too. Without the file of the
 * lock, for which a full disk may have no room, only a first backup that begins just now is not
 * noticed. */
static err sweep_blobs(struct blob_sweep *sweep, struct store *store)
{
    struct lock backup = {0};
    bool free = false;
    err begun = store_files_begin(store->dir);
    (void)begun;
    TRY(store_files_free(&free, &backup, store->dir));
    err e = free ? blob_sweep(sweep) : ERR_NONE;
    if (!err_is(e) && free) e = db_run(&store->db, "DELETE FROM doomed", "");
    lock_close(&backup);
    return e;
}

/* Reports are not made after a restart, so those of published rounds that are neither stored nor
 * counted were lost with the process, and what was kept for them is not needed. */
static err recover_reports(struct db *db)
{
    TRY(db_begin(db));
    err e = db_run(db,
                   "UPDATE private_rounds SET noisy=NULL WHERE noisy IS NOT NULL"
                   " AND round<=(SELECT published FROM runs WHERE id=run)",
                   "");
    if (!err_is(e))
        e = db_run(db,
                   "INSERT INTO events(run,wall_ms,event,text,round,member)"
                   " SELECT r.run,?,'report.skipped','the coordinator ended before it was done',"
                   "r.round,'' FROM rounds r JOIN runs ON runs.id=r.run WHERE r.round>runs.began"
                   " AND r.report='' AND r.report_z IS NULL AND NOT EXISTS("
                   "SELECT 1 FROM events WHERE event='report.skipped' AND run=r.run"
                   " AND round=r.round)",
                   "i", (int64_t)text_wall_ms());
    return db_end(db, e);
}

static err damaged(const struct store *store, const char *how)
{
    return err_make(
        ERR_INPUT,
        "%s is damaged (%.200s): restore it from a backup, or save what can be read "
        "with `sqlite3 FILE .recover` into a new file; the states are still in %s/blobs",
        store->db.path, how, store->dir);
}

err store_check(bool *whole, struct store *store)
{
    err e = db_quick_check(whole, &store->db, text_now_ms() + STORE_CHECK_MS);
    return e.sys == EUCLEAN ? damaged(store, e.text) : e;
}

/* Rows decide what exists. A blob without a row comes from a crash between its rename and its
 * commit, or the rows are those of an older copy of the database. Rows in `doomed` are of no use
 * after the sweep. */
err store_recover(struct store_recovered *out, struct store *store, uint64_t upload_age_ms)
{
    size_t parts = 0;
    struct blob_sweep sweep = {.data_dir = store->dir, .fate = fate_of, .context = store};
    TRY(recover_reports(&store->db));
    TRY(sweep_blobs(&sweep, store));
    TRY(spool_sweep(&parts, store->dir, upload_age_ms));
    *out = (struct store_recovered){.removed = sweep.removed + parts, .lost = sweep.lost};
    return ERR_NONE;
}
