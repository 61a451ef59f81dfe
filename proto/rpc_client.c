/* Synchronous calls. Each has its own completion queue and waits on it in short slices, so that
 * an interrupt, the deadline and a stall are all noticed. Every call is cancelled if necessary
 * and drained before the function returns, so nothing of it is left behind. */
#include "proto/rpc_internal.h"
#include "proto/rpc_proxy.h"

#include "base/digest.h"
#include "base/text.h"

#include <errno.h>
#include <grpc/support/alloc.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    CLIENT_CONNECT_MS = 1500,
    CLIENT_SLICE_MS = 50, /* how late an interrupt may be seen */
    CLIENT_OPS_MAX = 6,
};
#define CLIENT_NO_CLOCK LLONG_MIN

struct rpc_client {
    struct rpc_client_options options;
    char *server, *ca, *cert, *key;
    struct rpc_peer self;
    struct digest files;    /* digest of the three files in use */
    struct rpc_proxy proxy; /* on the way to the server */
    grpc_channel *channel;
    atomic_llong ahead_ms; /* of the server's clock; CLIENT_NO_CLOCK: not known */
};

/* One call. `waiting`: the tags, as bits, of batches that have not completed. */
enum { TAG_DONE = 1, TAG_READ = 2, TAG_WRITE = 4 };
struct talk {
    struct rpc_client *client;
    grpc_completion_queue *queue;
    grpc_call *call;
    unsigned waiting, failed;
    uint64_t stall_ms, moved_ms;
    int64_t asked_ms; /* wall clock */
    grpc_metadata_array start, trailer;
    grpc_status_code code;
    grpc_slice details;
    grpc_byte_buffer *received;
    err cut; /* why this side cancelled the call */
};

/* ---------------------------------------------------------------- the client */

static err copy_options(struct rpc_client *c, const struct rpc_client_options *o)
{
    c->options.stop = o->stop;
    c->options.server = c->server = strdup(o->server);
    bool done = c->server != NULL;
    if (o->root == NULL) {
        c->options.ca = c->ca = strdup(o->ca);
        c->options.cert = c->cert = strdup(o->cert);
        c->options.key = c->key = strdup(o->key);
        done = done && c->ca && c->cert && c->key;
    }
    return done ? ERR_NONE : err_sys(ENOMEM, "the client's options");
}

/* The contents of the files, and the identity in them; of a client without a certificate the root
 * alone. The caller closes `pem` with rpc_tls_pem_close(). */
static err read_files(struct rpc_tls_pem *pem, struct rpc_peer *self,
                      const struct rpc_client_options *o)
{
    if (o->root != NULL) {
        pem->ca = strdup(o->root);
        return pem->ca ? ERR_NONE : err_sys(ENOMEM, "the root");
    }
    TRY(rpc_tls_check(o->ca, o->cert, o->key, /*server*/ false, NULL));
    TRY(rpc_tls_pem_read(pem, o->ca, o->cert, o->key));
    err e = rpc_tls_identity(self, pem->cert, strlen(pem->cert));
    if (!err_is(e)) return e;
    rpc_tls_pem_close(pem);
    return err_in(e, "%s", o->cert);
}

static struct digest digest_files(const struct rpc_tls_pem *pem)
{
    const char *const text[] = {pem->ca, pem->cert, pem->key};
    struct digest_stream stream;
    digest_begin(&stream);
    for (size_t i = 0; i < 3; i++) /* with the final zero, which separates the three */
        digest_add(&stream, text[i], strlen(text[i]) + 1);
    return digest_end(&stream);
}

err rpc_client_open(struct rpc_client **out, const struct rpc_client_options *o)
{
    char host[256], port[6];
    TRY(rpc_init());
    struct rpc_proxy proxy;
    TRY(rpc_wire_split(host, sizeof host, port, o->server, "--server"));
    TRY(rpc_proxy_find(&proxy, host, port));
    struct rpc_tls_pem pem = {0};
    struct rpc_peer self = {0};
    TRY(read_files(&pem, &self, o));
    struct rpc_client *c = calloc(1, sizeof *c);
    err e = c == NULL ? err_sys(ENOMEM, "a client") : ERR_NONE;
    if (err_is(e)) goto out;
    TRY_OUT(e, copy_options(c, o));
    c->self = self;
    atomic_init(&c->ahead_ms, CLIENT_NO_CLOCK);
    if (o->root == NULL) c->files = digest_files(&pem);
    rpc_wire_start();
    c->proxy = proxy;
    c->channel = rpc_channel_open(c->server, &pem, &c->proxy);
    *out = c;
    c = NULL;
out:
    rpc_tls_pem_close(&pem);
    rpc_client_close(c);
    return e;
}

err rpc_client_reload(bool *changed, struct rpc_client *c)
{
    REQUIRE(c->cert != NULL); /* a client without files has none to read */
    struct rpc_tls_pem pem = {0};
    struct rpc_peer self;
    TRY(read_files(&pem, &self, &c->options));
    struct digest files = digest_files(&pem);
    bool others = !digest_equal(&files, &c->files);
    bool same = self.role == c->self.role && strcmp(self.federation, c->self.federation) == 0 &&
                strcmp(self.id, c->self.id) == 0;
    if (others && same) {
        grpc_channel_destroy(c->channel);
        c->channel = rpc_channel_open(c->server, &pem, &c->proxy);
        c->self = self;
        c->files = files;
    }
    rpc_tls_pem_close(&pem);
    if (others && !same)
        return err_make(ERR_INPUT, "%s now has the identity %s; it was %s at the start", c->cert,
                        self.id, c->self.id);
    *changed = others;
    return ERR_NONE;
}

/* gRPC 1.51 gives up connections, also those to a second address of the server, in threads of its
 * own that grpc_shutdown() does not wait for. If the process ends meanwhile, their memory counts as
 * leaked: in 5 of 30 processes without this pause, in none of 30 with it. */
enum { CLIENT_CLOSE_US = 20000 };

void rpc_client_close(struct rpc_client *c)
{
    if (c == NULL) return;
    if (c->channel != NULL) {
        grpc_channel_destroy(c->channel);
        usleep(CLIENT_CLOSE_US);
        grpc_shutdown();
    }
    free(c->server);
    free(c->ca);
    free(c->cert);
    free(c->key);
    free(c);
}

const struct rpc_peer *rpc_client_identity(const struct rpc_client *c)
{
    return &c->self;
}

bool rpc_client_clock(int64_t *ahead_ms, const struct rpc_client *c)
{
    long long ahead = atomic_load(&c->ahead_ms);
    if (ahead == CLIENT_NO_CLOCK) return false;
    *ahead_ms = ahead;
    return true;
}

/* ---------------------------------------------------------------- one call */

static bool is_stopped(const struct rpc_client *c)
{
    return c->options.stop != NULL && *c->options.stop != 0;
}

/* After a failure the channel would fail every call until its own back-off has passed, and it only
 * connects while a thread polls it. So the next call resets the back-off and polls until the
 * channel has connected or failed again. */
static void reconnect(struct rpc_client *c)
{
    grpc_connectivity_state state = grpc_channel_check_connectivity_state(c->channel, 1);
    if (state != GRPC_CHANNEL_TRANSIENT_FAILURE) return;
    grpc_channel_reset_connect_backoff(c->channel);
    grpc_completion_queue *queue = grpc_completion_queue_create_for_next(NULL);
    bool tried = false;
    for (uint64_t end = text_now_ms() + CLIENT_CONNECT_MS; text_now_ms() < end && !is_stopped(c);) {
        grpc_channel_watch_connectivity_state(c->channel, state, rpc_wire_after(CLIENT_SLICE_MS),
                                              queue, NULL);
        (void)grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        state = grpc_channel_check_connectivity_state(c->channel, 1);
        tried = tried || state == GRPC_CHANNEL_CONNECTING;
        if (state == GRPC_CHANNEL_READY || (tried && state == GRPC_CHANNEL_TRANSIENT_FAILURE))
            break;
    }
    grpc_completion_queue_shutdown(queue);
    (void)grpc_completion_queue_next(queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
    grpc_completion_queue_destroy(queue);
}

static void talk_open(struct talk *t, struct rpc_client *c, const char *path, uint64_t deadline_ms,
                      uint64_t stall_ms)
{
    reconnect(c);
    *t = (struct talk){.client = c,
                       .stall_ms = stall_ms,
                       .asked_ms = (int64_t)text_wall_ms(),
                       .details = grpc_empty_slice()};
    t->queue = grpc_completion_queue_create_for_next(NULL);
    grpc_metadata_array_init(&t->start);
    grpc_metadata_array_init(&t->trailer);
    grpc_slice method = grpc_slice_from_copied_string(path);
    t->call = grpc_channel_create_call(c->channel, NULL, GRPC_PROPAGATE_DEFAULTS, t->queue, method,
                                       NULL, rpc_wire_after(deadline_ms), NULL);
    grpc_slice_unref(method);
}

static void talk_start(struct talk *t, const grpc_op *op, size_t count, unsigned tag)
{
    REQUIRE((t->waiting & tag) == 0);
    t->waiting |= tag;
    t->moved_ms = text_now_ms();
    grpc_call_error error = grpc_call_start_batch(t->call, op, count, (void *)(uintptr_t)tag, NULL);
    REQUIRE(error == GRPC_CALL_OK);
}

static void talk_cut(struct talk *t, err why)
{
    if (err_is(t->cut)) return;
    t->cut = why;
    grpc_call_cancel(t->call, NULL);
}

/* Waits until one of `tags` has completed. Slices cost about 10 us each, so a process with
 * thousands of clients that wait for a task must not take them for nothing: without a flag or a
 * stall to look for, the call's own deadline ends the wait. */
static void talk_wait(struct talk *t, unsigned tags)
{
    bool watched = t->client->options.stop != NULL || t->stall_ms != 0;
    while ((t->waiting & tags) == tags) {
        grpc_event event = grpc_completion_queue_next(
            t->queue,
            watched ? rpc_wire_after(CLIENT_SLICE_MS) : gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL);
        if (event.type == GRPC_OP_COMPLETE) {
            unsigned tag = (unsigned)(uintptr_t)event.tag;
            t->waiting &= ~tag;
            if (event.success == 0) t->failed |= tag;
            t->moved_ms = text_now_ms();
        } else if (is_stopped(t->client)) {
            talk_cut(t, err_make(ERR_STOPPED, "interrupted"));
        } else if (t->stall_ms != 0 && text_now_ms() - t->moved_ms > t->stall_ms) {
            talk_cut(t, err_make(ERR_MACHINE, "%s: no data was sent or received for %llu s",
                                 t->client->server, (unsigned long long)(t->stall_ms / 1000)));
        }
    }
}

static err talk_result(struct talk *t)
{
    if (err_is(t->cut)) return t->cut;
    char text[ERR_TEXT_BYTES];
    size_t size = GRPC_SLICE_LENGTH(t->details);
    if (size >= sizeof text) size = sizeof text - 1;
    memcpy(text, GRPC_SLICE_START_PTR(t->details), size);
    text[size] = 0;
    text_tame(text); /* it ends on a terminal */
    if (t->code != GRPC_STATUS_UNAVAILABLE || t->client->cert == NULL)
        return rpc_wire_err(t->code, text);
    /* The text may be gRPC's own, which does not name the cause, so a probe looks for it. */
    struct rpc_tls_report report;
    err cause = rpc_tls_probe(&report, &t->client->options);
    return err_is(cause) ? cause : rpc_wire_err(t->code, text);
}

/* The batch that receives the status must have been started. Drains the call, frees it, and
 * returns how it ended. */
static err talk_close(struct talk *t)
{
    for (unsigned tag = TAG_DONE; tag <= TAG_WRITE; tag <<= 1)
        talk_wait(t, tag);
    err e = talk_result(t);
    if (t->received != NULL) grpc_byte_buffer_destroy(t->received);
    grpc_metadata_array_destroy(&t->start);
    grpc_metadata_array_destroy(&t->trailer);
    grpc_slice_unref(t->details);
    grpc_call_unref(t->call);
    grpc_completion_queue_shutdown(t->queue);
    while (grpc_completion_queue_next(t->queue, gpr_inf_future(GPR_CLOCK_MONOTONIC), NULL).type !=
           GRPC_QUEUE_SHUTDOWN) {
    }
    grpc_completion_queue_destroy(t->queue);
    return e;
}

static grpc_op op_of(grpc_op_type type)
{
    return (grpc_op){.op = type};
}

static grpc_op op_send(grpc_byte_buffer *buffer)
{
    return (grpc_op){.op = GRPC_OP_SEND_MESSAGE, .data.send_message.send_message = buffer};
}

static grpc_op op_receive(struct talk *t)
{
    return (grpc_op){.op = GRPC_OP_RECV_MESSAGE, .data.recv_message.recv_message = &t->received};
}

static grpc_op op_receive_start(struct talk *t)
{
    return (grpc_op){.op = GRPC_OP_RECV_INITIAL_METADATA,
                     .data.recv_initial_metadata.recv_initial_metadata = &t->start};
}

static grpc_op op_receive_status(struct talk *t)
{
    return (grpc_op){.op = GRPC_OP_RECV_STATUS_ON_CLIENT,
                     .data.recv_status_on_client = {.trailing_metadata = &t->trailer,
                                                    .status = &t->code,
                                                    .status_details = &t->details}};
}

/* Moves the received message to `out`. False: there is none, or it cannot be read. */
static bool take_received(struct bytes *out, struct talk *t)
{
    grpc_byte_buffer *buffer = t->received;
    t->received = NULL;
    bool ok = buffer != NULL && rpc_wire_read(out, buffer);
    if (buffer != NULL) grpc_byte_buffer_destroy(buffer);
    return ok;
}

/* The server read its clock between our question and its answer; half of the way is the best
 * guess. */
static void note_clock(struct talk *t)
{
    for (size_t i = 0; i < t->start.count; i++) {
        const grpc_metadata *m = &t->start.metadata[i];
        char text[24];
        int64_t theirs = 0, now = (int64_t)text_wall_ms();
        size_t size = GRPC_SLICE_LENGTH(m->value);
        if (grpc_slice_str_cmp(m->key, RPC_CLOCK_KEY) != 0 || size >= sizeof text) continue;
        memcpy(text, GRPC_SLICE_START_PTR(m->value), size);
        text[size] = 0;
        if (err_is(text_parse_int(&theirs, text, 0, INT64_MAX / 2))) continue;
        atomic_store(&t->client->ahead_ms, theirs - t->asked_ms - (now - t->asked_ms) / 2);
    }
}

/* The reply is appended to *out only if the whole call succeeded. */
static err finish_with_reply(struct bytes *out, struct talk *t)
{
    struct bytes reply = {.max = out->max > out->size ? out->max - out->size : 0};
    talk_wait(t, TAG_DONE);
    note_clock(t);
    bool has = take_received(&reply, t);
    const char *server = t->client->server;
    err e = talk_close(t);
    if (!err_is(e) && !has)
        e = err_make(ERR_MACHINE, "%s: an answer without a usable reply", server);
    if (!err_is(e) && reply.size > 0) e = bytes_append(out, reply.data, reply.size);
    bytes_close(&reply);
    return e;
}

static err check_stop(const struct rpc_client *c)
{
    if (c->options.stop != NULL && *c->options.stop != 0)
        return err_make(ERR_STOPPED, "interrupted");
    return ERR_NONE;
}

err rpc_client_unary(struct bytes *reply, struct rpc_client *c, const char *path,
                     const struct bytes *request, uint64_t deadline_ms)
{
    TRY(check_stop(c));
    struct talk t;
    talk_open(&t, c, path, deadline_ms, /*stall_ms*/ 0);
    grpc_byte_buffer *message = rpc_wire_buffer(request->data, request->size);
    const grpc_op op[] = {op_of(GRPC_OP_SEND_INITIAL_METADATA),
                          op_send(message),
                          op_of(GRPC_OP_SEND_CLOSE_FROM_CLIENT),
                          op_receive_start(&t),
                          op_receive(&t),
                          op_receive_status(&t)};
    talk_start(&t, op, sizeof op / sizeof op[0], TAG_DONE);
    grpc_byte_buffer_destroy(message);
    return finish_with_reply(reply, &t);
}

/* ---------------------------------------------------------------- streams */

/* Sends messages until the source ends or fails, or the server has answered. */
static void send_parts(struct talk *t, const struct rpc_upload *upload, struct bytes *message)
{
    bool end = false;
    while (!end && (t->waiting & TAG_DONE) != 0 && (t->failed & TAG_WRITE) == 0 &&
           !err_is(t->cut)) {
        bytes_clear(message);
        err e = upload->part(message, &end, upload->context);
        if (err_is(e)) {
            talk_cut(t, e);
            break;
        }
        grpc_byte_buffer *buffer = end ? NULL : rpc_wire_buffer(message->data, message->size);
        grpc_op op = end ? op_of(GRPC_OP_SEND_CLOSE_FROM_CLIENT) : op_send(buffer);
        talk_start(t, &op, 1, TAG_WRITE);
        if (buffer != NULL) grpc_byte_buffer_destroy(buffer);
        /* Waits for the write; if the server refuses the upload meanwhile, the call ends. */
        talk_wait(t, TAG_WRITE | TAG_DONE);
    }
}

err rpc_client_upload(struct bytes *reply, struct rpc_client *c, const struct rpc_upload *upload)
{
    TRY(check_stop(c));
    struct talk t;
    struct bytes message = {.max = RPC_MESSAGE_BYTES};
    talk_open(&t, c, upload->path, upload->deadline_ms, upload->stall_ms);
    const grpc_op op[] = {op_of(GRPC_OP_SEND_INITIAL_METADATA), op_receive_start(&t),
                          op_receive(&t), op_receive_status(&t)};
    talk_start(&t, op, sizeof op / sizeof op[0], TAG_DONE);
    send_parts(&t, upload, &message);
    bytes_close(&message);
    return finish_with_reply(reply, &t);
}

/* Receives messages until the server ends the stream. An error of `part` cuts the call. */
static void receive_parts(struct talk *t, const struct rpc_download *download,
                          struct bytes *message)
{
    for (;;) {
        const grpc_op op = op_receive(t);
        talk_start(t, &op, 1, TAG_READ);
        talk_wait(t, TAG_READ);
        if (t->received == NULL || err_is(t->cut)) return;
        bytes_clear(message);
        err e = ERR_NONE;
        if (!take_received(message, t))
            e = err_make(ERR_MACHINE, "%s: a message that cannot be read", t->client->server);
        else
            e = download->part(message->data == NULL ? (const void *)"" : message->data,
                               message->size, download->context);
        if (err_is(e)) {
            talk_cut(t, e);
            return;
        }
    }
}

err rpc_client_download(struct rpc_client *c, const struct rpc_download *download)
{
    TRY(check_stop(c));
    struct talk t;
    struct bytes message = {.max = RPC_MESSAGE_BYTES};
    talk_open(&t, c, download->path, download->deadline_ms, download->stall_ms);
    grpc_byte_buffer *request = rpc_wire_buffer(download->request->data, download->request->size);
    const grpc_op op[] = {op_of(GRPC_OP_SEND_INITIAL_METADATA), op_send(request),
                          op_of(GRPC_OP_SEND_CLOSE_FROM_CLIENT), op_receive_start(&t)};
    talk_start(&t, op, sizeof op / sizeof op[0], TAG_WRITE);
    grpc_byte_buffer_destroy(request);
    const grpc_op last = op_receive_status(&t);
    talk_start(&t, &last, 1, TAG_DONE);
    receive_parts(&t, download, &message);
    bytes_close(&message);
    return talk_close(&t);
}
