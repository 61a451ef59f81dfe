/* The members and operators that may call: as the store has them, in memory, with their last calls.
 *
 * The store owns the list (store_identity.h); names of the configuration file are imported at the
 * start and at each reload. Every change is made in the store first and then loaded by
 * serve_identity_load(), which also tells the runs and ends connections of those that were revoked.
 * Loop thread. */
#ifndef COORDINATOR_SERVE_IDENTITY_H
#define COORDINATOR_SERVE_IDENTITY_H

#include "base/log.h"
#include "coordinator/store/store_identity.h"
#include "proto/rpc.h"

struct serve;

enum { SERVE_SOFTWARE_BYTES = 64 };

struct serve_identity {
    enum rpc_role role;
    char id[LIMIT_NAME_BYTES];
    bool revoked, recorded;
    bool cut_off;     /* its connections were ended since it was revoked or removed */
    bool fresh;       /* what follows is newer than in the store */
    uint64_t seen_ms; /* wall clock; 0: it has not called */
    char address[RPC_ADDRESS_BYTES], software[SERVE_SOFTWARE_BYTES];
    int64_t ends_s; /* of the newest certificate that was issued to it, or seen */
};

struct serve_identities {
    struct serve_identity *row; /* (count) sorted by role name and id */
    size_t count, room;
    char (*revoked)[RPC_SERIAL_BYTES]; /* (revoked_count) sorted */
    size_t revoked_count;
    uint64_t next_save_ms; /* monotonic */
};

/* Imports the lists of the file, and loads. */
err serve_identity_open(struct serve *s);
err serve_identity_load(struct serve *s);
void serve_identity_close(struct serve *s); /* saves what calls have shown */
/* Called in each turn: saves once an hour. */
void serve_identity_turn(struct serve *s, uint64_t now_ms);

/* ERR_REFUSED: the identity or this certificate was revoked. Asked before each call, so that a
 * connection that outlives a revocation is of no use. */
err serve_identity_check(struct serve *s, const struct rpc_peer *peer);
/* Notes the call. */
void serve_identity_seen(struct serve *s, const struct rpc_peer *peer);
void serve_identity_software(struct serve *s, const struct rpc_peer *peer, const char *software);
const struct serve_identity *serve_identity_find(const struct serve *s, enum rpc_role role,
                                                 const char *id); /* or NULL */

/* "client" or "admin"; "" is "client". ERR_INPUT: another role, or no name. */
err serve_identity_who(struct store_who *out, enum rpc_role *role, const char *role_text,
                       const char *id);

/* Every action on identities, certificates and tokens, for both logs. outcome: "ok" or
 * "refused". */
struct serve_action {
    const char *action, *object, *outcome;
    const struct log_field *field; /* at most 8 */
    size_t fields;
};
void serve_identity_record(struct serve *s, const struct rpc_peer *peer,
                           const struct serve_action *action);
#define SERVE_RECORD(s_, peer_, action_, object_, outcome_, ...)                                   \
    serve_identity_record(                                                                         \
        (s_), (peer_),                                                                             \
        &(struct serve_action){.action = (action_),                                                \
                               .object = (object_),                                                \
                               .outcome = (outcome_),                                              \
                               .field = (const struct log_field[]){__VA_ARGS__},                   \
                               .fields = sizeof((const struct log_field[]){__VA_ARGS__}) /         \
                                         sizeof(struct log_field)})

#endif
