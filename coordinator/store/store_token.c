/* Tokens: a secret that gives one certificate to its owner, once. */
#include "coordinator/store/store_identity.h"

#include <string.h>

#define TOKEN_COLUMNS                                                                              \
    "number,role,id,secret,server,made_by,used_from,serial,chain,made_ms,ends_ms,revoked_ms,"      \
    "used_ms,used_key"

static err read_token(struct store_token *t, const struct db_query *q, struct arena *arena)
{
    t->number = db_query_int(q, 0);
    TRY(db_query_copy(&t->who.role, q, 1, arena));
    TRY(db_query_copy(&t->who.id, q, 2, arena));
    (void)db_query_digest(&t->secret, q, 3);
    TRY(db_query_copy(&t->server, q, 4, arena));
    TRY(db_query_copy(&t->made_by, q, 5, arena));
    TRY(db_query_copy(&t->used_from, q, 6, arena));
    TRY(db_query_copy(&t->serial, q, 7, arena));
    TRY(db_query_copy(&t->chain, q, 8, arena));
    t->made_ms = (uint64_t)db_query_int(q, 9);
    t->ends_ms = (uint64_t)db_query_int(q, 10);
    t->revoked_ms = (uint64_t)db_query_int(q, 11);
    t->used_ms = (uint64_t)db_query_int(q, 12);
    (void)db_query_digest(&t->used_key, q, 13);
    return ERR_NONE;
}

/* By digest: the time that the search takes says nothing about the secret itself. */
err store_token_find(bool *found, struct store_token *out, struct store *store,
                     const struct digest *secret, struct arena *arena)
{
    struct db_query q = {0};
    TRY(db_query_open(&q, &store->db, "SELECT " TOKEN_COLUMNS " FROM tokens WHERE secret=?", "h",
                      secret));
    err e = db_query_next(found, &q);
    if (!err_is(e) && *found) e = read_token(out, &q, arena);
    db_query_close(&q);
    return e;
}

/* By number and not by time, because two tokens may be made in the same millisecond. */
err store_tokens(struct store_token **out, size_t *count, struct store *store, int64_t before,
                 size_t most, struct arena *arena)
{
    struct db_query q = {0};
    struct store_token *list = NULL;
    size_t n = 0;
    bool row = true;
    TRY(arena_take(&list, arena, most, sizeof *list));
    TRY(db_query_open(&q, &store->db,
                      "SELECT " TOKEN_COLUMNS " FROM tokens WHERE number<? ORDER BY number DESC"
                      " LIMIT ?",
                      "ii", before ? before : INT64_MAX, (int64_t)most));
    err e = ERR_NONE;
    while (n < most && !err_is(e)) {
        e = db_query_next(&row, &q);
        if (err_is(e) || !row) break;
        e = read_token(&list[n++], &q, arena);
    }
    db_query_close(&q);
    if (err_is(e)) return e;
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* Counted and added in one transaction, so that two calls at once cannot pass the limit. The secret
 * is unique, so a token that exists is never replaced. */
static err add(struct db *db, const struct store_token *t, size_t tokens_max)
{
    const struct store_act act = {t->made_by, t->made_ms};
    char is[STORE_STATE_BYTES];
    int64_t open = 0;
    TRY(store_identity_state(is, db, &t->who));
    if (!strcmp(is, STORE_REVOKED)) return store_identity_was_revoked(&t->who);
    TRY(db_number(&open, db,
                  "SELECT count(*) FROM tokens WHERE used_ms=0 AND revoked_ms=0 AND ends_ms>?", "i",
                  (int64_t)t->made_ms));
    if ((size_t)open >= tokens_max)
        return err_make(ERR_LIMIT, "%zu tokens are open, the most that are kept", tokens_max);
    TRY(db_run(db,
               "INSERT INTO tokens(secret,role,id,server,made_by,made_ms,ends_ms)"
               " VALUES(?,?,?,?,?,?,?)",
               "httttii", &t->secret, t->who.role, t->who.id, t->server, t->made_by,
               (int64_t)t->made_ms, (int64_t)t->ends_ms));
    return store_identity_put(db, &t->who, STORE_INVITED, "token", &act);
}

err store_token_add(struct store *store, const struct store_token *token, size_t tokens_max)
{
    TRY(db_begin(&store->db));
    return db_end(&store->db, add(&store->db, token, tokens_max));
}

/* Tokens that were used or have ended keep their state, so that a list still says what happened. */
err store_token_revoke(size_t *count, struct store *store, const struct store_who *who,
                       uint64_t now_ms)
{
    TRY(db_run(&store->db,
               "UPDATE tokens SET revoked_ms=? WHERE role=? AND id=? AND revoked_ms=0"
               " AND used_ms=0 AND ends_ms>?",
               "itti", (int64_t)now_ms, who->role, who->id, (int64_t)now_ms));
    *count = (size_t)store->db.changes;
    return ERR_NONE;
}

/* The condition makes a second use of the same token, which began before the first one ended,
 * change no row. */
static err use(struct db *db, const struct store_token *t, const char *chain,
               const struct store_certificate *certificate, const struct store_act *act,
               const char *address)
{
    TRY(db_run(db,
               "UPDATE tokens SET used_ms=?, used_from=?, used_key=?, serial=?, chain=?"
               " WHERE number=? AND used_ms=0 AND revoked_ms=0",
               "ithtti", (int64_t)act->now_ms, address, &certificate->key, certificate->serial,
               chain, t->number));
    if (db->changes != 1)
        return err_make(ERR_STATE, "this token of %s was used or revoked a moment ago", t->who.id);
    return store_certificate_insert(db, certificate, act);
}

err store_token_use(struct store *store, const struct store_token *token, const char *chain,
                    const struct store_certificate *certificate, const char *address,
                    uint64_t now_ms)
{
    const struct store_act act = {token->made_by, now_ms};
    TRY(db_begin(&store->db));
    return db_end(&store->db, use(&store->db, token, chain, certificate, &act, address));
}
