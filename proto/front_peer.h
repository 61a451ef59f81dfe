/* The identities or the addresses that have connected to the server lately: their budgets, their
 * connections, and for how long they are refused. A bounded hash table; entries in use are never
 * dropped. Pure but for its random hash key: the caller passes the time. */
#ifndef PROTO_FRONT_PEER_H
#define PROTO_FRONT_PEER_H

#include "base/limits.h"
#include "proto/front_budget.h"

#include "base/err.h"

#include <stddef.h>

enum {
    FRONT_PEER_NAME = 2 * LIMIT_NAME_BYTES + 16, /* "FEDERATION/client/ID", or an address */
    FRONT_PEER_REFUSE_MS = 5000,                 /* after the first offence; then twice as long */
    FRONT_PEER_REFUSE_MOST_MS = 60 * 1000,
    FRONT_PEER_FORGET_MS = 10 * 60 * 1000, /* without an offence, the count starts again */
};

struct front_peer {
    struct front_peer *next; /* in its bucket */
    char name[FRONT_PEER_NAME];
    struct front_budget budget; /* of an identity */
    size_t connections;         /* that hold this entry */
    size_t handshakes;          /* those of an address that have no identity yet */
    uint64_t served_ms;         /* a connection was last given to it; 0: never */
    uint64_t seen_ms, refused_until_ms, offence_ms;
    unsigned offences;
    /* The last line about this peer, and the events since then that were not reported. */
    uint64_t reported_ms, left_out;
    bool reported;
};

struct front_peers {
    struct front_peer **bucket;
    size_t count, max, swept;
    unsigned char key[16];
};

err front_peers_open(struct front_peers *out, size_t max);
void front_peers_close(struct front_peers *peers); /* accepts a zeroed struct */
/* Finds or makes the entry; NULL if the table is full of entries in use, or memory is. */
struct front_peer *front_peers_take(struct front_peers *peers, const char *name, uint64_t now_ms);

/* Refuses the peer from now on; returns for how many milliseconds. */
uint64_t front_peer_refuse(struct front_peer *peer, uint64_t now_ms);
bool front_peer_is_refused(const struct front_peer *peer, uint64_t now_ms);
/* True if an event of this peer may be reported now, at most once a minute. *left_out: how many
 * were not, since the last one. */
bool front_peer_may_report(struct front_peer *peer, uint64_t *left_out, uint64_t now_ms);

#endif
