/* Certificates that were issued here, and serials of others that were revoked. */
#include "coordinator/store/store_identity.h"

#include <string.h>

enum { DAY_S = 24 * 60 * 60, UNKNOWN_DAYS = 10 * 365 };

/* At most `most` rows are read, however many a member has. */
err store_certificates(struct store_certificate **out, size_t *count, struct store *store,
                       const struct store_who *who, size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct store_certificate *list = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&list, arena, most, sizeof *list));
    TRY(db_query_open(&q, &store->db,
                      "SELECT serial,how,reason,begins_s,ends_s,issued_ms,revoked_ms,key"
                      " FROM certificates WHERE role=? AND id=? ORDER BY issued_ms DESC"
                      " LIMIT ?",
                      "tti", who->role, who->id, (int64_t)most));
    err e = ERR_NONE;
    while (n < most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        struct store_certificate *c = &list[n++];
        c->who = *who;
        e = db_query_copy(&c->serial, &q, 0, arena);
        if (!err_is(e)) e = db_query_copy(&c->how, &q, 1, arena);
        if (!err_is(e)) e = db_query_copy(&c->reason, &q, 2, arena);
        c->begins_s = db_query_int(&q, 3);
        c->ends_s = db_query_int(&q, 4);
        c->issued_ms = (uint64_t)db_query_int(&q, 5);
        c->revoked_ms = (uint64_t)db_query_int(&q, 6);
        (void)db_query_digest(&c->key, &q, 7);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* The state is read inside the transaction: an operator may have revoked the owner while the signer
 * was at work. */
err store_certificate_insert(struct db *db, const struct store_certificate *c,
                             const struct store_act *act)
{
    char is[STORE_STATE_BYTES];
    TRY(store_identity_state(is, db, &c->who));
    if (!strcmp(is, STORE_REVOKED)) return store_identity_was_revoked(&c->who);
    TRY(db_run(db,
               "INSERT INTO certificates(serial,role,id,key,begins_s,ends_s,how,issued_ms)"
               " VALUES(?,?,?,?,?,?,?,?)",
               "ttthiiti", c->serial, c->who.role, c->who.id, &c->key, c->begins_s, c->ends_s,
               c->how, (int64_t)act->now_ms));
    TRY(store_identity_put(db, &c->who, STORE_ACTIVE, "token", act));
    return db_run(db, "UPDATE identities SET ends_s=? WHERE role=? AND id=?", "itt", c->ends_s,
                  c->who.role, c->who.id);
}

err store_certificate_add(struct store *store, const struct store_certificate *row,
                          const struct store_act *act)
{
    TRY(db_begin(&store->db));
    return db_end(&store->db, store_certificate_insert(&store->db, row, act));
}

/* Its end is not known here, so it is remembered for longer than any certificate should live. */
static err insert_unknown(struct db *db, const struct store_who *who, const char *serial,
                          const char *reason, int64_t now_ms)
{
    static const struct digest none;
    return db_run(db, "INSERT INTO certificates VALUES(?,?,?,?,0,?,'unknown',?,?,?)", "ttthiiit",
                  serial, who->role, who->id, &none, now_ms / 1000 + (int64_t)UNKNOWN_DAYS * DAY_S,
                  now_ms, now_ms, reason);
}

/* A serial of somebody else is a slip of the operator. Revoking it would cut off another member
 * than the audit log names. */
static err check_owner(struct db *db, const struct store_who *who, const char *serial)
{
    int64_t others = 0;
    TRY(db_number(&others, db,
                  "SELECT count(*) FROM certificates WHERE serial=? AND NOT (role=? AND id=?)",
                  "ttt", serial, who->role, who->id));
    if (!others) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "certificate %s is not of %s as %s; fedlora member show lists its own", serial,
                    who->id, who->role);
}

/* One transaction with the token, or a thief could get the same certificate again. */
err store_certificate_revoke(bool *found, struct store *store, const struct store_who *who,
                             const char *serial, const char *reason, uint64_t now_ms)
{
    struct db *db = &store->db;
    TRY(db_begin(db));
    err e = check_owner(db, who, serial);
    if (!err_is(e))
        e = db_run(db, "UPDATE certificates SET revoked_ms=?, reason=? WHERE serial=?", "itt",
                   (int64_t)now_ms, reason, serial);
    bool known = !err_is(e) && db->changes > 0;
    /* The token that gave it gives it no more. */
    if (!err_is(e)) e = db_run(db, "UPDATE tokens SET chain='' WHERE serial=?", "t", serial);
    if (!err_is(e) && !known) e = insert_unknown(db, who, serial, reason, (int64_t)now_ms);
    e = db_end(db, e);
    if (!err_is(e)) *found = known;
    return e;
}

/* Asked at each call of an identity that was revoked once. That is rare, so it is not in memory. */
err store_certificate_good(bool *good, struct store *store, const char *serial)
{
    int64_t count = 0;
    TRY(db_number(&count, &store->db,
                  "SELECT count(*) FROM certificates WHERE serial=? AND revoked_ms=0", "t",
                  serial));
    *good = count > 0;
    return ERR_NONE;
}

/* Sorted by the database in the order of bytes, which is that of strcmp(). */
err store_certificates_revoked(const char ***out, size_t *count, struct store *store, int64_t now_s,
                               struct arena *arena)
{
    struct db_query q = {0};
    const char **list = NULL;
    int64_t most = 0;
    size_t n = 0;
    bool row = true;
    TRY(db_number(&most, &store->db,
                  "SELECT count(*) FROM certificates WHERE revoked_ms>0 AND ends_s>=?", "i",
                  now_s));
    TRY(arena_take(&list, arena, (size_t)most, sizeof *list));
    TRY(db_query_open(&q, &store->db,
                      "SELECT serial FROM certificates WHERE revoked_ms>0 AND ends_s>=?"
                      " ORDER BY serial",
                      "i", now_s));
    err e = ERR_NONE;
    while (n < (size_t)most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        e = db_query_copy(&list[n++], &q, 0, arena);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = list;
    *count = n;
    return ERR_NONE;
}
