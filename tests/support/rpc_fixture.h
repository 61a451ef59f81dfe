/* A server in its own thread, whose methods show the behaviour of the RPC layer, and its
 * certificates. */
#ifndef TESTS_SUPPORT_RPC_FIXTURE_H
#define TESTS_SUPPORT_RPC_FIXTURE_H

#include "base/text.h"
#include "proto/rpc.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIXTURE_CERTS FEDLORA_BUILD_DIR "/test-certs"
#define FIXTURE_OK(call)                                                                           \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert_eq(ok_.kind, ERR_OK, "%s: %s", #call, ok_.text);                                 \
    } while (0)

struct fixture {
    struct rpc_server *server;
    pthread_t thread;
    atomic_bool stop;
    char address[64];
    char certs[4][512];
    /* counted by the handlers */
    atomic_int begun, over, answered, parts, ended, held, sent;
    atomic_ulong bytes;
    atomic_bool upload_waits; /* parts are taken but no next one is asked for */
    struct rpc_call *holding;
    atomic_int events; /* of the server's front */
    char reason[256];  /* of the last one */
};

static inline struct fixture *fixture_of(struct rpc_call *call)
{
    return rpc_call_context(call);
}

static inline void fixture_echo(struct rpc_call *call, const void *request, size_t size)
{
    struct fixture *f = fixture_of(call);
    atomic_fetch_add(&f->begun, 1);
    char reply[4096];
    int used = snprintf(reply, sizeof reply, "%s:%s:", rpc_call_peer(call)->federation,
                        rpc_call_peer(call)->id);
    size_t take = size < 2000 ? size : 2000;
    memcpy(reply + used, request, take);
    rpc_call_answer(call, reply, (size_t)used + take);
}

static inline void fixture_fail(struct rpc_call *call, const void *request, size_t size)
{
    int kind = size == 1 ? *(const char *)request : ERR_INPUT;
    rpc_call_refuse(call, err_make((enum err_kind)kind, "because of %d", kind));
}

static inline void fixture_hold(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    struct fixture *f = fixture_of(call);
    f->holding = call;
    atomic_fetch_add(&f->held, 1);
}

static inline void fixture_upload_begin(struct rpc_call *call, const void *request, size_t size)
{
    (void)request, (void)size;
    atomic_fetch_add(&fixture_of(call)->begun, 1);
}

static inline void fixture_upload_part(struct rpc_call *call, const void *message, size_t size)
{
    (void)message;
    struct fixture *f = fixture_of(call);
    atomic_fetch_add(&f->parts, 1);
    atomic_fetch_add(&f->bytes, size);
    if (size == 6 && memcmp(message, "refuse", 6) == 0)
        rpc_call_refuse(call, err_make(ERR_STATE, "the round is over"));
    else if (!atomic_load(&f->upload_waits))
        rpc_call_next(call);
}

static inline void fixture_upload_end(struct rpc_call *call)
{
    atomic_fetch_add(&fixture_of(call)->ended, 1);
    rpc_call_answer(call, "thanks", 6);
}

static inline void fixture_download_begin(struct rpc_call *call, const void *request, size_t size)
{
    int count = 0;
    if (size == sizeof count) memcpy(&count, request, size);
    int *left = malloc(sizeof *left);
    cr_assert_not_null(left);
    *left = count;
    rpc_call_set_state(call, left);
    atomic_fetch_add(&fixture_of(call)->begun, 1);
}

static inline void fixture_download_more(struct rpc_call *call)
{
    static char chunk[LIMIT_CHUNK_BYTES];
    int *left = rpc_call_state(call);
    if (*left == 0) {
        rpc_call_finish(call);
        return;
    }
    memset(chunk, *left, sizeof chunk);
    (*left)--;
    atomic_fetch_add(&fixture_of(call)->sent, 1);
    rpc_call_send(call, chunk, sizeof chunk);
}

static inline void fixture_over(struct rpc_call *call, bool answered)
{
    struct fixture *f = fixture_of(call);
    free(rpc_call_state(call));
    if (f->holding == call) f->holding = NULL;
    if (answered) atomic_fetch_add(&f->answered, 1);
    atomic_fetch_add(&f->over, 1);
}

static const struct rpc_method fixture_method[] = {
    {.path = "/test.T/Echo",
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT | RPC_ADMIN,
     .begin = fixture_echo,
     .over = fixture_over},
    {.path = "/test.T/Fail", .shape = RPC_UNARY, .roles = RPC_CLIENT, .begin = fixture_fail},
    {.path = "/test.T/AdminOnly", .shape = RPC_UNARY, .roles = RPC_ADMIN, .begin = fixture_echo},
    {.path = "/test.T/Hold",
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT,
     .begin = fixture_hold,
     .over = fixture_over},
    {.path = "/test.T/Upload",
     .shape = RPC_UPLOAD,
     .roles = RPC_CLIENT,
     .begin = fixture_upload_begin,
     .part = fixture_upload_part,
     .end = fixture_upload_end,
     .over = fixture_over},
    {.path = "/test.T/Download",
     .shape = RPC_DOWNLOAD,
     .roles = RPC_CLIENT,
     .begin = fixture_download_begin,
     .more = fixture_download_more,
     .over = fixture_over},
};

static inline void fixture_certs(void)
{
    int code = system(FEDLORA_SOURCE_DIR "/tests/support/rpc_certs.sh " FEDLORA_SOURCE_DIR
                                         "/deploy/make-certs.sh " FIXTURE_CERTS);
    cr_assert_eq(code, 0, "certificates could not be made");
}

static inline void fixture_event(void *context, const struct rpc_event *event)
{
    struct fixture *f = context;
    snprintf(f->reason, sizeof f->reason, "%s: %s", event->address, event->reason);
    atomic_fetch_add(&f->events, 1);
}

static inline struct rpc_server_options fixture_server_options(struct fixture *f,
                                                               const char *listen_on)
{
    return (struct rpc_server_options){.listen = listen_on,
                                       .ca = FIXTURE_CERTS "/ca.pem",
                                       .cert = FIXTURE_CERTS "/server.pem",
                                       .key = FIXTURE_CERTS "/server.key",
                                       .federation = "fed",
                                       .method = fixture_method,
                                       .method_count =
                                           sizeof fixture_method / sizeof fixture_method[0],
                                       .context = f,
                                       .event = fixture_event};
}

static inline void *fixture_loop(void *argument)
{
    struct fixture *f = argument;
    while (!atomic_load(&f->stop))
        rpc_server_poll(f->server, 1000);
    return NULL;
}

static inline void fixture_serve(struct fixture *f, const struct rpc_server_options *options)
{
    FIXTURE_OK(rpc_server_open(&f->server, options));
    snprintf(f->address, sizeof f->address, "localhost:%d", rpc_server_port(f->server));
    rpc_server_set_serving(f->server, true);
    atomic_store(&f->stop, false);
    cr_assert_eq(pthread_create(&f->thread, NULL, fixture_loop, f), 0);
}

static inline void fixture_start(struct fixture *f)
{
    fixture_certs();
    const struct rpc_server_options options = fixture_server_options(f, "localhost:0");
    fixture_serve(f, &options);
}

static inline void fixture_stop(struct fixture *f)
{
    atomic_store(&f->stop, true);
    rpc_server_wake(f->server);
    pthread_join(f->thread, NULL);
    rpc_server_close(f->server, 100);
    f->server = NULL;
}

/* Options of a client that uses the certificate `name` (a path below the folder of
 * certificates). */
static inline struct rpc_client_options fixture_client(struct fixture *f, const char *name)
{
    snprintf(f->certs[0], sizeof f->certs[0], "%s/ca.pem", FIXTURE_CERTS);
    snprintf(f->certs[1], sizeof f->certs[1], "%s/%s.pem", FIXTURE_CERTS, name);
    snprintf(f->certs[2], sizeof f->certs[2], "%s/%s.key", FIXTURE_CERTS, name);
    return (struct rpc_client_options){
        .server = f->address, .ca = f->certs[0], .cert = f->certs[1], .key = f->certs[2]};
}

static inline err fixture_call(struct rpc_client *client, const char *path, const char *request,
                               struct bytes *reply)
{
    struct bytes message = {.max = RPC_MESSAGE_BYTES};
    FIXTURE_OK(bytes_append(&message, request, strlen(request)));
    err e = rpc_client_unary(reply, client, path, &message, 5000);
    bytes_close(&message);
    return e;
}

/* Waits up to 5 s until a counter of another thread has reached a value. */
static inline bool fixture_wait(atomic_int *counter, int least)
{
    for (int i = 0; i < 500; i++) {
        if (atomic_load(counter) >= least) return true;
        usleep(10000);
    }
    return false;
}

#endif
