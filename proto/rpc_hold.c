/* Replies that wait until what they report is durable. They are made by handlers in any order, and
 * sent together once the owner of the server has flushed its disk, so that one flush serves all
 * calls of a turn. */
#include "proto/rpc_internal.h"

void rpc_reply_drop(struct rpc_reply *reply)
{
    if (reply->message != NULL) grpc_byte_buffer_destroy(reply->message);
    if (reply->ends) grpc_slice_unref(reply->details);
    *reply = (struct rpc_reply){0};
}

/* Health checks and reflection report nothing that could be lost. */
bool rpc_hold(struct rpc_call *call, struct rpc_reply *reply)
{
    struct rpc_server *s = call->server;
    const struct rpc_server_options *o = &s->options;
    if (o->holds == NULL || call->context != o->context || !o->holds(o->context)) return false;
    reply->held = true;
    call->pending++;
    if (call->is_held) return true;
    call->is_held = true;
    call->next_held = s->held;
    s->held = call;
    return true;
}

/* The list is taken first: a call whose reply is sent may be freed by the next event. */
void rpc_server_release(struct rpc_server *s, err e)
{
    bool (*holds)(void *context) = s->options.holds;
    struct rpc_call *call = s->held;
    s->held = NULL;
    s->options.holds = NULL; /* a refusal in place of a held reply is not held again */
    while (call != NULL) {
        struct rpc_call *next = call->next_held;
        call->is_held = false;
        call->next_held = NULL;
        rpc_call_release(call, e);
        call = next;
    }
    s->options.holds = holds;
}
