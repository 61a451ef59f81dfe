/* Changes of a run by an operator, and earlier figures that new ones are compared with. */
#include "coordinator/store/store.h"

#include <stdlib.h>

/* Configuration, member and event are one transaction: a crash leaves the old run or the new
 * one. */
err store_change(struct store *store, int64_t run, const struct store_run *with, const char *member,
                 const struct store_event *event)
{
    struct db *db = &store->db;
    TRY(db_begin(db));
    err e = db_run(db, "UPDATE runs SET config=? WHERE id=?", "bi", with->config, with->config_size,
                   run);
    if (!err_is(e) && member)
        e = db_run(db, "INSERT OR IGNORE INTO members(run,id) VALUES(?,?)", "it", run, member);
    if (!err_is(e)) e = store_event_add(store, run, event);
    return db_end(db, e);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* The lower one of two middle values. Norms change slowly, so a few rounds are enough. */
err store_norm(double *out, struct store *store, int64_t run)
{
    enum { ROUNDS = 16 };
    struct db_query q = {0};
    double norm[ROUNDS];
    size_t count = 0;
    TRY(db_query_open(&q, &store->db,
                      "SELECT norm FROM rounds WHERE run=? AND norm>0 ORDER BY round DESC LIMIT ?",
                      "ii", run, (int64_t)ROUNDS));
    err e = ERR_NONE;
    for (bool row = true; count < ROUNDS;) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        norm[count++] = db_query_num(&q, 0);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    qsort(norm, count, sizeof *norm, by_value);
    *out = count ? norm[(count - 1) / 2] : 0;
    return ERR_NONE;
}

static err first_number(double *out, struct store *store, const char *sql, int64_t run)
{
    struct db_query q = {0};
    bool row = false;
    TRY(db_query_open(&q, &store->db, sql, "i", run));
    err e = db_query_next(&row, &q);
    if (!err_is(e)) *out = row ? db_query_num(&q, 0) : 0;
    db_query_close(&q);
    return e;
}

err store_losses(double *train, double *evaluated, struct store *store, int64_t run)
{
    TRY(first_number(train, store,
                     "SELECT min(train_loss) FROM rounds WHERE run=? AND train_loss>0", run));
    return first_number(evaluated, store,
                        "SELECT min(l) FROM (SELECT sum(rows*loss)/sum(rows) l FROM evaluations"
                        " WHERE run=? AND rows>0 GROUP BY round) v",
                        run);
}
