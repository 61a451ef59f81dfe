/* Shared by proto/rpc*.c only, so that gRPC's types stay inside these files. */
#ifndef PROTO_RPC_INTERNAL_H
#define PROTO_RPC_INTERNAL_H

#include "proto/front.h"
#include "proto/rpc.h"
#include "proto/rpc_tls.h"

#include <grpc/byte_buffer.h>
#include <grpc/byte_buffer_reader.h>
#include <grpc/grpc.h>
#include <grpc/grpc_security.h>
#include <grpc/slice.h>
#include <pthread.h>
#include <stdatomic.h>

/* ---- rpc_wire.c: bytes, statuses, files */
grpc_byte_buffer *rpc_wire_buffer(const void *data, size_t size); /* copies */
/* Appends. False: the message is compressed, or larger than out->max. */
bool rpc_wire_read(struct bytes *out, grpc_byte_buffer *buffer);
grpc_status_code rpc_wire_status(enum err_kind kind);
const char *rpc_wire_code(grpc_status_code code); /* "OK"; "UNKNOWN" for those not used here */
err rpc_wire_err(grpc_status_code code, const char *text);
gpr_timespec rpc_wire_after(uint64_t ms);
void rpc_wire_start(void); /* grpc_init, quiet; paired with grpc_shutdown */

/* Metadata of an answer: the server's clock in milliseconds since 1970. */
#define RPC_CLOCK_KEY "fedlora-time-ms"

/* ---- rpc_channel.c */
struct rpc_proxy;
/* Without pem->cert the client shows no certificate. */
grpc_channel *rpc_channel_open(const char *server, const struct rpc_tls_pem *pem,
                               const struct rpc_proxy *proxy);

/* ---- rpc_server.c, rpc_call.c, rpc_health.c */
enum rpc_tag_kind { RPC_TAG_READ, RPC_TAG_WRITE, RPC_TAG_STATUS, RPC_TAG_CLOSED };
struct rpc_tag {
    enum rpc_tag_kind kind;
    struct rpc_call *call;
};

/* Sent at once: a message of a call, the status that ends it, or both. */
struct rpc_reply {
    grpc_byte_buffer *message; /* owned; or NULL */
    bool ends, held;
    grpc_status_code code;
    grpc_slice details; /* owned, with `ends` */
};

struct rpc_call {
    struct rpc_server *server;
    struct rpc_call *previous, *next;
    const struct rpc_method *method;
    void *context, *state;
    grpc_call *call;
    grpc_metadata clock;
    struct rpc_peer peer;
    struct rpc_tag read, write, status, closed;
    struct rpc_reply part, last; /* of a stream; with the status. Empty once gRPC has them */
    struct rpc_call *next_held;
    bool is_held;              /* in server->held */
    grpc_byte_buffer *message; /* being read */
    int cancelled;             /* written by gRPC when `closed` completes */
    unsigned pending;          /* batches in progress; 0 and closed: the call is freed */
    uint64_t ends_ms;          /* monotonic: when the call must be over */
    uint64_t waits_ms;         /* start of the wait for the peer; 0: no wait */
    bool sent_start, begun, answered, sent, is_closed, is_over, reading, writing, finishing;
};

struct rpc_server {
    /* Its strings belong to the caller and may no longer exist. The copies are below. */
    struct rpc_server_options options;
    char *listen, *open_listen, *ca, *cert, *key, *federation;
    grpc_server *server;
    grpc_completion_queue *queue;
    /* One call slot is always on offer to gRPC. */
    grpc_call *offered;
    grpc_call_details details;
    grpc_metadata_array metadata;
    char offer_tag, shutdown_tag, wake_tag; /* their addresses are the tags */
    bool offering, draining, is_shut, serving;
    struct rpc_call *calls; /* doubly linked */
    struct rpc_call *held;  /* their replies wait for rpc_server_release() */
    size_t call_count;
    uint64_t swept_ms;
    grpc_channel *wake_channel;
    grpc_call *wake_call;
    atomic_bool woken;
    struct bytes scratch;             /* the message being delivered */
    struct front *front, *open_front; /* open_front: of peers without a certificate, or NULL */
};

/* Takes over the offered call, and refuses it if its peer or method is not allowed. */
void rpc_call_open(struct rpc_server *server, grpc_call *call, const grpc_call_details *details);
void rpc_call_event(struct rpc_tag *tag, bool ok);   /* may free the call */
void rpc_call_release(struct rpc_call *call, err e); /* its held replies */
void rpc_call_sweep(struct rpc_call *call, uint64_t now_ms);
void rpc_call_status(struct rpc_call *call, grpc_status_code code, const char *text);

/* ---- rpc_hold.c */
/* True: the reply is held until rpc_server_release(). */
bool rpc_hold(struct rpc_call *call, struct rpc_reply *reply);
void rpc_reply_drop(struct rpc_reply *reply);

extern const struct rpc_method rpc_health_method[];
extern const size_t rpc_health_method_count;
void rpc_health_changed(struct rpc_server *server);
extern const struct rpc_method rpc_reflect_method; /* rpc_reflect.c */

#endif
