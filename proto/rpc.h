/* gRPC over TLS 1.3 with client certificates: the only interface to gRPC's C core. No grpc_ symbol
 * leaves proto/rpc*.c, no message type enters it: requests and replies are bytes (message.h packs
 * them).
 *
 * SERVER: one thread (the loop thread) opens, polls, answers and closes; only rpc_server_wake() may
 * come from others. Nothing happens outside rpc_server_poll() and rpc_server_close(): they run the
 * callbacks of `struct rpc_method`. A call is answered inside its callback or any time later, until
 * its `over`.
 *
 *   unary     begin(request)                                   -> rpc_call_answer | rpc_call_refuse
 *   chat      begin(message) -> rpc_call_send, for each message in turn; ends when the peer does
 *   upload    begin(), part(message) -> rpc_call_next, ..., end() -> rpc_call_answer |
 * rpc_call_refuse download  begin(request), more() -> rpc_call_send, ...        -> rpc_call_finish
 * | rpc_call_refuse
 *
 * Back-pressure: an upload's next message is read only after rpc_call_next(); a download's `more`
 * comes only after the last message was taken by the transport. So one message a call is in memory
 * at a time. Every call whose `begin` ran gets `over` exactly once: answered, cancelled by the
 * peer, past its deadline, stalled, or the server closing. After `over` returns the handle is dead;
 * before it, every rpc_call_ function is safe, also on a call the peer has left. A call is answered
 * at most once.
 *
 * Identity is the one URI SAN of the peer's certificate, fl://FEDERATION/client/ID or /admin/ID.
 * What has another federation or a wrong role never reaches a handler. No certificate, one of
 * another CA, or one without clientAuth: refused in the handshake.
 *
 * CLIENT: synchronous calls from any thread, several at a time; each has a deadline. */
#ifndef PROTO_RPC_H
#define PROTO_RPC_H

#include "base/bytes.h"
#include "base/err.h"
#include "base/limits.h"

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Messages are at most one chunk and its framing. */
enum { RPC_MESSAGE_BYTES = LIMIT_CHUNK_BYTES + 65536, RPC_SERIAL_BYTES = 48 };

/* Once a process, before any thread and any other use of TLS: limits the whole process to TLS 1.3
 * (gRPC 1.51 cannot be told so itself). Calling it again is harmless. */
err rpc_init(void);

enum rpc_role { RPC_CLIENT = 1, RPC_ADMIN = 2 }; /* also bits of rpc_method.roles */

struct rpc_peer {
    enum rpc_role role;
    char federation[LIMIT_NAME_BYTES], id[LIMIT_NAME_BYTES];
    char serial[RPC_SERIAL_BYTES]; /* of the certificate, lower-case hex */
};
err rpc_peer_parse(struct rpc_peer *out,
                   const char *uri); /* ERR_INPUT unless fl://F/client|admin/ID */

/* ---------------------------------------------------------------- server */
struct rpc_server;
struct rpc_call;

enum rpc_shape { RPC_UNARY, RPC_UPLOAD, RPC_DOWNLOAD, RPC_CHAT };

struct rpc_method {
    const char *path; /* "/fedlora.v1.Federation/Hello" */
    enum rpc_shape shape;
    unsigned roles; /* RPC_CLIENT | RPC_ADMIN: whom it serves; others are refused */
    void (*begin)(struct rpc_call *call, const void *request, size_t size); /* upload: NULL, 0 */
    void (*part)(struct rpc_call *call, const void *message, size_t size);  /* upload only */
    void (*end)(struct rpc_call *call);  /* upload: the peer is done */
    void (*more)(struct rpc_call *call); /* download only */
    void (*over)(struct rpc_call *call,
                 bool answered); /* may be NULL; answered: the reply was sent */
};

struct rpc_server_options {
    const char *listen;          /* "host:port", "[::1]:port"; port 0: any free one */
    const char *ca, *cert, *key; /* PEM files; only clients of this CA are let in */
    const char *federation;      /* NULL: any */
    const struct rpc_method *method;
    size_t method_count;
    void *context;
    /* Asked before a handler hears of a call, in the polling thread; its error is the refusal.
     * NULL: all may call. Health checks are not asked about. */
    err (*allow)(void *context, const struct rpc_peer *peer);
    size_t calls_max;    /* open calls; 0: 4 * LIMIT_MEMBERS; more get RESOURCE_EXHAUSTED */
    uint64_t call_ms;    /* longest life of any call, whatever its deadline; 0: 30 min */
    uint64_t stall_ms;   /* longest wait for the peer to send or take one message; 0: 60 s */
    size_t memory_bytes; /* of all connections' buffers; 0: 64 MiB */
};

/* Binds, serves, and checks that TLS 1.2 is refused. A port in use: ERR_MACHINE with EADDRINUSE. */
err rpc_server_open(struct rpc_server **out, const struct rpc_server_options *options);
int rpc_server_port(const struct rpc_server *server);
/* Waits at most timeout_ms for something to happen, runs the callbacks of all that has, returns. */
void rpc_server_poll(struct rpc_server *server, uint64_t timeout_ms);
void rpc_server_wake(struct rpc_server *server);          /* from any thread: ends a waiting poll */
size_t rpc_server_calls(const struct rpc_server *server); /* open now */
/* What grpc.health.v1 answers ("" and every service served); not serving until told. */
void rpc_server_set_serving(struct rpc_server *server, bool serving);
/* Reads the certificate files again; new connections use them. On an error the old ones stay. */
err rpc_server_reload(struct rpc_server *server);
/* Refuses new calls and connections from now on; open calls go on under rpc_server_poll(). */
void rpc_server_drain(struct rpc_server *server);
/* Drains, waits up to grace_ms for open calls, cancels the rest (their `over` runs), frees. NULL is
 * fine. */
void rpc_server_close(struct rpc_server *server, uint64_t grace_ms);

const struct rpc_peer *rpc_call_peer(const struct rpc_call *call);
const struct rpc_method *rpc_call_method(const struct rpc_call *call);
void *rpc_call_context(const struct rpc_call *call); /* rpc_server_options.context */
void rpc_call_set_state(struct rpc_call *call,
                        void *state); /* the handler's own, freed in its `over` */
void *rpc_call_state(const struct rpc_call *call);
uint64_t rpc_call_left_ms(const struct rpc_call *call); /* until the deadline */

void rpc_call_answer(struct rpc_call *call, const void *reply, size_t size); /* copies */
void rpc_call_refuse(struct rpc_call *call,
                     err cause); /* status by kind, the text is the explanation */
void rpc_call_next(struct rpc_call *call);
void rpc_call_send(struct rpc_call *call, const void *message, size_t size); /* copies */
void rpc_call_finish(struct rpc_call *call);

/* Statuses: INPUT INVALID_ARGUMENT, STATE FAILED_PRECONDITION, LIMIT RESOURCE_EXHAUSTED, MACHINE
 * and STOPPED UNAVAILABLE, REFUSED PERMISSION_DENIED. */

/* ---------------------------------------------------------------- client */
struct rpc_client;

struct rpc_client_options {
    const char *server;          /* "host:port"; the name must be in the server's certificate */
    const char *ca, *cert, *key; /* PEM files; only this CA is trusted */
    const volatile sig_atomic_t
        *stop; /* set by a signal handler: calls end with ERR_STOPPED; or NULL */
};

/* Checks the files (present, a pair, in date, of this CA, for clients); connects at the first call.
 */
err rpc_client_open(struct rpc_client **out, const struct rpc_client_options *options);
void rpc_client_close(struct rpc_client *client); /* no call may be under way; NULL is fine */
/* Reads the files again, for a certificate that was renewed: *changed when they are others than
 * those in use, and the next call connects with them. No call may be under way. ERR_INPUT for files
 * that will not do, or that make us somebody else; the old ones stay in use then. */
err rpc_client_reload(bool *changed, struct rpc_client *client);
const struct rpc_peer *
rpc_client_identity(const struct rpc_client *client); /* who our certificate says we are */

/* Errors of all calls: ERR_MACHINE: not reachable, broken off, or out of time: try again later.
 * ERR_REFUSED: the server said no (its words), or refuses our certificate. ERR_INPUT: its
 * certificate is not the one we may trust. ERR_STATE, ERR_LIMIT: as the server said. ERR_STOPPED.
 */
err rpc_client_unary(struct bytes *reply, struct rpc_client *client, const char *path,
                     const struct bytes *request, uint64_t deadline_ms);

struct rpc_upload {
    const char *path;
    uint64_t deadline_ms, stall_ms;
    /* Fills `message` (empty) with the next one, or sets *end. An error cancels the call and is
     * returned. */
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

/* ---------------------------------------------------------------- TLS by itself */
struct rpc_tls_report {
    char version[16], cipher[64];
    char server_names[512]; /* DNS and IP names of the server's certificate */
    int64_t server_days_left, client_days_left;
    struct rpc_peer self;
    int64_t connect_ms;
};
/* One handshake by OpenSSL itself: says in words what gRPC hides. For doctor, and after a failed
 * call. */
err rpc_tls_probe(struct rpc_tls_report *out, const struct rpc_client_options *options);
/* ERR_INPUT naming the file, unless cert and key are a pair, in date, of this CA, and for this use.
 * *days_left may be NULL. For --check. */
err rpc_tls_check(const char *ca, const char *cert, const char *key, bool server,
                  int64_t *days_left);

#endif
