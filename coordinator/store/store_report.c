/* Reports of rounds. */
#include "coordinator/store/packed.h"
#include "coordinator/store/store_rows.h"

#include <math.h>
#include <stdio.h>

/* The event's text has two numbers for `run status`. A private round's noisy mean was kept for this
 * report only. SQLite stores NaN as NULL, which the columns refuse, so 0 stands for no norms. */
err store_report(struct store *store, int64_t run, const struct store_round *r)
{
    struct db *db = &store->db;
    struct bytes packed = {.max = PACKED_TEXT_BYTES_MAX};
    char text[96];
    bool norms = !isnan(r->update_norm);
    if (!norms)
        snprintf(text, sizeof text, "without norms, which the method does not have");
    else
        snprintf(text, sizeof text, "change %.4g, error %.2g", r->update_norm, r->error);
    struct store_event event = {.event = "round.reported", .text = text, .round = r->round};
    TRY(packed_text(&packed, r->report_json));
    err e = db_begin(db);
    if (err_is(e)) goto out;
    e = db_run(db,
               "UPDATE rounds SET update_norm=?, error=?, dropped=?, report='', report_z=?"
               " WHERE run=? AND round=?",
               "dddbii", norms ? r->update_norm : 0.0, norms ? r->error : 0.0,
               norms ? r->dropped : 0.0, (const void *)packed.data, packed.size, run,
               (int64_t)r->round);
    if (!err_is(e)) e = store_rows_event(db, run, &event);
    if (!err_is(e)) e = store_rows_noisy(db, run, r->round);
    e = db_end(db, e);
out:
    bytes_close(&packed);
    return e;
}

err store_reports_skipped(uint32_t *out, struct store *store, int64_t run)
{
    int64_t count = 0;
    TRY(db_number(&count, &store->db,
                  "SELECT count(*) FROM events WHERE run=? AND event='report.skipped'", "i", run));
    *out = (uint32_t)count;
    return ERR_NONE;
}
