/* Shared by proto/front.c, front_pool.c and front_conn.c: the thread and its connections. */
#ifndef PROTO_FRONT_INTERNAL_H
#define PROTO_FRONT_INTERNAL_H

#include "proto/front.h"
#include "proto/front_frame.h"
#include "proto/front_listen.h"
#include "proto/front_peer.h"
#include "proto/front_tls.h"

#include <pthread.h>
#include <stdatomic.h>

enum {
    FRONT_SCRATCH = 16384, /* the payload of one TLS record */
    FRONT_NAMES = 4096,    /* buckets */
    FRONT_HANDSHAKE_MS = 10 * 1000,
    FRONT_SETTINGS_MS = 10 * 1000, /* from the handshake to the client's first frame */
    FRONT_STALL_MS = 60 * 1000,    /* without taking a byte of those that wait for the client */
    FRONT_LINGER_MS = 2 * 1000,    /* for the last bytes after one side has ended */
    /* One machine uses one or two. More allow an operator's scripts; 16 of 16 calls that download
     * hold 256 MB at most. */
    FRONT_IDENTITY_CONNECTIONS = 16,
};

/* The tag of an event of epoll: the address of a connection, or one of these. */
enum front_tag { FRONT_TAG_PIPE = 1, FRONT_TAG_LISTEN = 2, FRONT_TAG_WAKE = 4, FRONT_TAG_SHAKING };

enum conn_phase {
    CONN_HANDSHAKE, /* in front->shaking */
    CONN_WAITING,   /* after the handshake, until a connection is free; in front->shaking too */
    CONN_OPEN,      /* relays; in front->open */
    CONN_LINGER,    /* all was sent to the client; in front->open */
    CONN_DEAD,      /* freed at the end of the turn */
};

struct front_conn {
    struct front *front;
    struct front_conn *previous, *next; /* of its list, oldest first; the dead: next only */
    struct front_conn *name_next;       /* of its bucket of names */
    enum conn_phase phase;
    int fd, pipe;                  /* pipe: our end of the socket pair, or -1 */
    uint32_t fd_wants, pipe_wants; /* registered events */
    SSL *ssl;
    struct front_tls_notes notes;
    struct front_frame frame;
    struct bytes up, down;               /* bytes that the other side could not take yet */
    size_t up_at, down_at;               /* those of them that it has taken */
    struct front_peer *place, *identity; /* counted there; identity: NULL in the handshake */
    struct rpc_peer peer;
    char address[RPC_ADDRESS_BYTES], name[FRONT_FRAME_AUTHORITY];
    unsigned updates_seen;
    uint64_t born_ms;     /* accepted */
    uint64_t open_ms;     /* given to gRPC */
    uint64_t taken_ms;    /* the client last took bytes */
    uint64_t read_at_ms;  /* nothing is read before; 0: no pause */
    uint64_t left_ms;     /* the GOAWAY was sent */
    uint64_t close_at_ms; /* 0: not ending */
    bool ssl_writes;      /* reading must wait until the socket takes bytes */
    bool client_ended;    /* no more bytes from the client */
    bool server_ended;    /* no more bytes from gRPC */
    bool pipe_is_out;     /* not registered any more, because gRPC has hung up */
    bool pipe_is_shut;    /* gRPC was told that the client has ended */
    bool ends;            /* one side has ended */
    bool leaves;          /* a GOAWAY is to be sent, or was */
};

struct front_list {
    struct front_conn *first, *last;
    size_t count;
};

struct front_drop {
    struct front_drop *next;
    enum rpc_role role;
    char id[LIMIT_NAME_BYTES];
};

struct front {
    struct front_options options; /* its strings belong to the caller */
    struct front_listeners listeners;
    int epoll, shaking_epoll, wake; /* shaking_epoll: handshakes, so that few run in each turn */
    pthread_t thread;
    bool has_thread;
    /* Of the thread alone. */
    struct front_list shaking, open;
    size_t waiting; /* of shaking, those in CONN_WAITING */
    struct front_conn *dead;
    size_t shaking_max, open_max;
    size_t paused; /* connections with read_at_ms */
    struct front_peers places, identities;
    struct front_peer self, full; /* limit the lines about descriptors, and about connections */
    uint64_t accept_at_ms;        /* 0: accepting */
    /* Reports about all peers together, in the minute that began at reports_ms. */
    uint64_t reports_ms, reports, reports_left_out;
    uint64_t now_ms, swept_ms;
    struct bytes checked; /* output of the frame check */
    uint8_t scratch[FRONT_SCRATCH];
    /* Shared, under the lock. */
    pthread_mutex_t lock;
    SSL_CTX *context;
    struct front_conn *name[FRONT_NAMES];
    struct front_drop *drops;
    bool draining;
    atomic_bool shutting, stopping;
};

/* ---- front_conn.c: one connection */
void front_conn_new(struct front *front, int fd, struct front_peer *place, const char *address);
void front_conn_shake(struct front_conn *conn);          /* its socket is ready in the handshake */
void front_conn_turn(struct front_conn *conn, bool hup); /* one of its sockets is ready */
void front_conn_sweep(struct front_conn *conn);          /* deadlines */
void front_conn_close(struct front_conn *conn);

/* ---- front_pool.c: which connections may stay */
void front_list_add(struct front_list *list, struct front_conn *conn);
void front_list_remove(struct front_list *list, struct front_conn *conn);
void front_pool_limits(struct front *front);
/* Makes room for one handshake; false: accepting must pause. */
bool front_pool_room(struct front *front);
/* The handshake is done: gives the connection to gRPC, lets it wait, or closes it. */
void front_pool_admit(struct front_conn *conn);
void front_pool_promote(struct front *front); /* gives free connections to those that wait */
void front_pool_report(struct front *front, struct front_peer *peer, struct rpc_event *event);
void front_pool_end_full(struct front_conn *conn); /* ends one that waited; reports it */
/* The address had a handshake refused; too many, and it is refused itself for a while. */
void front_pool_charge_handshake(struct front *front, struct front_peer *place);
/* Cuts the connection off for what its client did, and refuses its identity for a while. */
void front_pool_refuse(struct front_conn *conn, const char *reason);

/* ---- front.c */
void front_name_add(struct front_conn *conn);
void front_name_remove(struct front_conn *conn);

#endif
