/* The server's loop: one completion queue, polled by one thread. gRPC reads and writes inside
 * rpc_server_poll(), so a callback must be short. Its connections come from the front (front.h), so
 * gRPC itself never listens and knows nothing of TLS. */
#include "proto/rpc_internal.h"

#include "base/text.h"

#include <errno.h>
#include <grpc/grpc_posix.h>
#include <stdlib.h>
#include <string.h>

enum {
    SERVER_BATCH = 512, /* events run in one poll, so that the caller gets its turn */
    SERVER_SWEEP_MS = 500,
    SERVER_CLOSE_MS = 5000,  /* for gRPC to end cancelled calls */
    SERVER_LAST_MS = 250,    /* for the last statuses to reach their clients */
    SERVER_STREAMS = 16,     /* of one connection: a long poll, a report, a transfer, and room */
    SERVER_OPEN_STREAMS = 2, /* the same without a certificate */
};

static gpr_timespec no_wait(void)
{
    return rpc_wire_after(0);
}

/* ---------------------------------------------------------------- opening */

static grpc_arg arg_int(const char *key, int value)
{
    return (grpc_arg){
        .type = GRPC_ARG_INTEGER, .key = (char *)(uintptr_t)key, .value.integer = value};
}

static grpc_server *make_server(const struct rpc_server_options *o)
{
    grpc_resource_quota *quota = grpc_resource_quota_create("fedlora");
    grpc_resource_quota_resize(quota, o->memory_bytes);
    const grpc_arg args[] = {
        arg_int(GRPC_ARG_MAX_RECEIVE_MESSAGE_LENGTH, RPC_MESSAGE_BYTES),
        arg_int(GRPC_ARG_MAX_SEND_MESSAGE_LENGTH, RPC_MESSAGE_BYTES),
        arg_int(GRPC_ARG_MAX_METADATA_SIZE, 8192),
        arg_int(GRPC_ARG_MAX_CONCURRENT_STREAMS, SERVER_STREAMS),
        arg_int(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 15 * 60 * 1000),
        arg_int(GRPC_ARG_MAX_CONNECTION_AGE_MS, 60 * 60 * 1000),
        arg_int(GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS, 5 * 60 * 1000),
        arg_int(GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 60 * 1000),
        arg_int(GRPC_ARG_HTTP2_MAX_PING_STRIKES, 2),
        arg_int(GRPC_ARG_KEEPALIVE_TIME_MS, 120 * 1000),
        arg_int(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20 * 1000),
        arg_int(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10 * 1000),
        arg_int(GRPC_ARG_ALLOW_REUSEPORT, 0),
        arg_int(GRPC_ARG_ENABLE_PER_MESSAGE_DECOMPRESSION, 0),
        arg_int(GRPC_ARG_ENABLE_CHANNELZ, 0),
        /* Windows do not grow, because many uploads at once must not fill the memory. 256 KiB
         * allows 5 MB/s for one upload over a connection with a delay of 50 ms. */
        arg_int(GRPC_ARG_HTTP2_BDP_PROBE, 0),
        arg_int(GRPC_ARG_HTTP2_STREAM_LOOKAHEAD_BYTES, 256 * 1024),
        {.type = GRPC_ARG_POINTER,
         .key = (char *)(uintptr_t)GRPC_ARG_RESOURCE_QUOTA,
         .value.pointer = {.p = quota, .vtable = grpc_resource_quota_arg_vtable()}},
    };
    const grpc_channel_args list = {.num_args = sizeof args / sizeof args[0],
                                    .args = (grpc_arg *)(uintptr_t)args};
    grpc_server *server = grpc_server_create(&list, NULL);
    grpc_resource_quota_unref(quota);
    return server;
}

/* Any thread may add a connection. It has no TLS: the front has checked its client. */
static void give(void *context, int fd)
{
    struct rpc_server *s = context;
    grpc_server_credentials *plain = grpc_insecure_server_credentials_create();
    grpc_server_add_channel_from_fd(s->server, fd, plain);
    grpc_server_credentials_release(plain);
}

/* strangers: peers without a certificate */
static err open_front(struct front **out, struct rpc_server *s, const char *listen, bool strangers)
{
    char host[256], port[6];
    TRY(rpc_wire_split(host, sizeof host, port, listen, "listen"));
    const struct front_options options = {.listen = listen,
                                          .host = host,
                                          .port = port,
                                          .ca = s->ca,
                                          .cert = s->cert,
                                          .key = s->key,
                                          .open_to = !strangers      ? NULL
                                                     : s->federation ? s->federation
                                                                     : "",
                                          .streams_max =
                                              strangers ? SERVER_OPEN_STREAMS : SERVER_STREAMS,
                                          .give = give,
                                          .give_context = s,
                                          .event = s->options.event,
                                          .count = s->options.count,
                                          .event_context = s->options.context};
    return front_open(out, &options);
}

static err open_fronts(struct rpc_server *s)
{
    TRY(open_front(&s->front, s, s->listen, false));
    if (s->open_listen[0] != 0) TRY(open_front(&s->open_front, s, s->open_listen, true));
    return ERR_NONE;
}

/* If the second one fails, new connections to the first one already use the new files, which were
 * good a moment ago. */
err rpc_server_reload(struct rpc_server *s)
{
    TRY(front_reload(s->front, s->ca, s->cert, s->key));
    return s->open_front == NULL ? ERR_NONE : front_reload(s->open_front, s->ca, s->cert, s->key);
}

err rpc_server_drop(struct rpc_server *s, enum rpc_role role, const char *id)
{
    return front_drop(s->front, role, id);
}

static void offer_call(struct rpc_server *s)
{
    if (s->draining || s->offering) return;
    grpc_call_details_init(&s->details);
    grpc_metadata_array_init(&s->metadata);
    s->offering = true;
    grpc_call_error error = grpc_server_request_call(
        s->server, &s->offered, &s->details, &s->metadata, s->queue, s->queue, &s->offer_tag);
    REQUIRE(error == GRPC_CALL_OK);
}

static err copy_options(struct rpc_server *s, const struct rpc_server_options *o)
{
    s->options = *o;
    if (o->calls_max == 0) s->options.calls_max = 4 * (size_t)LIMIT_MEMBERS;
    if (o->call_ms == 0) s->options.call_ms = 30 * 60 * 1000;
    if (o->stall_ms == 0) s->options.stall_ms = 60 * 1000;
    if (o->memory_bytes == 0) s->options.memory_bytes = 64u << 20;
    s->scratch.max = RPC_MESSAGE_BYTES;
    s->listen = strdup(o->listen);
    s->open_listen = strdup(o->open_listen == NULL ? "" : o->open_listen);
    s->ca = strdup(o->ca);
    s->cert = strdup(o->cert);
    s->key = strdup(o->key);
    s->federation = o->federation == NULL ? NULL : strdup(o->federation);
    if (!s->listen || !s->open_listen || !s->ca || !s->cert || !s->key ||
        (o->federation && !s->federation))
        return err_sys(ENOMEM, "the server's options");
    return ERR_NONE;
}

err rpc_server_open(struct rpc_server **out, const struct rpc_server_options *options)
{
    TRY(rpc_init());
    struct rpc_server *s = calloc(1, sizeof *s);
    if (s == NULL) return err_sys(ENOMEM, "a server");
    err e;
    TRY_OUT(e, copy_options(s, options));
    rpc_wire_start();
    s->queue = grpc_completion_queue_create_for_next(NULL);
    s->wake_channel = grpc_lame_client_channel_create("fedlora:wake", GRPC_STATUS_UNAVAILABLE, "");
    s->wake_call = grpc_channel_create_call(s->wake_channel, NULL, GRPC_PROPAGATE_DEFAULTS,
                                            s->queue, grpc_slice_from_static_string("/wake"), NULL,
                                            gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    s->server = make_server(&s->options);
    grpc_server_register_completion_queue(s->server, s->queue, NULL);
    grpc_server_start(s->server);
    TRY_OUT(e, open_fronts(s));
    offer_call(s);
    *out = s;
    return ERR_NONE;
out:
    rpc_server_close(s, 0);
    return e;
}

/* ---------------------------------------------------------------- the loop */

static void on_offer(struct rpc_server *s, bool ok)
{
    grpc_call *call = s->offered;
    grpc_call_details details = s->details;
    grpc_metadata_array metadata = s->metadata;
    s->offering = false;
    s->offered = NULL;
    if (ok) {
        offer_call(s);
        rpc_call_open(s, call, &details);
    }
    grpc_metadata_array_destroy(&metadata);
    grpc_call_details_destroy(&details);
}

static void on_event(struct rpc_server *s, grpc_event event)
{
    bool ok = event.success != 0;
    if (event.tag == &s->offer_tag)
        on_offer(s, ok);
    else if (event.tag == &s->wake_tag)
        atomic_store(&s->woken, false);
    else if (event.tag == &s->shutdown_tag)
        s->is_shut = true;
    else
        rpc_call_event(event.tag, ok);
}

static void sweep(struct rpc_server *s)
{
    uint64_t now = text_now_ms();
    if (now - s->swept_ms < SERVER_SWEEP_MS) return;
    s->swept_ms = now;
    for (struct rpc_call *call = s->calls, *next; call != NULL; call = next) {
        next = call->next; /* the sweep starts batches, but frees nothing */
        rpc_call_sweep(call, now);
    }
}

void rpc_server_poll(struct rpc_server *s, uint64_t timeout_ms)
{
    uint64_t end = text_now_ms() + timeout_ms;
    bool any = false;
    while (!any) {
        uint64_t now = text_now_ms(), left = end > now ? end - now : 0;
        gpr_timespec until = rpc_wire_after(left < SERVER_SWEEP_MS ? left : SERVER_SWEEP_MS);
        for (int i = 0; i < SERVER_BATCH; i++) {
            grpc_event event = grpc_completion_queue_next(s->queue, until, NULL);
            if (event.type != GRPC_OP_COMPLETE) break;
            any = true;
            on_event(s, event);
            until = no_wait();
        }
        sweep(s);
        if (left == 0) break;
    }
}

void rpc_server_wake(struct rpc_server *s)
{
    /* An empty batch of a call that is never sent, because the C core has no other way to post an
     * event. */
    if (!atomic_exchange(&s->woken, true)) {
        grpc_call_error error = grpc_call_start_batch(s->wake_call, NULL, 0, &s->wake_tag, NULL);
        REQUIRE(error == GRPC_CALL_OK);
    }
}

int rpc_server_port(const struct rpc_server *s)
{
    return front_port(s->front);
}
int rpc_server_open_port(const struct rpc_server *s)
{
    return s->open_front == NULL ? 0 : front_port(s->open_front);
}
size_t rpc_server_calls(const struct rpc_server *s)
{
    return s->call_count;
}

void rpc_server_set_serving(struct rpc_server *s, bool serving)
{
    if (s->serving == serving) return;
    s->serving = serving;
    rpc_health_changed(s);
}

/* ---------------------------------------------------------------- closing */

void rpc_server_drain(struct rpc_server *s)
{
    if (s->draining) return;
    s->draining = true;
    rpc_server_set_serving(s, false);
    if (s->front != NULL) front_drain(s->front);
    if (s->open_front != NULL) front_drain(s->open_front);
    grpc_server_shutdown_and_notify(s->server, s->queue, &s->shutdown_tag);
}

static bool is_busy(const struct rpc_server *s)
{
    return s->call_count > 0 || s->offering || !s->is_shut;
}

static void poll_until_over(struct rpc_server *s, uint64_t ms)
{
    uint64_t end = text_now_ms() + ms;
    while (is_busy(s) && text_now_ms() < end)
        rpc_server_poll(s, 50);
}

/* Clients that do not read would keep their calls for long, so after the grace all sockets are
 * shut. False: gRPC has not ended its calls even then, and may still use the server. */
static bool close_server(struct rpc_server *s, uint64_t grace_ms)
{
    rpc_server_drain(s);
    s->options.holds = NULL; /* the owner releases nothing any more */
    rpc_server_release(s, s->held ? err_make(ERR_MACHINE, "the server is closing") : ERR_NONE);
    uint64_t end = text_now_ms() + grace_ms;
    while ((s->call_count > 0 || s->offering) && text_now_ms() < end)
        rpc_server_poll(s, 50);
    grpc_server_cancel_all_calls(s->server);
    poll_until_over(s, SERVER_LAST_MS);
    if (s->front != NULL) front_shut(s->front);
    if (s->open_front != NULL) front_shut(s->open_front);
    poll_until_over(s, SERVER_CLOSE_MS);
    if (is_busy(s)) return false;
    front_close(s->front);
    front_close(s->open_front);
    s->front = s->open_front = NULL;
    grpc_server_destroy(s->server);
    return true;
}

void rpc_server_close(struct rpc_server *s, uint64_t grace_ms)
{
    if (s == NULL) return;
    if (s->server != NULL && !close_server(s, grace_ms)) {
        front_close(s->front);
        front_close(s->open_front);
        return; /* leaked, because gRPC may still write to it; the process ends next */
    }
    if (s->queue != NULL) {
        grpc_call_unref(s->wake_call);
        grpc_channel_destroy(s->wake_channel);
        grpc_completion_queue_shutdown(s->queue);
        while (grpc_completion_queue_next(s->queue, rpc_wire_after(SERVER_CLOSE_MS), NULL).type ==
               GRPC_OP_COMPLETE) {
        }
        grpc_completion_queue_destroy(s->queue);
        grpc_shutdown();
    }
    bytes_close(&s->scratch);
    free(s->listen);
    free(s->open_listen);
    free(s->ca);
    free(s->cert);
    free(s->key);
    free(s->federation);
    free(s);
}
