/* Typed calls to a coordinator over rpc.h: one message there and back, blobs down and up. One
 * attempt each; errors are rpc.h's. Transfers resume: what a failed attempt moved is not moved
 * again. */
#ifndef CLIENT_REMOTE_H
#define CLIENT_REMOTE_H

#include "base/digest.h"
#include "base/option.h"
#include "fedlora.pb-c.h"
#include "proto/rpc.h"

#include <protobuf-c/protobuf-c.h>

enum { REMOTE_CALL_MS = 30 * 1000 };

struct remote_method {
    const char *path; /* RPC_PATH_FEDERATION(hello): proto/rpc_path.h */
    const ProtobufCMessageDescriptor *reply;
};
/* *reply is a message of that type, for message_free(). deadline_ms 0: REMOTE_CALL_MS. */
err remote_call(void *reply /* Message ** */, struct rpc_client *client,
                const struct remote_method *method, const ProtobufCMessage *request,
                uint64_t deadline_ms);

/* What grpc.health.v1 says of the whole coordinator. */
err remote_health(bool *serving, const struct rpc_client_options *options);

struct remote_blob {
    const char *method; /* RPC_PATH_FEDERATION(fetch) or RPC_PATH_ADMIN(fetch_blob) */
    const char *run;
    struct digest digest;
    const char *path; /* the file made; while it comes, PATH.part */
    void (*progress)(void *user, uint64_t done, uint64_t total); /* or NULL */
    void *user;
};
/* Whole and of the right digest, or ERR_INPUT and nothing kept. An existing file is not looked at.
 */
err remote_fetch(struct rpc_client *client, const struct remote_blob *blob);

/* An update: everything of `header` but its offset is sent as given. */
err remote_submit(Fedlora__V1__SubmitReply **reply, struct rpc_client *client,
                  const Fedlora__V1__SubmitHeader *header, const char *path);
/* A blob for a run to be created with (frozen factors). */
err remote_put(struct rpc_client *client, const struct digest *digest, const char *path);

/* The options by which every command that talks to a coordinator finds it: rows of an options
 * struct that holds a struct remote_options at `at`. */
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

err remote_open(struct rpc_client **out,
                const struct remote_options *options); /* stops with stop_asked */

#endif
