/* One call on the server, from its arrival to its end. A call is freed when gRPC has reported that
 * it is closed and no batch is in progress, so a late event never finds a freed call. */
#include "proto/rpc_internal.h"

#include "base/text.h"

#include <grpc/support/alloc.h>
#include <grpc/support/time.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CALL_OPS_MAX = 3 };

static void start_batch(struct rpc_call *call, const grpc_op *op, size_t count, struct rpc_tag *tag)
{
    call->pending++;
    grpc_call_error error = grpc_call_start_batch(call->call, op, count, tag, NULL);
    REQUIRE(error == GRPC_CALL_OK);
}

static void read_next(struct rpc_call *call)
{
    if (call->reading || call->answered || call->is_closed) return;
    call->reading = true;
    call->waits_ms = text_now_ms();
    const grpc_op op = {.op = GRPC_OP_RECV_MESSAGE,
                        .data.recv_message.recv_message = &call->message};
    start_batch(call, &op, 1, &call->read);
}

/* The time is short enough to lie inside its slice, so there is no memory to free. */
static grpc_op op_start(struct rpc_call *call)
{
    char text[24];
    grpc_op op = {.op = GRPC_OP_SEND_INITIAL_METADATA};
    call->sent_start = true;
    if (call->method == NULL || !call->method->tells_time) return op;
    snprintf(text, sizeof text, "%llu", (unsigned long long)text_wall_ms());
    call->clock = (grpc_metadata){.key = grpc_slice_from_static_string(RPC_CLOCK_KEY),
                                  .value = grpc_slice_from_copied_string(text)};
    op.data.send_initial_metadata.count = 1;
    op.data.send_initial_metadata.metadata = &call->clock;
    return op;
}

static grpc_op op_message(grpc_byte_buffer *buffer)
{
    return (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer};
}

/* Gives the reply to gRPC, which may be later than its handler made it. */
static void start_reply(struct rpc_call *call, struct rpc_reply *reply)
{
    grpc_op op[CALL_OPS_MAX] = {0};
    size_t count = 0;
    if (!call->sent_start) op[count++] = op_start(call);
    if (reply->message != NULL) op[count++] = op_message(reply->message);
    if (reply->ends)
        op[count++] = (grpc_op){.op = GRPC_OP_SEND_STATUS_FROM_SERVER,
                                .data.send_status_from_server = {
                                    .status = reply->code, .status_details = &reply->details}};
    call->waits_ms = text_now_ms();
    start_batch(call, op, count, reply->ends ? &call->status : &call->write);
    rpc_reply_drop(reply);
}

static void report_end(const struct rpc_call *call, grpc_status_code code)
{
    const struct rpc_server_options *o = &call->server->options;
    const char *slash = call->method == NULL ? NULL : strrchr(call->method->path, '/');
    if (o->ended != NULL)
        o->ended(o->context, slash == NULL ? "other" : slash + 1, rpc_wire_code(code));
}

/* Ends the call: an optional reply, then the status. The first answer counts; later ones are
 * ignored. */
static void answer(struct rpc_call *call, grpc_byte_buffer *reply, grpc_status_code code,
                   const char *text)
{
    if (call->answered || call->is_closed) {
        if (reply != NULL) grpc_byte_buffer_destroy(reply);
        return;
    }
    call->answered = call->finishing = true;
    report_end(call, code);
    call->last = (struct rpc_reply){.message = reply,
                                    .ends = true,
                                    .code = code,
                                    .details = grpc_slice_from_copied_string(text)};
    if (!rpc_hold(call, &call->last)) start_reply(call, &call->last);
}

void rpc_call_status(struct rpc_call *call, grpc_status_code code, const char *text)
{
    answer(call, NULL, code, text);
}

void rpc_call_answer(struct rpc_call *call, const void *reply, size_t size)
{
    answer(call, rpc_wire_buffer(reply, size), GRPC_STATUS_OK, "");
}

void rpc_call_refuse(struct rpc_call *call, err cause)
{
    REQUIRE(err_is(cause));
    answer(call, NULL, rpc_wire_status(cause.kind), cause.text);
}

void rpc_call_finish(struct rpc_call *call)
{
    answer(call, NULL, GRPC_STATUS_OK, "");
}

void rpc_call_next(struct rpc_call *call)
{
    REQUIRE(call->method->shape == RPC_UPLOAD);
    read_next(call);
}

void rpc_call_send(struct rpc_call *call, const void *message, size_t size)
{
    bool streams = call->method->shape == RPC_DOWNLOAD || call->method->shape == RPC_CHAT;
    REQUIRE(streams && !call->writing);
    if (call->answered || call->is_closed) return;
    call->writing = true;
    call->part = (struct rpc_reply){.message = rpc_wire_buffer(message, size)};
    if (!rpc_hold(call, &call->part)) start_reply(call, &call->part);
}

/* The call's own batches are counted while its reply is held, so that it is not freed. */
void rpc_call_release(struct rpc_call *call, err e)
{
    if (call->part.held) {
        call->pending--;
        if (err_is(e)) {
            rpc_reply_drop(&call->part);
            call->writing = false;
        } else {
            start_reply(call, &call->part);
        }
    }
    if (err_is(e) && !call->answered && !call->is_closed) rpc_call_refuse(call, e);
    if (!call->last.held) return;
    call->pending--;
    if (err_is(e)) {
        rpc_reply_drop(&call->last);
        call->last = (struct rpc_reply){.ends = true,
                                        .code = rpc_wire_status(e.kind),
                                        .details = grpc_slice_from_copied_string(e.text)};
    }
    start_reply(call, &call->last);
}

/* ---------------------------------------------------------------- identity and method */

/* The identity comes from the certificate of this connection, never from the message. */
static err peer_read(struct rpc_call *call, const grpc_call_details *details)
{
    struct rpc_server *s = call->server;
    char *authority = grpc_slice_to_c_string(details->host);
    bool found = front_find(&call->peer, s->front, authority) ||
                 (s->open_front != NULL && front_find(&call->peer, s->open_front, authority));
    gpr_free(authority);
    if (!found) return err_make(ERR_REFUSED, "the connection has ended");
    if (s->federation != NULL && strcmp(s->federation, call->peer.federation) != 0)
        return err_make(ERR_REFUSED, "%s is of federation \"%s\"; this coordinator serves \"%s\"",
                        call->peer.id, call->peer.federation, s->federation);
    return ERR_NONE;
}

/* A linear search, because there are about twenty methods. Methods of the server's owner get the
 * context from its options; health and reflection get the server itself. */
static const struct rpc_method *method_find(struct rpc_call *call, grpc_slice path)
{
    const struct rpc_server *s = call->server;
    call->context = s->options.context;
    for (size_t i = 0; i < s->options.method_count; i++)
        if (grpc_slice_str_cmp(path, s->options.method[i].path) == 0) return &s->options.method[i];
    call->context = call->server;
    for (size_t i = 0; i < rpc_health_method_count; i++)
        if (grpc_slice_str_cmp(path, rpc_health_method[i].path) == 0) return &rpc_health_method[i];
    if (grpc_slice_str_cmp(path, rpc_reflect_method.path) == 0) return &rpc_reflect_method;
    return NULL;
}

/* The end of a call that reaches no handler. */
static void turn_away(struct rpc_call *call, grpc_status_code code, const char *method, err why)
{
    const struct rpc_server_options *o = &call->server->options;
    rpc_call_status(call, code, why.text);
    /* Without a name the connection has ended already. */
    if (o->refused != NULL && call->peer.id[0] != 0)
        o->refused(o->context, &call->peer, method, why);
}

static void turn_away_as(struct rpc_call *call, err why)
{
    turn_away(call, rpc_wire_status(why.kind), call->method->path, why);
}

static err wrong_role(const struct rpc_method *method, const struct rpc_peer *peer)
{
    if (peer->role == RPC_NONE)
        return err_make(ERR_REFUSED, "%s: not on this address, which is for Enroll only",
                        method->path);
    if (method->roles == RPC_NONE)
        return err_make(ERR_REFUSED, "%s: only on the address of enrolment", method->path);
    bool is_client = peer->role == RPC_CLIENT;
    return err_make(ERR_REFUSED, "%s: only %s may call this; %s is %s", method->path,
                    is_client ? "an admin" : "a client", peer->id,
                    is_client ? "a client" : "an admin");
}

/* The first checks, before any byte of the request is read. */
static void admit(struct rpc_call *call, const grpc_call_details *details)
{
    call->method = method_find(call, details->method);
    if (call->method == NULL) {
        char *path = grpc_slice_to_c_string(details->method);
        err none = err_make(ERR_REFUSED, "there is no method %.200s here", path);
        err unknown = peer_read(call, details); /* for the name only */
        (void)unknown;
        turn_away(call, GRPC_STATUS_UNIMPLEMENTED, "", none);
        gpr_free(path);
        return;
    }
    err e = peer_read(call, details);
    if (err_is(e)) {
        turn_away(call, GRPC_STATUS_UNAUTHENTICATED, call->method->path, e);
        return;
    }
    if (call->server->call_count > call->server->options.calls_max) {
        turn_away_as(call, err_make(ERR_LIMIT, "%zu calls are open already; try again later",
                                    call->server->options.calls_max));
        return;
    }
    if ((call->method->roles & call->peer.role) == 0) {
        turn_away_as(call, wrong_role(call->method, &call->peer));
        return;
    }
    const struct rpc_server_options *o = &call->server->options;
    if (o->allow != NULL && err_is(e = o->allow(o->context, &call->peer))) {
        turn_away_as(call, e);
        return;
    }
    if (call->method->shape == RPC_UPLOAD) {
        call->begun = true;
        call->method->begin(call, NULL, 0);
    }
    read_next(call);
}

static uint64_t call_end_ms(const struct rpc_server *server, gpr_timespec deadline)
{
    uint64_t most = server->options.call_ms;
    gpr_timespec left = gpr_time_sub(gpr_convert_clock_type(deadline, GPR_CLOCK_MONOTONIC),
                                     gpr_now(GPR_CLOCK_MONOTONIC));
    int32_t left_ms = gpr_time_to_millis(left); /* saturates */
    uint64_t ms = left_ms < 0 ? 0 : (uint64_t)left_ms;
    return text_now_ms() + (ms < most ? ms : most);
}

void rpc_call_open(struct rpc_server *server, grpc_call *handle, const grpc_call_details *details)
{
    struct rpc_call *call = calloc(1, sizeof *call);
    if (call == NULL) { /* the peer sees the call broken off and tries again */
        grpc_call_cancel(handle, NULL);
        grpc_call_unref(handle);
        return;
    }
    *call = (struct rpc_call){.server = server, .call = handle, .next = server->calls};
    call->read = (struct rpc_tag){RPC_TAG_READ, call};
    call->write = (struct rpc_tag){RPC_TAG_WRITE, call};
    call->status = (struct rpc_tag){RPC_TAG_STATUS, call};
    call->closed = (struct rpc_tag){RPC_TAG_CLOSED, call};
    if (server->calls != NULL) server->calls->previous = call;
    server->calls = call;
    server->call_count++;
    call->ends_ms = call_end_ms(server, details->deadline);
    const grpc_op op = {.op = GRPC_OP_RECV_CLOSE_ON_SERVER,
                        .data.recv_close_on_server.cancelled = &call->cancelled};
    start_batch(call, &op, 1, &call->closed);
    admit(call, details);
}

/* ---------------------------------------------------------------- events */

static void free_call(struct rpc_call *call)
{
    struct rpc_server *server = call->server;
    if (call->previous != NULL)
        call->previous->next = call->next;
    else
        server->calls = call->next;
    if (call->next != NULL) call->next->previous = call->previous;
    server->call_count--;
    grpc_call_unref(call->call);
    free(call);
}

static void ask_more(struct rpc_call *call)
{
    if (call->method->shape == RPC_CHAT)
        read_next(call);
    else if (!call->answered && !call->is_closed && !call->writing)
        call->method->more(call);
}

/* One whole message for the handler. */
static void deliver(struct rpc_call *call, const void *message, size_t size)
{
    if (call->method->shape == RPC_UPLOAD) {
        call->method->part(call, message, size);
        return;
    }
    call->begun = true;
    call->method->begin(call, message, size);
    if (call->method->shape == RPC_DOWNLOAD) ask_more(call);
}

/* A read that returns no message means that the peer has sent everything. */
static void on_read(struct rpc_call *call, bool ok)
{
    grpc_byte_buffer *message = call->message;
    call->reading = false;
    if (!call->finishing) call->waits_ms = 0;
    call->message = NULL;
    if (!call->answered && !call->is_closed && ok) {
        struct bytes *scratch = &call->server->scratch;
        bytes_clear(scratch);
        bool broken = message == NULL && grpc_call_failed_before_recv_message(call->call) != 0;
        if (message != NULL && rpc_wire_read(scratch, message))
            deliver(call, scratch->data == NULL ? (const void *)"" : scratch->data, scratch->size);
        else if (message != NULL)
            rpc_call_refuse(call, err_make(ERR_INPUT, "compressed messages are not accepted"));
        else if (call->method->shape == RPC_UPLOAD && !broken)
            call->method->end(call);
        else if (call->method->shape == RPC_CHAT && call->begun && !broken)
            rpc_call_finish(call);
        else if (!broken)
            rpc_call_refuse(call, err_make(ERR_INPUT, "the call has no request"));
    }
    if (message != NULL) grpc_byte_buffer_destroy(message);
}

void rpc_call_event(struct rpc_tag *tag, bool ok)
{
    struct rpc_call *call = tag->call;
    REQUIRE(call->pending > 0);
    call->pending--;
    switch (tag->kind) {
    case RPC_TAG_READ:
        on_read(call, ok);
        break;
    case RPC_TAG_WRITE:
        call->writing = false;
        if (!call->finishing) call->waits_ms = 0;
        if (ok) ask_more(call);
        break;
    case RPC_TAG_STATUS:
        call->finishing = false;
        call->waits_ms = 0;
        call->sent = ok;
        break;
    case RPC_TAG_CLOSED:
        call->is_closed = true;
        break;
    }
    /* `over` waits until it is known whether the answer was sent. */
    if (call->is_closed && !call->is_over && !call->finishing) {
        call->is_over = true;
        if (!call->answered) report_end(call, GRPC_STATUS_CANCELLED);
        if (call->begun && call->method->over != NULL)
            call->method->over(call, call->sent && call->cancelled == 0);
    }
    if (call->is_over && call->pending == 0) free_call(call);
}

/* A peer may not hold a call longer than the limits allow. */
void rpc_call_sweep(struct rpc_call *call, uint64_t now_ms)
{
    const struct rpc_server_options *o = &call->server->options;
    if (call->is_closed) return;
    bool stalled = call->waits_ms != 0 && now_ms - call->waits_ms > o->stall_ms;
    if (stalled && call->reading && !call->answered) {
        rpc_call_refuse(call, err_make(ERR_MACHINE,
                                       "no message arrived for %llu s, so the call was ended",
                                       (unsigned long long)(o->stall_ms / 1000)));
    } else if (stalled || (call->answered && now_ms >= call->ends_ms)) {
        grpc_call_cancel(call->call, NULL);
    } else if (now_ms >= call->ends_ms && !call->answered) {
        rpc_call_status(call, GRPC_STATUS_DEADLINE_EXCEEDED, "the call took too long");
    }
}

/* ---------------------------------------------------------------- functions for handlers */

const struct rpc_peer *rpc_call_peer(const struct rpc_call *call)
{
    return &call->peer;
}
const struct rpc_method *rpc_call_method(const struct rpc_call *call)
{
    return call->method;
}
void *rpc_call_context(const struct rpc_call *call)
{
    return call->context;
}
void rpc_call_set_state(struct rpc_call *call, void *state)
{
    call->state = state;
}
void *rpc_call_state(const struct rpc_call *call)
{
    return call->state;
}
