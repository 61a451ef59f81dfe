/* Members and operators of the federation, their certificates and their tokens. Like all of the
 * store (store.h): each function is one transaction, and its effect is durable on success.
 *
 * The states of an identity:
 *
 *     invited   named by a token that was not used yet; it may be in a run already
 *     active    a member or operator
 *     removed   it was listed in the configuration file, and is not any more
 *     revoked   by an operator; its calls are refused until it is added again
 *
 * Secrets of tokens are never stored, only their BLAKE2b-256 digests. Times are wall clock. */
#ifndef COORDINATOR_STORE_IDENTITY_H
#define COORDINATOR_STORE_IDENTITY_H

#include "coordinator/store/store.h"

enum { STORE_STATE_BYTES = 16 };
#define STORE_INVITED "invited"
#define STORE_ACTIVE "active"
#define STORE_REMOVED "removed"
#define STORE_REVOKED "revoked"

struct store_who { /* role: "client" or "admin" */
    const char *role, *id;
};

struct store_identity {
    struct store_who who;
    const char *state, *name, *added_by, *reason;
    uint64_t added_ms, changed_ms;
    bool recorded;  /* only certificates of the store are good */
    bool keep_runs; /* of a revoked one */
    /* As far as they were saved: the last call, and the newest certificate's end. */
    uint64_t seen_ms;
    const char *address, *software;
    int64_t ends_s;
};

/* By role and id. `after` NULL: from the first; at most `most`. */
err store_identities(struct store_identity **out, size_t *count, struct store *store,
                     const struct store_who *after, size_t most, struct arena *arena);
err store_identity_find(bool *found, struct store_identity *out, struct store *store,
                        const struct store_who *who, struct arena *arena);

struct store_act { /* who does it, and when */
    const char *by;
    uint64_t now_ms;
};
/* Takes over the names of the configuration file: new ones are added, and those that came from the
 * file and are not in it any more are removed. An empty list changes nothing. *changed: rows. */
err store_identity_import(size_t *changed, struct store *store, const char *role,
                          const char *const *id, size_t count, uint64_t now_ms);
/* A new identity of this state, or a known one that is not active or revoked; with `again` a
 * revoked one too, whose older certificates stay bad. */
err store_identity_add(struct store *store, const struct store_who *who, const char *state,
                       bool again, const struct store_act *act);
/* The name shown to people. *found false: there is no such identity. */
err store_identity_rename(bool *found, struct store *store, const struct store_who *who,
                          const char *name);
/* With all of its certificates and open tokens. */
err store_identity_revoke(struct store *store, const struct store_who *who, const char *reason,
                          bool keep_runs, const struct store_act *act);
/* Saves what calls have shown: seen_ms, address, software, ends_s. Unknown ones are skipped. */
err store_identity_seen(struct store *store, const struct store_identity *row, size_t count);

struct store_certificate {
    struct store_who who;
    const char *serial, *how, *reason; /* how: enrolled, renewed, signed */
    struct digest key;
    int64_t begins_s, ends_s;
    uint64_t issued_ms, revoked_ms;
};
/* The newest first, at most `most`. */
err store_certificates(struct store_certificate **out, size_t *count, struct store *store,
                       const struct store_who *who, size_t most, struct arena *arena);
/* A new certificate, which makes its owner active. ERR_REFUSED: the owner was revoked. */
err store_certificate_add(struct store *store, const struct store_certificate *row,
                          const struct store_act *act);
/* *found false: the owner has no certificate of this serial that is known here; it is recorded as
 * revoked all the same, because the file of an external authority may hold it. */
err store_certificate_revoke(bool *found, struct store *store, const struct store_who *who,
                             const char *serial, const char *reason, uint64_t now_ms);
/* *good: the certificate is known and not revoked. For identities that are `recorded`. */
err store_certificate_good(bool *good, struct store *store, const char *serial);
/* Serials of revoked certificates that have not ended, sorted. */
err store_certificates_revoked(const char ***out, size_t *count, struct store *store, int64_t now_s,
                               struct arena *arena);

struct store_token {
    int64_t number;
    struct store_who who;
    struct digest secret; /* of its 16 bytes */
    const char *server, *made_by, *used_from, *serial, *chain;
    uint64_t made_ms, ends_ms, revoked_ms, used_ms; /* 0: not yet */
    struct digest used_key;
};
/* Adds the token, and its owner as invited. ERR_REFUSED: the owner was revoked. ERR_LIMIT:
 * tokens_max tokens are open. */
err store_token_add(struct store *store, const struct store_token *token, size_t tokens_max);
err store_token_find(bool *found, struct store_token *out, struct store *store,
                     const struct digest *secret, struct arena *arena);
/* The newest first, those with a number below `before`; 0: all. */
err store_tokens(struct store_token **out, size_t *count, struct store *store, int64_t before,
                 size_t most, struct arena *arena);
/* *count: tokens that were open. */
err store_token_revoke(size_t *count, struct store *store, const struct store_who *who,
                       uint64_t now_ms);
/* Use of a token: its row, the certificate, and its owner become one transaction. ERR_STATE: it was
 * used or revoked in the meantime. */
err store_token_use(struct store *store, const struct store_token *token, const char *chain,
                    const struct store_certificate *certificate, const char *address,
                    uint64_t now_ms);

/* ---- for store_certificate.c and store_token.c: parts of a transaction */
err store_identity_state(char out[STORE_STATE_BYTES], struct db *db, const struct store_who *who);
err store_identity_was_revoked(const struct store_who *who); /* ERR_REFUSED */
/* A new identity, or one that is not active, gets this state. */
err store_identity_put(struct db *db, const struct store_who *who, const char *state,
                       const char *origin, const struct store_act *act);
err store_certificate_insert(struct db *db, const struct store_certificate *row,
                             const struct store_act *act);

/* Forgets tokens that ended more than a month ago, and certificates that ended more than a year
 * ago. */
err store_identity_sweep(struct store *store, uint64_t now_ms);

#endif
