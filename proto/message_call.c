#include "proto/message_call.h"

#include "proto/message.h"

/* RPC_MESSAGE_BYTES bounds both messages; larger data is streamed. */
err message_call(void *reply, struct rpc_client *client, const struct message_method *method,
                 const ProtobufCMessage *request, uint64_t deadline_ms)
{
    struct bytes sent = {.max = RPC_MESSAGE_BYTES}, received = {.max = RPC_MESSAGE_BYTES};
    err e;
    TRY_OUT(e, message_pack(&sent, request));
    TRY_OUT(e, rpc_client_unary(&received, client, method->path, &sent, deadline_ms));
    e = message_unpack(reply, method->reply, received.data, received.size);
out:
    bytes_close(&sent);
    bytes_close(&received);
    return e;
}
