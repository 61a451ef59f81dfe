/* Rows of runs with client-level privacy; contract in store.h. Lines of the ledger are written
 * by store_started() and store_publish(), in the transaction of the state they belong to. */
#include "coordinator/store/store.h"

#include "base/json.h"

#include <stdlib.h>
#include <string.h>

err store_private_load(struct store_private *out, struct store *store, int64_t run, uint32_t round)
{
    struct db_query q = {0};
    struct store_private row = {0};
    bool is_there = false;
    TRY(db_query_open(&q, &store->db,
                      "SELECT clip,noisy,noisy_size,next_clip FROM private_rounds"
                      " WHERE run=? AND round=?",
                      "ii", run, (int64_t)round));
    err e = db_query_next(&is_there, &q);
    if (!err_is(e) && is_there) {
        row.clip = db_query_num(&q, 0);
        if (db_query_digest(&row.noisy.digest, &q, 1))
            row.noisy.size = (uint64_t)db_query_int(&q, 2);
        row.next_clip = db_query_num(&q, 3);
    }
    db_query_close(&q);
    if (!err_is(e)) *out = row;
    return e;
}

/* The row of round 0 holds the seed of the last round, from which all earlier ones follow. */
err store_private_seed(struct cohort_seed *seed, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = false, found = false;
    TRY(db_query_open(&q, &store->db, "SELECT seed FROM private_rounds WHERE run=? AND round=0",
                      "i", run));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) {
        size_t size = 0;
        const void *data = db_query_blob(&size, &q, 0);
        found = size == sizeof seed->byte;
        if (found) memcpy(seed->byte, data, size);
    }
    db_query_close(&q);
    if (!err_is(e) && !found) e = err_make(ERR_STATE, "the run has no seed to draw members from");
    return e;
}

err store_ledger_head(bool *found, struct digest *out, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = false;
    TRY(db_query_open(&q, &store->db,
                      "SELECT text FROM ledger WHERE run=? ORDER BY line DESC LIMIT 1", "i", run));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) {
        const char *text = db_query_text(&q, 0);
        e = ledger_line_hash(out, text, strlen(text), "privacy ledger");
    }
    db_query_close(&q);
    *found = !err_is(e) && row;
    return e;
}

/* Before the round is charged. After a crash this row says that the noise was drawn, so that it is
 * not drawn a second time. The row may exist already: the publication of the round before has
 * stored the clip norm in it. */
err store_private_noisy(struct store *store, int64_t run, uint32_t round,
                        const struct store_private *made)
{
    return db_run(&store->db,
                  "INSERT INTO private_rounds(run,round,noisy,noisy_size,next_clip)"
                  " VALUES(?,?,?,?,?) ON CONFLICT(run,round) DO UPDATE SET noisy=excluded.noisy,"
                  " noisy_size=excluded.noisy_size, next_clip=excluded.next_clip",
                  "iihid", run, (int64_t)round, &made->noisy.digest, (int64_t)made->noisy.size,
                  made->next_clip);
}

err store_ledger(struct bytes *out, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = true;
    TRY(db_query_open(&q, &store->db, "SELECT text FROM ledger WHERE run=? ORDER BY line", "i",
                      run));
    err e = db_query_next(&row, &q);
    while (!err_is(e) && row) {
        const char *line = db_query_text(&q, 0);
        e = bytes_append(out, line, strlen(line));
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    return e;
}

/* Numbers in a ledger are hexadecimal texts, so that they are exact. */
static err read_epsilon(double *out, const char *line)
{
    json_t *object = NULL;
    const char *text = NULL;
    TRY(json_parse(&object, line, strlen(line), "privacy ledger"));
    err e = json_get_str(&text, object, "epsilon", "privacy ledger");
    if (!err_is(e)) *out = strtod(text, NULL);
    json_decref(object);
    return e;
}

err store_ledger_spent(double *epsilon, struct store *store, int64_t run)
{
    struct db_query q = {0};
    bool row = false;
    *epsilon = 0;
    TRY(db_query_open(&q, &store->db,
                      "SELECT text FROM ledger WHERE run=? AND text LIKE '%\"kind\":\"release\"%'"
                      " ORDER BY line DESC LIMIT 1",
                      "i", run));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) e = read_epsilon(epsilon, db_query_text(&q, 0));
    db_query_close(&q);
    return e;
}

/* ---- parts and copies ---- */

/* Whole lines only, because the receiver checks each line's hash. A line has at most
 * LEDGER_LINE_BYTES, so a part is never empty while there are more lines. */
err store_ledger_part(struct bytes *out, struct store *store, int64_t run, const char *party,
                      uint64_t after)
{
    struct db_query q = {0};
    bool row = true;
    if (*party)
        TRY(db_query_open(&q, &store->db,
                          "SELECT text FROM ledger_copies WHERE run=? AND member=? AND line>?"
                          " ORDER BY line",
                          "iti", run, party, (int64_t)after));
    else
        TRY(db_query_open(&q, &store->db,
                          "SELECT text FROM ledger WHERE run=? AND line>? ORDER BY line", "ii", run,
                          (int64_t)after));
    err e = db_query_next(&row, &q);
    while (!err_is(e) && row) {
        const char *line = db_query_text(&q, 0);
        if (out->size + strlen(line) > out->max) break;
        e = bytes_append(out, line, strlen(line));
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    return e;
}

/* The line is stored with its newline, as it was hashed. It is copied first, because it is in the
 * middle of a message, without a zero byte at its end. */
static err insert_copy(struct db *db, int64_t run, const char *member, uint64_t number,
                       const struct store_copy *c)
{
    struct bytes text = {.max = LEDGER_LINE_BYTES + 1};
    err e = bytes_append(&text, c->text, c->size);
    if (!err_is(e))
        e = db_run(db, "INSERT INTO ledger_copies VALUES(?,?,?,?,?,?,?,?,?,?)", "ititiihddi", run,
                   member, (int64_t)number, (const char *)text.data, (int64_t)c->ours,
                   (int64_t)c->round, c->ours ? &c->released : NULL, c->charged.noise,
                   c->charged.sampling, (int64_t)c->charged.count);
    bytes_close(&text);
    return e;
}

/* A member has one ledger for all its runs. If two copies have the same first line but differ
 * later, the member has continued from an old backup, and the charges in between are missing in
 * one of them. */
static err check_fork(struct db *db, int64_t run, const char *member, uint64_t first)
{
    struct db_query q = {0};
    bool row = false;
    TRY(db_query_open(
        &q, db,
        "SELECT mine.line, r.name FROM ledger_copies mine JOIN runs r ON r.id<>mine.run"
        " JOIN ledger_copies was ON was.run=r.id AND was.member=mine.member"
        " AND was.line=mine.line AND was.text<>mine.text"
        " WHERE mine.run=? AND mine.member=? AND mine.line>=? AND"
        " (SELECT text FROM ledger_copies WHERE run=mine.run AND member=mine.member"
        " AND line=1) = (SELECT text FROM ledger_copies WHERE run=r.id AND"
        " member=mine.member AND line=1) ORDER BY mine.line LIMIT 1",
        "iti", run, member, (int64_t)first));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row)
        e = err_make(ERR_INPUT,
                     "line %lld differs from the one sent for run %s. The ledger may be an old "
                     "backup: restore the newest copy (`fedlora run audit` has the one sent)",
                     (long long)db_query_int(&q, 0), db_query_text(&q, 1));
    db_query_close(&q);
    return e;
}

/* The check comes after the rows and inside the transaction, so a refused copy leaves no row. */
err store_copies_add(struct store *store, int64_t run, const char *member, uint64_t first,
                     const struct store_copy *line, size_t count)
{
    err e = ERR_NONE;
    TRY(db_begin(&store->db));
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = insert_copy(&store->db, run, member, first + i, &line[i]);
    if (!err_is(e)) e = check_fork(&store->db, run, member, first);
    return db_end(&store->db, e);
}

/* Grouped by noise and sampling rate, because the accountant takes a count of equal events. */
static err list_events(struct account_event **event, size_t *count, struct db_query *q,
                       struct arena *arena)
{
    struct account_event *list = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&list, arena, SPEND_KINDS, sizeof *list));
    TRY(db_query_next(&row, q));
    while (row) {
        if (n == SPEND_KINDS)
            return err_make(ERR_LIMIT, "more than %d kinds of releases in one ledger", SPEND_KINDS);
        list[n++] = (struct account_event){.noise = db_query_num(q, 0),
                                           .sampling = db_query_num(q, 1),
                                           .count = (uint64_t)db_query_int(q, 2)};
        TRY(db_query_next(&row, q));
    }
    *event = list;
    *count = n;
    return ERR_NONE;
}

err store_copies_charged(bool *found, struct account_event **event, size_t *count,
                         struct store *store, const struct store_update *u, struct arena *arena)
{
    struct db_query q = {0};
    int64_t there = 0;
    TRY(db_number(&there, &store->db,
                  "SELECT EXISTS(SELECT 1 FROM ledger_copies WHERE run=? AND member=? AND ours=1"
                  " AND round=? AND released=?)",
                  "itih", u->run, u->member, (int64_t)u->trained_round, &u->blob.digest));
    TRY(db_query_open(&q, &store->db,
                      "SELECT noise,sampling,sum(count) FROM ledger_copies"
                      " WHERE run=? AND member=? AND ours=1 GROUP BY noise,sampling",
                      "it", u->run, u->member));
    err e = list_events(event, count, &q, arena);
    db_query_close(&q);
    *found = there != 0;
    return e;
}

/* With a single max() in a query, SQLite takes the other columns from the row of the maximum, so
 * `text` is the newest such line of each member. */
err store_copies_spent(double *epsilon, const char **member, struct store *store, int64_t run,
                       struct arena *arena)
{
    struct db_query q = {0};
    double most = 0, spent = 0;
    bool row = true;
    *member = NULL;
    TRY(db_query_open(&q, &store->db,
                      "SELECT member, text FROM ledger_copies c WHERE run=?1 AND ours=1 AND line="
                      "(SELECT max(line) FROM ledger_copies WHERE run=?1 AND member=c.member"
                      " AND ours=1) ORDER BY member",
                      "i", run));
    err e = db_query_next(&row, &q);
    while (!err_is(e) && row) {
        const char *id = db_query_text(&q, 0);
        e = read_epsilon(&spent, db_query_text(&q, 1));
        if (!err_is(e) && spent > most) {
            most = spent;
            e = arena_text(member, arena, id, strlen(id));
        }
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    *epsilon = most;
    return e;
}

err store_copies_members(const char ***out, size_t *count, struct store *store, int64_t run,
                         struct arena *arena)
{
    struct db_query q = {0};
    const char **list = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&list, arena, LIMIT_MEMBERS, sizeof *list));
    TRY(db_query_open(&q, &store->db,
                      "SELECT DISTINCT member FROM ledger_copies WHERE run=? ORDER BY member", "i",
                      run));
    err e = db_query_next(&row, &q);
    while (!err_is(e) && row && n < LIMIT_MEMBERS) {
        const char *id = db_query_text(&q, 0);
        e = arena_text(&list[n++], arena, id, strlen(id));
        if (!err_is(e)) e = db_query_next(&row, &q);
    }
    db_query_close(&q);
    *out = list;
    *count = n;
    return e;
}
