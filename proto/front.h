/* The server's front: everything between the network and gRPC. One thread owns the listening
 * sockets. It accepts, does the TLS handshake, and relays between the client and a socket pair
 * whose other end is given to gRPC, after it has checked each HTTP/2 frame (front_frame.h).
 *
 *     client == TLS == front thread == socket pair == gRPC, polled by the loop thread
 *
 * So no client reaches gRPC before its certificate was checked, and the limits on descriptors,
 * handshakes, connections and frames do not depend on gRPC. The front gives each connection a
 * random name and writes it into the :authority of each call; front_find() returns the peer of that
 * name. A descriptor's number would not do, because numbers are used again.
 *
 * Every function may be called from any thread, but open and close from one only. */
#ifndef PROTO_FRONT_H
#define PROTO_FRONT_H

#include "proto/rpc.h"

struct front;

struct front_options {
    const char *listen, *host, *port; /* "host:port" for errors, and its parts */
    const char *ca, *cert, *key;      /* PEM files */
    /* No certificate is asked for: all peers are RPC_NONE, of this federation, and limited by
     * address. The server sends its root too, so that a client that has only the root's hash can
     * verify it. NULL: peers need a certificate. */
    const char *open_to;
    uint32_t streams_max; /* calls of one connection at once */
    /* Called in the front's thread: takes over a connected descriptor. */
    void (*give)(void *give_context, int fd);
    void *give_context;
    void (*event)(void *event_context, const struct rpc_event *event); /* or NULL */
    void (*count)(void *event_context, const struct rpc_event *event); /* or NULL */
    void *event_context;
};

err front_open(struct front **out, const struct front_options *options);
int front_port(const struct front *front);
/* Uses other certificate files for new connections. On an error the old ones stay in use. */
err front_reload(struct front *front, const char *ca, const char *cert, const char *key);
/* False: the connection of this name has ended. */
bool front_find(struct rpc_peer *peer, struct front *front, const char *authority);
err front_drop(struct front *front, enum rpc_role role, const char *id);
void front_drain(struct front *front); /* no `give` begins after it has returned */
void front_shut(struct front *front);  /* drains, and ends all connections at once */
void front_close(struct front *front); /* shuts, and ends the thread; NULL is fine */

#endif
