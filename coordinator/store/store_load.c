/* Reading the store: lists of rows, in an arena. */
#include "coordinator/store/store.h"

#include "coordinator/store/packed.h"

#include <string.h>

/* Rows of `size` bytes, being filled. */
struct list {
    uint8_t *row;
    size_t count, size;
};

/* Counted first, because an arena cannot grow an array. Rows that arrive in between are left out
 * by load(). With run 0 all rows are counted; the condition is left out then, because a condition
 * that could hold for any row would keep SQLite from using an index for one run. */
static err count_rows(size_t *out, struct db *db, const char *table, int64_t run)
{
    int64_t n = 0;
    char sql[96];
    snprintf(sql, sizeof sql, "SELECT count(*) FROM %s%s", table, run ? " WHERE run=?" : "");
    TRY(run ? db_number(&n, db, sql, "i", run) : db_number(&n, db, sql, ""));
    *out = (size_t)n;
    return ERR_NONE;
}

static err copy_blob(const void **out, size_t *size, const struct db_query *q, int column,
                     struct arena *arena)
{
    uint8_t *copy = NULL;
    size_t bytes;
    const void *data = db_query_blob(&bytes, q, column);
    if (bytes == 0) return ERR_NONE;
    TRY(arena_take(&copy, arena, bytes, 1));
    memcpy(copy, data, bytes);
    *out = copy;
    *size = bytes;
    return ERR_NONE;
}

/* A digest and its size, in two neighbouring columns. */
static void read_blob_name(struct store_blob *out, const struct db_query *q, int column)
{
    if (db_query_digest(&out->digest, q, column)) out->size = (uint64_t)db_query_int(q, column + 1);
}

/* Runs the query and gives each row to `read`, which fills one element of list->size bytes.
 * Closes the query. */
static err load(struct list *list, struct db_query *q, struct arena *arena, size_t most,
                err (*read)(void *row, const struct db_query *q, struct arena *arena))
{
    err e = arena_take(&list->row, arena, most, list->size);
    for (bool row = true; !err_is(e) && list->count < most;) {
        e = db_query_next(&row, q);
        if (err_is(e) || !row) break;
        e = read(list->row + list->count * list->size, q, arena);
        list->count++;
    }
    db_query_close(q);
    return e;
}

static err read_run(void *row, const struct db_query *q, struct arena *arena)
{
    struct store_run *r = row;
    r->id = db_query_int(q, 0);
    TRY(db_query_copy(&r->name, q, 1, arena));
    TRY(copy_blob(&r->config, &r->config_size, q, 2, arena));
    TRY(copy_blob(&r->modules, &r->modules_size, q, 3, arena));
    r->published = (uint32_t)db_query_int(q, 4);
    r->opened = (uint32_t)db_query_int(q, 5);
    TRY(db_query_copy(&r->hold, q, 6, arena));
    TRY(db_query_copy(&r->reason, q, 7, arena));
    r->created_ms = (uint64_t)db_query_int(q, 8);
    read_blob_name(&r->state, q, 9);
    read_blob_name(&r->frozen, q, 11);
    read_blob_name(&r->memory, q, 13);
    r->started = r->state.size > 0;
    r->ended_ms = (uint64_t)db_query_int(q, 15);
    r->archived_ms = (uint64_t)db_query_int(q, 16);
    return ERR_NONE;
}

#define RUN_COLUMNS                                                                                \
    "SELECT id,name,config,modules,published,opened,hold,reason,created_ms,state,state_size,"      \
    "frozen,frozen_size,memory,memory_size,ended_ms,archived_ms FROM runs"

err store_run_named(struct store_run **out, struct store *store, const char *name,
                    struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    TRY(db_query_open(&q, &store->db, RUN_COLUMNS " WHERE deleted_ms=0 AND name=?", "t", name));
    TRY(load(&list, &q, arena, 1, read_run));
    *out = list.count ? (void *)list.row : NULL;
    return ERR_NONE;
}

err store_runs(struct store_run **out, size_t *count, struct store *store, struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    size_t most;
    TRY(count_rows(&most, &store->db, "runs", 0));
    TRY(db_query_open(&q, &store->db, RUN_COLUMNS " WHERE deleted_ms=0 ORDER BY id", ""));
    TRY(load(&list, &q, arena, most, read_run));
    *out = (void *)list.row;
    *count = list.count;
    return ERR_NONE;
}

static void read_evaluation(struct store_evaluation *out, const struct db_query *q, int column)
{
    *out = (struct store_evaluation){.round = (uint32_t)db_query_int(q, column),
                                     .rows = (uint64_t)db_query_int(q, column + 1),
                                     .loss = db_query_num(q, column + 2),
                                     .accuracy = db_query_num(q, column + 3)};
}

static err read_member(void *row, const struct db_query *q, struct arena *arena)
{
    struct store_member *m = row;
    TRY(db_query_copy(&m->id, q, 0, arena));
    m->joined = db_query_int(q, 1) != 0;
    m->rank = (uint32_t)db_query_int(q, 2);
    m->examples = (uint64_t)db_query_int(q, 3);
    TRY(db_query_copy(&m->libraries, q, 4, arena));
    m->bytes_up = (uint64_t)db_query_int(q, 5);
    m->bytes_down = (uint64_t)db_query_int(q, 6);
    m->train_loss = db_query_num(q, 7);
    m->trained_round = (uint32_t)db_query_int(q, 8);
    m->counted_in = (uint32_t)db_query_int(q, 9);
    (void)db_query_digest(&m->digest, q, 10);
    m->eval_rows = (uint64_t)db_query_int(q, 11);
    m->pruned = (uint32_t)db_query_int(q, 12);
    m->refused_in = (uint32_t)db_query_int(q, 17);
    m->excused_in = (uint32_t)db_query_int(q, 18);
    TRY(db_query_copy(&m->refusal, q, 19, arena));
    if (db_query_int(q, 13) == 0) return ERR_NONE;
    TRY(arena_take(&m->evaluation, arena, 1, sizeof *m->evaluation));
    read_evaluation(m->evaluation, q, 13);
    return ERR_NONE;
}

/* Each member with its newest evaluation, if it has one. */
err store_members(struct store_member **out, size_t *count, struct store *store, int64_t run,
                  struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    size_t most;
    TRY(count_rows(&most, &store->db, "members", run));
    TRY(db_query_open(
        &q, &store->db,
        "SELECT id,joined,rank,examples,libraries,bytes_up,bytes_down,train_loss,made_for,"
        "counted_in,digest,eval_rows,pruned,v.round,v.rows,v.loss,v.accuracy,refused_in,excused_in,"
        "refusal FROM members m"
        " LEFT JOIN evaluations v ON v.run=m.run AND v.member=m.id AND v.round="
        "(SELECT max(round) FROM evaluations WHERE run=m.run AND member=m.id)"
        " WHERE m.run=? ORDER BY id",
        "i", run));
    TRY(load(&list, &q, arena, most, read_member));
    *out = (void *)list.row;
    *count = list.count;
    return ERR_NONE;
}

static err read_update(void *row, const struct db_query *q, struct arena *arena)
{
    struct store_update *u = row;
    u->run = db_query_int(q, 0);
    u->counted_in = (uint32_t)db_query_int(q, 1);
    TRY(db_query_copy(&u->member, q, 2, arena));
    u->trained_round = (uint32_t)db_query_int(q, 3);
    read_blob_name(&u->blob, q, 4);
    u->examples = (uint64_t)db_query_int(q, 6);
    u->train_loss = db_query_num(q, 7);
    u->seconds = db_query_num(q, 8);
    u->tokens = (uint64_t)db_query_int(q, 9);
    return ERR_NONE;
}

/* Sorted by member: sums are taken in this order, so the bytes of a state do not depend on the
 * order of arrival. */
err store_updates(struct store_update **out, size_t *count, struct store *store, int64_t run,
                  uint32_t counted_in, struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    size_t most;
    TRY(count_rows(&most, &store->db, "updates", run));
    TRY(db_query_open(
        &q, &store->db,
        "SELECT run,counted_in,member,made_for,digest,size,examples,train_loss,seconds,"
        "tokens FROM updates WHERE run=? AND counted_in=? ORDER BY member",
        "ii", run, (int64_t)counted_in));
    TRY(load(&list, &q, arena, most, read_update));
    *out = (void *)list.row;
    *count = list.count;
    return ERR_NONE;
}

static err read_round(void *row, const struct db_query *q, struct arena *arena)
{
    struct store_round *r = row;
    r->round = (uint32_t)db_query_int(q, 0);
    read_blob_name(&r->state, q, 1);
    r->updates = (uint32_t)db_query_int(q, 3);
    r->took_ms = (uint64_t)db_query_int(q, 4);
    r->aggregate_ms = (uint64_t)db_query_int(q, 5);
    r->train_loss = db_query_num(q, 6);
    r->reported = db_query_int(q, 15) != 0;
    r->gone = db_query_int(q, 16) != 0;
    r->update_norm = db_query_num(q, 7);
    r->error = db_query_num(q, 8);
    r->dropped = db_query_num(q, 9);
    read_evaluation(&r->evaluation, q, 11);
    size_t packed = 0;
    const void *data = db_query_blob(&packed, q, 17);
    if (packed) return packed_open(&r->report_json, data, packed, arena);
    return db_query_copy(&r->report_json, q, 10, arena);
}

/* Evaluations are averaged over the rows they were computed on; those with impossible numbers of
 * rows, which earlier versions accepted, are left out. An accuracy below 0 (not
 * reported) makes the round's accuracy unknown. A round is reported once its report is not
 * empty. */
err store_rounds_some(struct store_round **out, size_t *count, struct store *store,
                      const struct store_rounds_of *of, struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    size_t most;
    TRY(count_rows(&most, &store->db, "rounds", of->run));
    if (most > of->most) most = of->most;
    TRY(db_query_open(
        &q, &store->db,
        "SELECT r.round,state,state_size,updates,took_ms,aggregate_ms,train_loss,"
        "update_norm,error,dropped,CASE WHEN ?2<>0 THEN report ELSE '' END,r.round,n,l,a,"
        "report<>'' OR report_z IS NOT NULL,gone,CASE WHEN ?2<>0 THEN report_z END"
        " FROM rounds r LEFT JOIN (SELECT round,sum(rows) n,"
        "sum(rows*loss)/sum(rows) l,"
        "CASE WHEN min(accuracy)<0 THEN -1 ELSE sum(rows*accuracy)/sum(rows) END a"
        " FROM evaluations WHERE run=?1 AND round>?4 AND rows BETWEEN 1 AND ?3 GROUP BY round) v"
        " ON v.round=r.round WHERE run=?1 AND r.round>?4 AND r.round>"
        "(SELECT began FROM runs WHERE id=?1) ORDER BY r.round LIMIT ?5",
        "iiiii", of->run, (int64_t)of->reports, (int64_t)LIMIT_ROWS, (int64_t)of->after,
        (int64_t)most));
    TRY(load(&list, &q, arena, most, read_round));
    *out = (void *)list.row;
    *count = list.count;
    return ERR_NONE;
}

err store_rounds(struct store_round **out, size_t *count, struct store *store, int64_t run,
                 bool reports, struct arena *arena)
{
    const struct store_rounds_of all = {.run = run, .most = SIZE_MAX, .reports = reports};
    return store_rounds_some(out, count, store, &all, arena);
}

static err read_event(void *row, const struct db_query *q, struct arena *arena)
{
    struct store_event *v = row;
    v->sequence = (uint64_t)db_query_int(q, 0);
    v->wall_ms = (uint64_t)db_query_int(q, 1);
    TRY(db_query_copy(&v->event, q, 2, arena));
    TRY(db_query_copy(&v->text, q, 3, arena));
    v->round = (uint32_t)db_query_int(q, 4);
    return db_query_copy(&v->member, q, 5, arena);
}

/* A caller continues after the sequence number that it saw last, so no event is lost or repeated
 * over restarts on either side. */
err store_events(struct store_event **out, size_t *count, struct store *store, int64_t run,
                 uint64_t after, size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct list list = {.size = sizeof **out};
    TRY(db_query_open(&q, &store->db,
                      "SELECT sequence,wall_ms,event,text,round,member FROM events"
                      " WHERE run=? AND sequence>? ORDER BY sequence LIMIT ?",
                      "iii", run, (int64_t)after, (int64_t)most));
    TRY(load(&list, &q, arena, most, read_event));
    *out = (void *)list.row;
    *count = list.count;
    return ERR_NONE;
}

err store_event_place(uint64_t *after, struct store *store, int64_t run, size_t tail,
                      uint64_t since_ms)
{
    int64_t place = 0, old = 0;
    TRY(db_number(&place, &store->db,
                  "SELECT sequence FROM events WHERE run=? ORDER BY sequence DESC LIMIT 1 OFFSET ?",
                  "ii", run, (int64_t)tail));
    if (since_ms)
        TRY(db_number(&old, &store->db,
                      "SELECT coalesce(max(sequence),0) FROM events WHERE run=? AND wall_ms<?",
                      "ii", run, (int64_t)since_ms));
    *after = (uint64_t)(place > old ? place : old);
    return ERR_NONE;
}

err store_last_event(char *out, size_t bytes, struct store *store, int64_t run, const char *event)
{
    struct db_query q = {0};
    bool row = false;
    TRY(db_query_open(&q, &store->db,
                      "SELECT text FROM events WHERE run=? AND event=? ORDER BY sequence DESC"
                      " LIMIT 1",
                      "it", run, event));
    err e = db_query_next(&row, &q);
    if (!err_is(e)) snprintf(out, bytes, "%s", row ? db_query_text(&q, 0) : "");
    db_query_close(&q);
    return e;
}
