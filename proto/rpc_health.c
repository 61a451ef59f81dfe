/* grpc.health.v1, so that standard probes work: Check answers at once, Watch sends every change. */
#include "proto/rpc_internal.h"

#include "health.pb-c.h"
#include "proto/message.h"

#include <stdlib.h>
#include <string.h>

typedef Grpc__Health__V1__HealthCheckRequest request_message;
typedef Grpc__Health__V1__HealthCheckResponse response_message;
typedef Grpc__Health__V1__HealthCheckResponse__ServingStatus serving_status;

#define HEALTH(status) GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__SERVING_STATUS__##status

enum { HEALTH_NOTHING_SENT = -1 };

struct watcher { /* the state of one Watch */
    bool known;
    int told; /* the status last sent */
};

/* "fedlora.v1.Federation" is the service of "/fedlora.v1.Federation/Hello". */
static bool is_service(const struct rpc_server *s, const char *service)
{
    size_t length = strlen(service);
    if (length == 0) return true;
    for (size_t i = 0; i < s->options.method_count; i++) {
        const char *path = s->options.method[i].path + 1;
        if (strncmp(path, service, length) == 0 && path[length] == '/') return true;
    }
    return false;
}

static size_t pack(uint8_t out[16], serving_status status)
{
    response_message reply = GRPC__HEALTH__V1__HEALTH_CHECK_RESPONSE__INIT;
    reply.status = status;
    return grpc__health__v1__health_check_response__pack(&reply, out);
}

static err unpack(bool *known, struct rpc_call *call, const void *request, size_t size)
{
    request_message *message = NULL;
    TRY(message_unpack(&message, &grpc__health__v1__health_check_request__descriptor, request,
                       size));
    *known = is_service(rpc_call_context(call), message->service);
    message_free(message);
    return ERR_NONE;
}

static void check_begin(struct rpc_call *call, const void *request, size_t size)
{
    const struct rpc_server *s = rpc_call_context(call);
    bool known = false;
    err e = unpack(&known, call, request, size);
    uint8_t reply[16];
    if (err_is(e))
        rpc_call_refuse(call, e);
    else if (!known)
        rpc_call_status(call, GRPC_STATUS_NOT_FOUND, "there is no such service here");
    else
        rpc_call_answer(call, reply,
                        pack(reply, s->serving ? HEALTH(SERVING) : HEALTH(NOT_SERVING)));
}

static void watch_begin(struct rpc_call *call, const void *request, size_t size)
{
    struct watcher *watcher = malloc(sizeof *watcher);
    err e = watcher == NULL ? err_make(ERR_MACHINE, "out of memory")
                            : unpack(&watcher->known, call, request, size);
    if (err_is(e)) {
        free(watcher);
        rpc_call_refuse(call, e);
        return;
    }
    watcher->told = HEALTH_NOTHING_SENT;
    rpc_call_set_state(call, watcher);
}

static void watch_more(struct rpc_call *call)
{
    struct watcher *watcher = rpc_call_state(call);
    const struct rpc_server *s = call->server;
    serving_status now = !watcher->known ? HEALTH(SERVICE_UNKNOWN)
                         : s->serving    ? HEALTH(SERVING)
                                         : HEALTH(NOT_SERVING);
    uint8_t reply[16];
    if (watcher->told != (int)now) {
        watcher->told = (int)now;
        rpc_call_send(call, reply, pack(reply, now));
    } else if (s->draining) {
        rpc_call_refuse(call, err_make(ERR_MACHINE, "the server is stopping"));
    }
}

static void watch_over(struct rpc_call *call, bool answered)
{
    (void)answered;
    free(rpc_call_state(call));
}

const struct rpc_method rpc_health_method[] = {
    {.path = "/grpc.health.v1.Health/Check",
     .shape = RPC_UNARY,
     .roles = RPC_CLIENT | RPC_ADMIN,
     .tells_time = true,
     .begin = check_begin},
    {.path = "/grpc.health.v1.Health/Watch",
     .shape = RPC_DOWNLOAD,
     .roles = RPC_CLIENT | RPC_ADMIN,
     .begin = watch_begin,
     .more = watch_more,
     .over = watch_over},
};
const size_t rpc_health_method_count = sizeof rpc_health_method / sizeof rpc_health_method[0];

void rpc_health_changed(struct rpc_server *s)
{
    for (struct rpc_call *call = s->calls, *next; call != NULL; call = next) {
        next = call->next;
        if (call->method == &rpc_health_method[1] && call->begun && call->state != NULL &&
            !call->answered && !call->is_closed && !call->writing)
            watch_more(call);
    }
}
