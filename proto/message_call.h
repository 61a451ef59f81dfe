/* One call of a remote procedure with a message each way. Any thread. */
#ifndef PROTO_MESSAGE_CALL_H
#define PROTO_MESSAGE_CALL_H

#include "proto/rpc.h"

#include <protobuf-c/protobuf-c.h>

/* A procedure and the type of its reply. */
struct message_method {
    const char *path; /* proto/rpc_path.h */
    const ProtobufCMessageDescriptor *reply;
};
/* *reply is a message of that type, for message_free(). Errors are those of rpc_client_unary(). */
err message_call(void *reply /* Message ** */, struct rpc_client *client,
                 const struct message_method *method, const ProtobufCMessage *request,
                 uint64_t deadline_ms);

#endif
