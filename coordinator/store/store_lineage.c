/* The lineage of states: which updates, programs and configurations they were made from. These rows
 * outlive the files and the rows of the updates, because a published state may be questioned years
 * later. */
#include "coordinator/store/store.h"

#include <string.h>

/* The text is stored once, and named by its digest everywhere else. */
static err note_software(struct digest *out, struct db *db, const char *text)
{
    const char *known = text ? text : "";
    *out = digest_of(known, strlen(known));
    return db_run(db, "INSERT INTO software(digest,text) VALUES(?,?) ON CONFLICT DO NOTHING", "ht",
                  out, known);
}

err store_lineage_hello(struct db *db, int64_t run, const struct store_member *m)
{
    struct digest software;
    if (!m->software) return ERR_NONE;
    TRY(note_software(&software, db, m->software));
    return db_run(db, "UPDATE members SET software=? WHERE run=? AND id=?", "hit", &software, run,
                  m->id);
}

/* The member's program is that of its newest Hello, which it says after each of its starts. */
static err insert_counted(struct db *db, const struct store_publish *p, size_t i)
{
    const struct store_update *u = &p->made.update[i];
    return db_run(db,
                  "INSERT INTO counted(run,round,member,made_for,digest,size,examples,weight,"
                  "software) SELECT ?,?,?,?,?,?,?,?,(SELECT software FROM members"
                  " WHERE run=? AND id=?)",
                  "iitihiidit", p->run, (int64_t)p->round.round, u->member,
                  (int64_t)u->trained_round, &u->blob.digest, (int64_t)u->blob.size,
                  (int64_t)u->examples, p->made.weight[i], p->run, u->member);
}

err store_lineage_publish(struct db *db, const struct store_publish *p)
{
    struct digest software;
    if (!p->made.software) return ERR_NONE;
    TRY(note_software(&software, db, p->made.software));
    TRY(db_run(db, "INSERT INTO made(run,round,config,software) VALUES(?,?,?,?)", "iihh", p->run,
               (int64_t)p->round.round, &p->made.config, &software));
    for (size_t i = 0; i < p->made.updates; i++)
        TRY(insert_counted(db, p, i));
    return ERR_NONE;
}

/* Rounds of older versions have no row in `made`: the outer join keeps them, not `known`. */
static err read_rounds(struct store_lineage *row, size_t *count, struct db_query *q, size_t most,
                       struct arena *arena)
{
    for (bool any = true; *count < most;) {
        TRY(db_query_next(&any, q));
        if (!any) return ERR_NONE;
        struct store_lineage *r = &row[(*count)++];
        r->round = (uint32_t)db_query_int(q, 0);
        if (db_query_digest(&r->state.digest, q, 1)) r->state.size = (uint64_t)db_query_int(q, 2);
        r->updates = (uint32_t)db_query_int(q, 3);
        r->known = db_query_digest(&r->config, q, 4);
        TRY(db_query_copy(&r->software, q, 5, arena));
    }
    return ERR_NONE;
}

/* In pages, because a run may have 100,000 rounds. */
err store_lineage_rounds(struct store_lineage **out, size_t *count, struct store *store,
                         int64_t run, uint32_t after, size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct store_lineage *row = NULL;
    size_t n = 0;
    int64_t least = after == UINT32_MAX ? 0 : (int64_t)after + 1;
    TRY(arena_take(&row, arena, most, sizeof *row));
    TRY(db_query_open(&q, &store->db,
                      "SELECT r.round,r.state,r.state_size,r.updates,m.config,s.text FROM rounds r"
                      " LEFT JOIN made m ON m.run=r.run AND m.round=r.round"
                      " LEFT JOIN software s ON s.digest=m.software"
                      " WHERE r.run=? AND r.round>=? ORDER BY r.round LIMIT ?",
                      "iii", run, least, (int64_t)most));
    err e = read_rounds(row, &n, &q, most, arena);
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = row;
    *count = n;
    return ERR_NONE;
}

static err read_counted(struct store_counted *row, size_t *count, struct db_query *q, size_t most,
                        struct arena *arena)
{
    for (bool any = true; *count < most;) {
        TRY(db_query_next(&any, q));
        if (!any) return ERR_NONE;
        struct store_counted *c = &row[(*count)++];
        TRY(db_query_copy(&c->member, q, 0, arena));
        c->trained_round = (uint32_t)db_query_int(q, 1);
        if (db_query_digest(&c->blob.digest, q, 2)) c->blob.size = (uint64_t)db_query_int(q, 3);
        c->examples = (uint64_t)db_query_int(q, 4);
        c->weight = db_query_num(q, 5);
        TRY(db_query_copy(&c->software, q, 6, arena));
    }
    return ERR_NONE;
}

err store_lineage_counted(struct store_counted **out, size_t *count, struct store *store,
                          int64_t run, uint32_t round, const char *after, size_t most,
                          struct arena *arena)
{
    struct db_query q = {0};
    struct store_counted *row = NULL;
    size_t n = 0;
    TRY(arena_take(&row, arena, most, sizeof *row));
    TRY(db_query_open(&q, &store->db,
                      "SELECT c.member,c.made_for,c.digest,c.size,c.examples,c.weight,s.text"
                      " FROM counted c LEFT JOIN software s ON s.digest=c.software"
                      " WHERE c.run=? AND c.round=? AND c.member>? ORDER BY c.member LIMIT ?",
                      "iiti", run, (int64_t)round, after, (int64_t)most));
    err e = read_counted(row, &n, &q, most, arena);
    db_query_close(&q);
    if (err_is(e)) return e;
    for (size_t i = 0; i < n; i++)
        row[i].round = round;
    *out = row;
    *count = n;
    return ERR_NONE;
}

/* The newest, because two rounds may publish equal bytes: then both descriptions are true, and the
 * later one has the longer history. */
err store_lineage_find(uint32_t *round, uint64_t *size, struct store *store, int64_t run,
                       const struct digest *state)
{
    struct db_query q = {0};
    bool row = false;
    char text[DIGEST_TEXT_BYTES];
    TRY(db_query_open(&q, &store->db,
                      "SELECT round,state_size FROM rounds WHERE run=? AND state=?"
                      " ORDER BY round DESC LIMIT 1",
                      "ih", run, state));
    err e = db_query_next(&row, &q);
    if (!err_is(e) && row) {
        *round = (uint32_t)db_query_int(&q, 0);
        *size = (uint64_t)db_query_int(&q, 1);
    }
    db_query_close(&q);
    digest_text(text, state);
    if (!err_is(e) && !row) e = err_make(ERR_STATE, "it has not published state %.16s...", text);
    return e;
}
