#include "coordinator/store/store_recent.h"

#include <math.h>
#include <string.h>

/* Column 3 and 5 tell whether columns 4 and 6 hold a figure. */
static void read_round(struct store_recent_round *out, const struct db_query *q)
{
    out->round = (uint32_t)db_query_int(q, 0);
    out->updates = (uint32_t)db_query_int(q, 1);
    out->train_loss = db_query_num(q, 2);
    out->error = db_query_int(q, 3) ? db_query_num(q, 4) : NAN;
    out->eval_loss = db_query_int(q, 5) ? db_query_num(q, 6) : NAN;
}

err store_recent_rounds(struct store_recent_round *out, size_t *count, struct store *store,
                        int64_t run, size_t most)
{
    struct db_query q = {0};
    size_t n = 0;
    bool row = true;
    TRY(db_query_open(&q, &store->db,
                      "SELECT r.round,updates,train_loss,report<>'' OR report_z IS NOT NULL,"
                      "error,CASE WHEN v.n>0 THEN 1 ELSE 0 END,v.l FROM (SELECT * FROM rounds"
                      " WHERE run=? AND round>0 ORDER BY round DESC LIMIT ?) r"
                      " LEFT JOIN (SELECT round,SUM(rows) n,SUM(rows*loss)/SUM(rows) l"
                      " FROM evaluations WHERE run=? AND rows>0 AND round>(SELECT MAX(round)-?"
                      " FROM rounds WHERE run=?) GROUP BY round) v ON v.round=r.round"
                      " ORDER BY r.round",
                      "iiiii", run, (int64_t)most, run, (int64_t)most, run));
    err e = db_query_next(&row, &q);
    for (; !err_is(e) && row && n < most; e = db_query_next(&row, &q))
        read_round(&out[n++], &q);
    db_query_close(&q);
    if (!err_is(e)) *count = n;
    return e;
}

static err read_event(struct store_recent_event *out, const struct db_query *q, struct arena *arena)
{
    out->wall_ms = (uint64_t)db_query_int(q, 0);
    out->round = (uint32_t)db_query_int(q, 5);
    TRY(db_query_copy(&out->run, q, 1, arena));
    TRY(db_query_copy(&out->event, q, 2, arena));
    TRY(db_query_copy(&out->text, q, 3, arena));
    return db_query_copy(&out->member, q, 4, arena);
}

err store_recent_events(struct store_recent_event **out, size_t *count, struct store *store,
                        size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct store_recent_event *list = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&list, arena, most, sizeof *list));
    TRY(db_query_open(
        &q, &store->db,
        "SELECT v.wall_ms,runs.name,v.event,v.text,v.member,v.round FROM (SELECT * FROM"
        " events ORDER BY sequence DESC LIMIT ?) v JOIN runs ON runs.id=v.run"
        " ORDER BY v.sequence DESC",
        "i", (int64_t)most));
    err e = db_query_next(&row, &q);
    for (; !err_is(e) && row && n < most; e = err_is(e) ? e : db_query_next(&row, &q))
        e = read_event(&list[n++], &q, arena);
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = list;
    *count = n;
    return ERR_NONE;
}
