/* gRPC over TLS 1.3 with client certificates: the only interface to gRPC's C core. No grpc_ symbol
 * leaves proto/rpc*.c, and no message type enters it: requests and replies are bytes (message.h
 * packs them).
 *
 * SERVER. One thread (the loop thread) opens, polls, answers and closes; only rpc_server_wake() may
 * be called from other threads. Callbacks of `struct rpc_method` run inside rpc_server_poll() and
 * rpc_server_close() only. A call may be answered inside its callback or at any later time, until
 * its `over`. Callbacks by shape, and how each is answered:
 *
 *     unary       begin(request)               rpc_call_answer or rpc_call_refuse
 *     upload      begin()                      nothing yet
 *                 part(message), repeated      rpc_call_next
 *                 end()                        rpc_call_answer or rpc_call_refuse
 *     download    begin(request)               nothing yet
 *                 more(), repeated             rpc_call_send; at last rpc_call_finish, or refuse
 *     chat        begin(message), repeated     rpc_call_send; the call ends when the peer ends it
 *
 * Back-pressure: the next message of an upload is read only after rpc_call_next(); `more` of a
 * download is called only when the transport has taken the last message. So each call holds one
 * message in memory at a time.
 *
 * Every call whose `begin` ran gets `over` exactly once, however the call ends: answered, cancelled
 * by the peer, past its deadline, stalled, or the server closing. After `over` has returned, the
 * handle is invalid; before that every rpc_call_ function is safe, even if the peer has left. A
 * call is answered at most once; later answers are ignored.
 *
 * Identity is the one URI SAN of the peer's certificate, fl://FEDERATION/client/ID or
 * fl://FEDERATION/admin/ID. A peer of another federation, or of a role that the method does not
 * serve, never reaches a handler. A peer without a certificate, with one of another CA, or with one
 * that is not for clients is refused in the handshake. A second address, `open_listen`, asks for no
 * certificate; its peers have the role RPC_NONE, an address, and no identity.
 *
 * CLIENT. Synchronous calls from any thread, several at a time; each has a deadline. */
#ifndef PROTO_RPC_H
#define PROTO_RPC_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/limits.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The largest message is one chunk with its framing. */
enum {
    RPC_MESSAGE_BYTES = LIMIT_CHUNK_BYTES + 65536,
    RPC_SERIAL_BYTES = 48,
    RPC_ADDRESS_BYTES = 64,
    RPC_CERTIFICATE_DAYS = 14 /* a certificate that ends earlier is reported */
};

/* Limits the whole process to TLS 1.3, because gRPC 1.51 has no such option for clients. Call it
 * before any thread is started and before any other use of TLS. Calling it again is harmless. */
err rpc_init(void);

/* Also bits of rpc_method.roles. RPC_NONE: a peer without a certificate, on `open_listen`. */
enum rpc_role { RPC_CLIENT = 1, RPC_ADMIN = 2, RPC_NONE = 4 };
const char *rpc_role_name(enum rpc_role role); /* "client" or "admin", as in identities; "none" */

struct rpc_peer {
    enum rpc_role role;
    char federation[LIMIT_NAME_BYTES], id[LIMIT_NAME_BYTES];
    char serial[RPC_SERIAL_BYTES];   /* of the certificate, lower-case hex */
    int64_t ends_s;                  /* when the certificate ends, since 1970; 0: not known */
    char address[RPC_ADDRESS_BYTES]; /* "127.0.0.1", without the port; "": not known */
};
/* ERR_INPUT unless the URI is fl://FEDERATION/client/ID or fl://FEDERATION/admin/ID. */
err rpc_peer_parse(struct rpc_peer *out, const char *uri);

/* ---------------------------------------------------------------- server */
struct rpc_server;
struct rpc_call;

enum rpc_shape { RPC_UNARY, RPC_UPLOAD, RPC_DOWNLOAD, RPC_CHAT };

struct rpc_method {
    const char *path; /* proto/rpc_path.h */
    enum rpc_shape shape;
    unsigned roles;  /* for example RPC_CLIENT | RPC_ADMIN: peers of other roles are refused */
    bool tells_time; /* the answer also has the server's time, for rpc_client_clock() */
    void (*begin)(struct rpc_call *call, const void *request, size_t size); /* upload: NULL, 0 */
    void (*part)(struct rpc_call *call, const void *message, size_t size);  /* upload only */
    void (*end)(struct rpc_call *call);                 /* upload only: the peer has sent all */
    void (*more)(struct rpc_call *call);                /* download only */
    void (*over)(struct rpc_call *call, bool answered); /* may be NULL; answered: reply sent */
};

/* An event of the server's front, for the log. Its texts end with the callback. */
enum rpc_event_kind {
    RPC_EVENT_HANDSHAKE,   /* a handshake failed: foreign authority, no certificate, TLS 1.2, ... */
    RPC_EVENT_REFUSED,     /* a peer was cut off for what it did, and is refused for refused_ms */
    RPC_EVENT_FULL,        /* no connection is free for a peer; it was told to come back */
    RPC_EVENT_DESCRIPTORS, /* no descriptor is free; accepting pauses */
};
/* The kind of reason, for counters: a fixed list, because reasons hold texts of OpenSSL. */
enum rpc_refusal {
    RPC_REFUSAL_OTHER,
    RPC_REFUSAL_EXPIRED,     /* the certificate has ended */
    RPC_REFUSAL_AUTHORITY,   /* a certificate of another authority */
    RPC_REFUSAL_CERTIFICATE, /* one that cannot be accepted: its purpose, its identity, ... */
    RPC_REFUSAL_ABSENT,      /* no certificate */
    RPC_REFUSAL_PROTOCOL,    /* no TLS 1.3, or no HTTP/2 */
    RPC_REFUSAL_BROKEN,      /* the peer hung up in the handshake */
    RPC_REFUSAL_LIMIT,       /* too many connections, handshakes or frames */
    RPC_REFUSALS
};
const char *rpc_refusal_name(enum rpc_refusal refusal); /* "expired", "authority", ... */

struct rpc_event {
    enum rpc_event_kind kind;
    enum rpc_refusal refusal;
    const char *address, *reason;
    const struct rpc_peer *peer; /* NULL before the identity is known */
    uint64_t refused_ms;
    uint64_t left_out; /* events of this peer that were not reported, since the last that was */
};

/* The parts of a `listen`. The host may be in brackets; ERR_INPUT unless "host:port" with a port of
 * 0 to 65535. */
err rpc_wire_split(char *host, size_t host_bytes, char port[6], const char *address,
                   const char *what);

struct rpc_server_options {
    const char *listen;          /* "host:port", "[::1]:port"; port 0: any free one */
    const char *open_listen;     /* the same for peers without a certificate; NULL or "": none */
    const char *ca, *cert, *key; /* PEM files; only clients of this CA are let in */
    const char *federation;      /* federation that peers must belong to; NULL: any */
    const struct rpc_method *method;
    size_t method_count;
    void *context;
    /* Called in the polling thread before a handler runs; an error refuses the call. NULL: every
     * call is allowed. Health checks ask it too, so that doctor shows a revoked certificate. */
    err (*allow)(void *context, const struct rpc_peer *peer);
    /* Called in a thread of the server, at most once a minute for each peer. NULL: not reported. */
    void (*event)(void *context, const struct rpc_event *event);
    /* The same for each event, also for those that are left out of reports. Must be quick. */
    void (*count)(void *context, const struct rpc_event *event);
    /* Called in the polling thread when a call has its status: the procedure ("NextTask"; "other"
     * if there is no such one) and the status ("OK", "UNAVAILABLE", ...). May be NULL. */
    void (*ended)(void *context, const char *procedure, const char *code);
    /* Called in the polling thread after a call was refused before it reached a handler (no such
     * method, wrong role or federation, `allow`). May be NULL. Unknown fields of `peer` are
     * zero. */
    void (*refused)(void *context, const struct rpc_peer *peer, const char *method, err why);
    /* Asked before each reply of a handler is sent. True: the reply is held until
     * rpc_server_release(). NULL: none is held. */
    bool (*holds)(void *context);
    size_t calls_max;    /* open calls; 0: 4 * LIMIT_MEMBERS; more get RESOURCE_EXHAUSTED */
    uint64_t call_ms;    /* longest life of any call, even with a later deadline; 0: 30 min */
    uint64_t stall_ms;   /* longest wait for the peer to send or take one message; 0: 60 s */
    size_t memory_bytes; /* for the buffers of all connections; 0: 64 MiB */
};

/* Raises the process's limit of descriptors, binds, and serves. ERR_MACHINE with EADDRINUSE: the
 * port is in use. */
err rpc_server_open(struct rpc_server **out, const struct rpc_server_options *options);
int rpc_server_port(const struct rpc_server *server);
int rpc_server_open_port(const struct rpc_server *server); /* of open_listen; 0: none */
/* Waits at most timeout_ms for events, runs their callbacks, returns. */
void rpc_server_poll(struct rpc_server *server, uint64_t timeout_ms);
void rpc_server_wake(struct rpc_server *server);          /* any thread: ends a waiting poll */
size_t rpc_server_calls(const struct rpc_server *server); /* open now */
/* Sends the replies that are held. With an error, which must be temporary, each of these calls is
 * refused with it instead. */
void rpc_server_release(struct rpc_server *server, err e);
/* Sets the status that grpc.health.v1 answers, for "" and every service. Initially not serving. */
void rpc_server_set_serving(struct rpc_server *server, bool serving);
/* Reads the certificate files again, for new connections. On an error the old ones stay in use. */
err rpc_server_reload(struct rpc_server *server);
/* Refuses new calls and connections from now on; open calls continue under rpc_server_poll(). */
void rpc_server_drain(struct rpc_server *server);
/* Drains, waits up to grace_ms for open calls, cancels the others (their `over` runs), frees the
 * server. NULL is fine. */
void rpc_server_close(struct rpc_server *server, uint64_t grace_ms);

/* Ends all connections of an identity, with their calls; new ones are let in. Any thread. */
err rpc_server_drop(struct rpc_server *server, enum rpc_role role, const char *id);

const struct rpc_peer *rpc_call_peer(const struct rpc_call *call);
const struct rpc_method *rpc_call_method(const struct rpc_call *call);
void *rpc_call_context(const struct rpc_call *call); /* rpc_server_options.context */
/* The handler's own pointer; it frees the memory in its `over`. */
void rpc_call_set_state(struct rpc_call *call, void *state);
void *rpc_call_state(const struct rpc_call *call);

void rpc_call_answer(struct rpc_call *call, const void *reply, size_t size); /* copies */
void rpc_call_refuse(struct rpc_call *call, err cause); /* sends text and status */
void rpc_call_next(struct rpc_call *call);
void rpc_call_send(struct rpc_call *call, const void *message, size_t size); /* copies */
void rpc_call_finish(struct rpc_call *call);

/* The gRPC status of each kind of error:
 *
 *     ERR_INPUT                  INVALID_ARGUMENT
 *     ERR_STATE                  FAILED_PRECONDITION
 *     ERR_LIMIT                  RESOURCE_EXHAUSTED
 *     ERR_REFUSED                PERMISSION_DENIED
 *     ERR_MACHINE, ERR_STOPPED   UNAVAILABLE */

/* ---------------------------------------------------------------- client */
struct rpc_client;

struct rpc_client_options {
    const char *server;          /* "host:port"; the name must be in the server's certificate */
    const char *ca, *cert, *key; /* PEM files; only this CA is trusted */
    /* PEM text instead of the three files: the client shows no certificate and trusts this root. */
    const char *root;
    /* NULL, or set to non-zero by a signal handler: calls end with ERR_STOPPED. */
    const volatile sig_atomic_t *stop;
};

/* Checks that the files exist, that certificate and key are a pair, and that the certificate is
 * valid now, signed by this CA and made for clients. Connects at the first call. */
err rpc_client_open(struct rpc_client **out, const struct rpc_client_options *options);
void rpc_client_close(struct rpc_client *client); /* no call may be under way; NULL is fine */
/* Reads the files again, in case a certificate was renewed. *changed: the files differ from those
 * in use, and the next call connects with the new ones. No call may be under way. ERR_INPUT: the
 * files cannot be used or have another identity; then the old ones stay in use. */
err rpc_client_reload(bool *changed, struct rpc_client *client);
/* The identity in this client's certificate. */
const struct rpc_peer *rpc_client_identity(const struct rpc_client *client);
/* How far the server's clock is ahead of this machine's, by the last answer that told the time.
 * False: no answer did. */
bool rpc_client_clock(int64_t *ahead_ms, const struct rpc_client *client);

/* Errors of all calls:
 *
 *     ERR_MACHINE            not reachable, broken off, or out of time: try again later
 *     ERR_REFUSED            the server refused the call (its text) or this client's certificate
 *     ERR_INPUT              the server's certificate cannot be trusted
 *     ERR_STATE, ERR_LIMIT   as the server answered
 *     ERR_STOPPED            options.stop was set */
err rpc_client_unary(struct bytes *reply, struct rpc_client *client, const char *path,
                     const struct bytes *request, uint64_t deadline_ms);

struct rpc_upload {
    const char *path;
    uint64_t deadline_ms, stall_ms;
    /* Fills the empty `message` with the next message, or sets *end. An error cancels the call and
     * is returned. */
    err (*part)(struct bytes *message, bool *end, void *context);
    void *context;
};
err rpc_client_upload(struct bytes *reply, struct rpc_client *client,
                      const struct rpc_upload *upload);

struct rpc_download {
    const char *path;
    const struct bytes *request;
    uint64_t deadline_ms, stall_ms;
    err (*part)(const void *message, size_t size, void *context);
    void *context;
};
err rpc_client_download(struct rpc_client *client, const struct rpc_download *download);

/* The way of calls to a server, for people: "direct", or through which proxy and which variable
 * names it. ERR_INPUT: `server` is not HOST:PORT, or a variable cannot be used. */
err rpc_client_route(char *out, size_t bytes, const char *server);

/* ---------------------------------------------------------------- TLS by itself */
struct rpc_tls_report {
    char version[16], cipher[64];
    char server_names[512]; /* DNS and IP names of the server's certificate */
    int64_t server_days_left, client_days_left;
    struct rpc_peer self;
    int64_t connect_ms;
};
/* One handshake by OpenSSL itself, because gRPC hides why a connection fails. It takes the way of
 * the calls, through a proxy if there is one. For `fedlora doctor`,
 * and after a failed call. */
err rpc_tls_probe(struct rpc_tls_report *out, const struct rpc_client_options *options);
/* ERR_INPUT, naming the file, unless cert and key are a pair and cert is valid now, signed by this
 * CA and made for a server (or a client). days_left may be NULL. */
err rpc_tls_check(const char *ca, const char *cert, const char *key, bool server,
                  int64_t *days_left);
/* When the first of the certificates in a PEM file ends, since 1970. */
err rpc_tls_ends(int64_t *ends_s, const char *path);

#endif
