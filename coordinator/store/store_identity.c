#include "coordinator/store/store_identity.h"

#include "base/text.h"

#include <stdlib.h>
#include <string.h>

enum { DAY_MS = 24 * 60 * 60 * 1000 };
#define IDENTITY_COLUMNS                                                                           \
    "role,id,state,name,added_by,reason,added_ms,changed_ms,recorded,keep_runs,seen_ms,address,"   \
    "software,ends_s"

static err read_identity(struct store_identity *row, const struct db_query *q, struct arena *arena)
{
    TRY(db_query_copy(&row->who.role, q, 0, arena));
    TRY(db_query_copy(&row->who.id, q, 1, arena));
    TRY(db_query_copy(&row->state, q, 2, arena));
    TRY(db_query_copy(&row->name, q, 3, arena));
    TRY(db_query_copy(&row->added_by, q, 4, arena));
    TRY(db_query_copy(&row->reason, q, 5, arena));
    row->added_ms = (uint64_t)db_query_int(q, 6);
    row->changed_ms = (uint64_t)db_query_int(q, 7);
    row->recorded = db_query_int(q, 8) != 0;
    row->keep_runs = db_query_int(q, 9) != 0;
    row->seen_ms = (uint64_t)db_query_int(q, 10);
    TRY(db_query_copy(&row->address, q, 11, arena));
    TRY(db_query_copy(&row->software, q, 12, arena));
    row->ends_s = db_query_int(q, 13);
    return ERR_NONE;
}

/* Counted first, because an arena cannot grow an array. */
err store_identities(struct store_identity **out, size_t *count, struct store *store,
                     const struct store_who *after, size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct store_identity *list = NULL;
    int64_t rows = 0;
    size_t n = 0;
    bool row = true;
    const char *role = after ? after->role : "", *id = after ? after->id : "";
    TRY(db_number(&rows, &store->db, "SELECT count(*) FROM identities", ""));
    if ((size_t)rows < most) most = (size_t)rows;
    TRY(arena_take(&list, arena, most, sizeof *list));
    TRY(db_query_open(&q, &store->db,
                      "SELECT " IDENTITY_COLUMNS " FROM identities"
                      " WHERE role>? OR (role=? AND id>?) ORDER BY role,id LIMIT ?",
                      "ttti", role, role, id, (int64_t)most));
    err e = ERR_NONE;
    while (n < most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        e = read_identity(&list[n++], &q, arena);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = list;
    *count = n;
    return ERR_NONE;
}

err store_identity_find(bool *found, struct store_identity *out, struct store *store,
                        const struct store_who *who, struct arena *arena)
{
    struct db_query q = {0};
    TRY(db_query_open(&q, &store->db,
                      "SELECT " IDENTITY_COLUMNS " FROM identities WHERE role=? AND id=?", "tt",
                      who->role, who->id));
    err e = db_query_next(found, &q);
    if (!err_is(e) && *found) e = read_identity(out, &q, arena);
    db_query_close(&q);
    return e;
}

/* ---- changes ---- */

static err change(struct db *db, size_t *changed, const struct store_who *who, const char *to,
                  uint64_t now_ms)
{
    TRY(db_run(db,
               "UPDATE identities SET state=?, changed_ms=? WHERE role=? AND id=?"
               " AND origin='file'",
               "titt", to, (int64_t)now_ms, who->role, who->id));
    ++*changed;
    return ERR_NONE;
}

struct import {
    const char *role;
    const char **id; /* sorted */
    size_t count;
    uint64_t now_ms;
};

/* A revoked name stays revoked although the file has it: the command is newer than the file. */
static err import_names(struct db *db, size_t *changed, const struct import *in)
{
    for (size_t i = 0; i < in->count; i++) {
        TRY(db_run(db,
                   "INSERT INTO identities(role,id,state,origin,added_by,added_ms,changed_ms)"
                   " VALUES(?,?,'active','file','federation.members',?,?)"
                   " ON CONFLICT(role,id) DO UPDATE SET state='active',"
                   " changed_ms=excluded.changed_ms"
                   " WHERE identities.state IN('removed','invited')",
                   "ttii", in->role, in->id[i], (int64_t)in->now_ms, (int64_t)in->now_ms));
        *changed += (size_t)db->changes;
    }
    return ERR_NONE;
}

/* Names that the file gave and has no longer. Read first, changed afterwards, so that no query is
 * open on rows that change. */
static err import_removals(struct store *store, size_t *changed, const struct import *in,
                           struct arena *arena)
{
    struct db_query q = {0};
    const char **gone = NULL;
    size_t n = 0;
    int64_t most = 0;
    bool row = true;
    TRY(db_number(&most, &store->db,
                  "SELECT count(*) FROM identities WHERE role=? AND origin='file'", "t", in->role));
    TRY(arena_take(&gone, arena, (size_t)most, sizeof *gone));
    TRY(db_query_open(&q, &store->db,
                      "SELECT id FROM identities WHERE role=? AND origin='file' AND state='active'",
                      "t", in->role));
    err e = ERR_NONE;
    while (n < (size_t)most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        const char *id = db_query_text(&q, 0);
        if (bsearch(&id, in->id, in->count, sizeof id, text_order)) continue;
        e = db_query_copy(&gone[n++], &q, 0, arena);
    }
    db_query_close(&q);
    for (size_t i = 0; i < n && !err_is(e); i++)
        e = change(&store->db, changed, &(struct store_who){in->role, gone[i]}, STORE_REMOVED,
                   in->now_ms);
    return e;
}

/* One transaction, so that no reader sees half of a file's list. Sorted for the search by name. */
err store_identity_import(size_t *changed, struct store *store, const char *role,
                          const char *const *id, size_t count, uint64_t now_ms)
{
    struct import in = {.role = role, .count = count, .now_ms = now_ms};
    struct arena arena = {0};
    *changed = 0;
    if (count == 0) return ERR_NONE;
    TRY(arena_take(&in.id, &arena, count, sizeof *in.id));
    memcpy(in.id, id, count * sizeof *in.id);
    qsort(in.id, count, sizeof *in.id, text_order);
    err e = db_begin(&store->db);
    if (err_is(e)) {
        arena_close(&arena);
        return e;
    }
    e = import_names(&store->db, changed, &in);
    if (!err_is(e)) e = import_removals(store, changed, &in, &arena);
    arena_close(&arena);
    return db_end(&store->db, e);
}

/* "" if there is none. */
err store_identity_state(char out[STORE_STATE_BYTES], struct db *db, const struct store_who *who)
{
    struct db_query q = {0};
    bool row = false;
    *out = 0;
    TRY(db_query_open(&q, db, "SELECT state FROM identities WHERE role=? AND id=?", "tt", who->role,
                      who->id));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) snprintf(out, STORE_STATE_BYTES, "%s", db_query_text(&q, 0));
    db_query_close(&q);
    return e;
}

/* The text has the command that helps, with its option, to be copied. */
err store_identity_was_revoked(const struct store_who *who)
{
    return err_make(ERR_REFUSED, "%s was revoked; fedlora member add %s%s admits it again", who->id,
                    who->id, strcmp(who->role, "admin") ? "" : " --role admin");
}

/* An active identity is never made invited again. */
err store_identity_put(struct db *db, const struct store_who *who, const char *state,
                       const char *origin, const struct store_act *act)
{
    return db_run(db,
                  "INSERT INTO identities(role,id,state,origin,added_by,added_ms,changed_ms)"
                  " VALUES(?,?,?,?,?,?,?) ON CONFLICT(role,id) DO UPDATE SET state=excluded.state,"
                  " origin=excluded.origin, changed_ms=excluded.changed_ms, reason='', keep_runs=0"
                  " WHERE identities.state<>'active'",
                  "tttttii", who->role, who->id, state, origin, act->by, (int64_t)act->now_ms,
                  (int64_t)act->now_ms);
}

/* The state is read inside the transaction, because the signer's result of another call may change
 * it. */
err store_identity_add(struct store *store, const struct store_who *who, const char *state,
                       bool again, const struct store_act *act)
{
    char is[STORE_STATE_BYTES];
    TRY(db_begin(&store->db));
    err e = store_identity_state(is, &store->db, who);
    if (!err_is(e) && !again && !strcmp(is, STORE_REVOKED)) e = store_identity_was_revoked(who);
    if (!err_is(e)) e = store_identity_put(&store->db, who, state, "operator", act);
    return db_end(&store->db, e);
}

/* Nothing but people reads this name, so it needs no event in the store. */
err store_identity_rename(bool *found, struct store *store, const struct store_who *who,
                          const char *name)
{
    TRY(db_run(&store->db, "UPDATE identities SET name=? WHERE role=? AND id=?", "ttt", name,
               who->role, who->id));
    *found = store->db.changes > 0;
    return ERR_NONE;
}

/* An identity that was never listed can be revoked too: it may have a certificate that was made by
 * hand. Repeating the command without a reason keeps the first one. */
err store_identity_revoke(struct store *store, const struct store_who *who, const char *reason,
                          bool keep_runs, const struct store_act *act)
{
    struct db *db = &store->db;
    int64_t now = (int64_t)act->now_ms;
    TRY(db_begin(db));
    err e = db_run(db,
                   "INSERT INTO identities(role,id,state,origin,added_by,added_ms,changed_ms,"
                   "reason,recorded,keep_runs) VALUES(?,?,'revoked','operator',?,?,?,?,1,?)"
                   " ON CONFLICT(role,id) DO UPDATE SET state='revoked',"
                   " reason=CASE WHEN excluded.reason='' AND identities.state='revoked'"
                   " THEN identities.reason ELSE excluded.reason END,"
                   " changed_ms=excluded.changed_ms, recorded=1, keep_runs=excluded.keep_runs",
                   "tttiiti", who->role, who->id, act->by, now, now, reason, (int64_t)keep_runs);
    if (!err_is(e))
        e = db_run(db,
                   "UPDATE certificates SET revoked_ms=?, reason=? WHERE role=? AND id=?"
                   " AND revoked_ms=0",
                   "ittt", now, reason, who->role, who->id);
    if (!err_is(e))
        e = db_run(
            db, "UPDATE tokens SET revoked_ms=?, chain='' WHERE role=? AND id=? AND revoked_ms=0",
            "itt", now, who->role, who->id);
    return db_end(db, e);
}

/* One flush for all of them. */
err store_identity_seen(struct store *store, const struct store_identity *row, size_t count)
{
    if (count == 0) return ERR_NONE;
    TRY(db_begin(&store->db));
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = db_run(&store->db,
                   "UPDATE identities SET seen_ms=?, address=?, software=?, ends_s=?"
                   " WHERE role=? AND id=?",
                   "ittitt", (int64_t)row[i].seen_ms, row[i].address, row[i].software,
                   row[i].ends_s, row[i].who.role, row[i].who.id);
    return db_end(&store->db, e);
}

/* The audit log has all of it for ever; these rows are for decisions and lists. */
err store_identity_sweep(struct store *store, uint64_t now_ms)
{
    int64_t now = (int64_t)now_ms, month = 30 * (int64_t)DAY_MS;
    TRY(db_begin(&store->db));
    err e = db_run(&store->db, "DELETE FROM tokens WHERE ends_ms<?", "i", now - month);
    if (!err_is(e))
        e = db_run(&store->db, "UPDATE tokens SET chain='' WHERE ends_ms<? AND chain<>''", "i",
                   now);
    if (!err_is(e))
        e = db_run(&store->db, "DELETE FROM certificates WHERE ends_s<?", "i",
                   (now - 12 * month) / 1000);
    return db_end(&store->db, e);
}
