/* Typed calls to a coordinator over proto/rpc.h: one message each way, and blobs down and up.
 *
 * Every function makes one attempt and returns rpc.h's errors; the caller decides about retries
 * (see retry.h). Transfers resume: bytes that an earlier attempt moved are not moved again. */
#ifndef CLIENT_REMOTE_H
#define CLIENT_REMOTE_H

#include "base/digest.h"
#include "base/option.h"
#include "fedlora.pb-c.h"
#include "proto/rpc.h"

#include <protobuf-c/protobuf-c.h>

/* Time limit of a call without streams, unless the caller gives another. */
enum { REMOTE_CALL_MS = 30 * 1000 };

/* A method of the coordinator and the type of its reply. */
struct remote_method {
    const char *path; /* RPC_PATH_FEDERATION(hello): proto/rpc_path.h */
    const ProtobufCMessageDescriptor *reply;
};
/* *reply is a message of that type, for message_free(). deadline_ms 0: REMOTE_CALL_MS. */
err remote_call(void *reply /* Message ** */, struct rpc_client *client,
                const struct remote_method *method, const ProtobufCMessage *request,
                uint64_t deadline_ms);

/* The answer of the standard service grpc.health.v1 for the whole coordinator. */
struct remote_health {
    bool serving;
    bool told_time;   /* ahead_ms is set; an older coordinator does not tell its time */
    int64_t ahead_ms; /* of the coordinator's clock */
};
err remote_health(struct remote_health *out, const struct rpc_client_options *options);

/* Gets a transfer's progress in bytes: `done` of `total`, of which `moved` in this attempt. For an
 * upload these are bytes that the transport has taken. */
struct remote_watch {
    void (*moved)(void *user, uint64_t done, uint64_t total, uint64_t moved);
    /* Of an upload: the coordinator has answered, and bytes from `offset` on are about to leave.
     * An error stops the upload. NULL: not called. */
    err (*begins)(void *user, uint64_t offset, uint64_t total);
    void *user;
};

/* A file to download. */
struct remote_blob {
    const char *method; /* RPC_PATH_FEDERATION(fetch) or RPC_PATH_ADMIN(fetch_blob) */
    const char *run;
    struct digest digest;             /* names the blob and is checked at the end */
    const char *path;                 /* the file to create; PATH.part during the download */
    const struct remote_watch *watch; /* NULL: none */
    uint64_t size;                    /* in bytes; 0: not known */
    uint64_t size_max;                /* if it is not known; 0: LIMIT_BLOB_BYTES */
};
/* The file is complete and has the right digest, or ERR_INPUT and it is deleted. Nothing is written
 * of a file of another size. An existing file
 * at `path` is overwritten without being read. */
err remote_fetch(struct rpc_client *client, const struct remote_blob *blob);

/* A file that the coordinator makes while it sends it, so that its size and digest are not known:
 * complete or absent. */
struct remote_made {
    const char *method; /* RPC_PATH_ADMIN(manifest) */
    const ProtobufCMessage *request;
    const char *path;
    bool replace;
};
err remote_make(struct rpc_client *client, const struct remote_made *made);

/* Uploads an update; `watch` may be NULL. The fields of `header` are sent as given, except the
 * offset, which the coordinator decides. *reply is for message_free(). */
err remote_submit(Fedlora__V1__SubmitReply **reply, struct rpc_client *client,
                  const Fedlora__V1__SubmitHeader *header, const char *path,
                  const struct remote_watch *watch);
/* Uploads a blob (frozen factors) for a run that is created afterwards. Nothing is sent if the
 * coordinator has it already. */
err remote_put(struct rpc_client *client, const struct digest *digest, const char *path);

/* How a command reaches the coordinator. A command includes these rows in its table for a member of
 * this type at offset `at_` of its options. */
struct remote_options {
    const char *server, *ca, *cert, *key, *config;
};
#define REMOTE_OPTION_ROWS(at_)                                                                    \
    {.flag = "server",                                                                             \
     .key = "server.address",                                                                      \
     .kind = OPTION_TEXT,                                                                          \
     .required = true,                                                                             \
     .at = (at_) + offsetof(struct remote_options, server),                                        \
     .value = "HOST:PORT",                                                                         \
     .help = "address of the coordinator; HOST must be in its certificate"},                       \
        {.flag = "ca",                                                                             \
         .key = "server.ca",                                                                       \
         .kind = OPTION_TEXT,                                                                      \
         .required = true,                                                                         \
         .at = (at_) + offsetof(struct remote_options, ca),                                        \
         .value = "FILE",                                                                          \
         .help = "certificate of the federation's authority (PEM)"},                               \
        {.flag = "cert",                                                                           \
         .key = "server.cert",                                                                     \
         .kind = OPTION_TEXT,                                                                      \
         .required = true,                                                                         \
         .at = (at_) + offsetof(struct remote_options, cert),                                      \
         .value = "FILE",                                                                          \
         .help = "certificate of this client (PEM)"},                                              \
        {.flag = "key",                                                                            \
         .key = "server.key",                                                                      \
         .kind = OPTION_TEXT,                                                                      \
         .required = true,                                                                         \
         .at = (at_) + offsetof(struct remote_options, key),                                       \
         .value = "FILE",                                                                          \
         .help = "private key of this client (PEM)"},                                              \
    {                                                                                              \
        .flag = "config", .kind = OPTION_TEXT,                                                     \
        .at = (at_) + offsetof(struct remote_options, config), .value = "FILE",                    \
        .help = "file with options; the command line overrides it"                                 \
    }

/* Opens a client with these files. All its calls end early when stop_asked is set. A certificate
 * that is due is renewed first, silently (client/identity/renewal.h). */
err remote_open(struct rpc_client **out, const struct remote_options *options);

#endif
