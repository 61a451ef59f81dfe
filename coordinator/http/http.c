/* The HTTP server: libmicrohttpd with one thread for each of a bounded number of connections. */
#include "coordinator/http/http.h"

#include "base/log.h"
#include "base/text.h"
#include "coordinator/http/http_cache.h"
#include "coordinator/http/metrics.h"
#include "coordinator/http/overview.h"
#include "proto/front_listen.h"

#include <errno.h>
#include <microhttpd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

enum {
    HTTP_CONNECTIONS = 32,
    HTTP_FROM_ONE_ADDRESS = 16,
    HTTP_IDLE_S = 10,
    HTTP_LIFE_MS = 30 * 1000, /* of a connection, also of one that sends a byte now and then */
    HTTP_REQUEST_BYTES = 16 * 1024,
    HTTP_STACK_BYTES = 512 * 1024,
    HTTP_TICK_MS = 10 * 1000, /* a loop that is older does not answer */
};

struct http {
    struct http_cache cache;
    struct MHD_Daemon *daemon[FRONT_LISTENERS];
    size_t daemons;
    int port;
    char policy[256];     /* overview_policy() */
    pthread_mutex_t lock; /* for the list */
    struct {
        int fd; /* 0: free */
        uint64_t born_ms;
    } open[FRONT_LISTENERS * HTTP_CONNECTIONS];
};

/* ---- answers
 *
 * Each answer is one finished text. A page that the loop thread has made is shared by all requests
 * that get it, and is freed when the last of them is over. */

struct answer {
    unsigned code;
    const char *type;
    const char *text;
    struct http_text *page; /* or NULL; `text` is its text */
};

static const char plain[] = "text/plain; charset=utf-8", json[] = "application/json";

static struct answer say(unsigned code, const char *text)
{
    return (struct answer){.code = code, .type = plain, .text = text};
}

/* A start that recovers a large store is alive, although the loop does not run yet. */
static struct answer answer_health(struct http *h)
{
    uint64_t tick = atomic_load(&h->cache.tick_ms);
    if (!tick) return say(MHD_HTTP_OK, "starting\n");
    if (text_now_ms() - tick <= HTTP_TICK_MS) return say(MHD_HTTP_OK, "ok\n");
    return say(MHD_HTTP_SERVICE_UNAVAILABLE, "the loop has not ticked for more than 10 s\n");
}

/* The loop does not run, so this thread makes the text. */
static struct answer not_ready(enum facts_check check, const char *says)
{
    struct http_text *t = calloc(1, sizeof *t);
    struct answer a = say(MHD_HTTP_SERVICE_UNAVAILABLE, "out of memory\n");
    if (!t) return a;
    atomic_init(&t->users, 1);
    t->text.max = METRICS_BYTES_MAX;
    err e = facts_not_ready_json(&t->text, check, says);
    if (err_is(e)) {
        http_text_release(t);
        return a;
    }
    return (struct answer){a.code, json, (const char *)t->text.data, t};
}

/* A page that is older than the loop's last turns says nothing: a loop that hangs must not look
 * ready because it was so before. */
static struct answer answer_ready(struct http *h)
{
    enum http_phase phase;
    struct http_text *t = http_cache_get(&h->cache, HTTP_READY, &phase);
    bool lives = t && text_now_ms() - atomic_load(&h->cache.tick_ms) <= HTTP_TICK_MS;
    if (phase == HTTP_RUNNING && lives)
        return (struct answer){t->ready ? MHD_HTTP_OK : MHD_HTTP_SERVICE_UNAVAILABLE, json,
                               (const char *)t->text.data, t};
    http_text_release(t);
    if (phase == HTTP_STARTING)
        return not_ready(FACTS_RECOVERY, "the coordinator starts: it recovers its store");
    if (phase == HTTP_DRAINING) return not_ready(FACTS_DRAINING, "the coordinator is stopping");
    return not_ready(FACTS_LOOP, "the loop does not answer");
}

/* An old page is better than none: while the coordinator stops, Prometheus still gets the last
 * figures. */
static struct answer answer_page(struct http *h, enum http_page page, const char *type)
{
    enum http_phase phase;
    struct http_text *t = http_cache_get(&h->cache, page, &phase);
    if (t) return (struct answer){MHD_HTTP_OK, type, (const char *)t->text.data, t};
    return say(MHD_HTTP_SERVICE_UNAVAILABLE,
               phase == HTTP_STARTING ? "the coordinator starts\n" : "no answer, try again\n");
}

/* Exact paths: a query or a folder has no meaning here. */
static struct answer answer_path(struct http *h, const char *path)
{
    if (!strcmp(path, "/healthz")) return answer_health(h);
    if (!strcmp(path, "/readyz")) return answer_ready(h);
    if (!strcmp(path, "/metrics"))
        return answer_page(h, HTTP_METRICS, "text/plain; version=0.0.4; charset=utf-8");
    if (!strcmp(path, "/status.json")) return answer_page(h, HTTP_STATUS, json);
    if (!strcmp(path, "/")) return answer_page(h, HTTP_OVERVIEW, "text/html; charset=utf-8");
    return say(MHD_HTTP_NOT_FOUND, "pages: / /status.json /metrics /healthz /readyz\n");
}

/* ---- libmicrohttpd */

/* Called by libmicrohttpd when the last byte was sent, or the client has left. */
static void release(void *text)
{
    http_text_release(text);
}

/* The page has no script, loads nothing and sends nothing, so everything is forbidden but its own
 * style. A connection carries one request, so that its life stays short. */
static void add_headers(struct MHD_Response *response, const struct http *h, const struct answer *a)
{
    static const char *const header[][2] = {
        {MHD_HTTP_HEADER_CACHE_CONTROL, "no-store"},
        {MHD_HTTP_HEADER_CONNECTION, "close"},
        {MHD_HTTP_HEADER_ALLOW, "GET, HEAD"},
        {"X-Content-Type-Options", "nosniff"},
        {"X-Frame-Options", "DENY"},
        {"Referrer-Policy", "no-referrer"},
    };
    for (size_t i = 0; i < sizeof header / sizeof *header; i++)
        MHD_add_response_header(response, header[i][0], header[i][1]);
    MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, a->type);
    MHD_add_response_header(response, "Content-Security-Policy", h->policy);
}

static enum MHD_Result respond(void *context, struct MHD_Connection *connection, const char *path,
                               const char *method, const char *version, const char *data,
                               size_t *size, void **request)
{
    struct http *h = context;
    (void)version, (void)data, (void)request;
    struct answer a = say(MHD_HTTP_METHOD_NOT_ALLOWED, "these pages can only be read\n");
    /* A body is refused before it is read. */
    if (*size == 0 && (!strcmp(method, "GET") || !strcmp(method, "HEAD"))) a = answer_path(h, path);
    /* libmicrohttpd does not change the text, although its type would allow it to. */
    void *text = (void *)(uintptr_t)a.text;
    struct MHD_Response *response =
        a.page ? MHD_create_response_from_buffer_with_free_callback_cls(a.page->text.size, text,
                                                                        release, a.page)
               : MHD_create_response_from_buffer(strlen(a.text), text, MHD_RESPMEM_PERSISTENT);
    if (!response) {
        http_text_release(a.page);
        return MHD_NO;
    }
    add_headers(response, h, &a);
    enum MHD_Result queued = MHD_queue_response(connection, a.code, response);
    MHD_destroy_response(response);
    return queued;
}

/* libmicrohttpd closes the socket after it has said that the connection is closed, so a descriptor
 * in the list is never that of another file. */
static void on_connection(void *context, struct MHD_Connection *connection, void **place,
                          enum MHD_ConnectionNotificationCode code)
{
    struct http *h = context;
    size_t places = sizeof h->open / sizeof *h->open, i = 0;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    pthread_mutex_lock(&h->lock);
    if (code == MHD_CONNECTION_NOTIFY_STARTED && info) {
        while (i < places && h->open[i].fd)
            i++;
        if (i < places) {
            h->open[i].fd = info->connect_fd;
            h->open[i].born_ms = text_now_ms();
            *place = &h->open[i];
        }
    } else if (code == MHD_CONNECTION_NOTIFY_CLOSED && *place) {
        memset(*place, 0, sizeof *h->open);
    }
    pthread_mutex_unlock(&h->lock);
}

/* The idle limit of libmicrohttpd lets a client live that sends a byte from time to time. */
static void end_old(struct http *h)
{
    uint64_t now = text_now_ms();
    pthread_mutex_lock(&h->lock);
    for (size_t i = 0; i < sizeof h->open / sizeof *h->open; i++)
        if (h->open[i].fd && now - h->open[i].born_ms > HTTP_LIFE_MS)
            shutdown(h->open[i].fd, SHUT_RDWR);
    pthread_mutex_unlock(&h->lock);
}

/* A thread for each connection, because a request waits for the loop thread. Their number is
 * bounded, and a thread that waits costs a stack only. */
static err start_daemon(struct http *h, int fd)
{
    h->daemon[h->daemons] = MHD_start_daemon(
        MHD_USE_THREAD_PER_CONNECTION | MHD_USE_INTERNAL_POLLING_THREAD | MHD_USE_POLL |
            MHD_USE_ITC,
        0, NULL, NULL, respond, h, MHD_OPTION_LISTEN_SOCKET, fd, MHD_OPTION_CONNECTION_LIMIT,
        (unsigned)HTTP_CONNECTIONS, MHD_OPTION_PER_IP_CONNECTION_LIMIT,
        (unsigned)HTTP_FROM_ONE_ADDRESS, MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)HTTP_IDLE_S,
        MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HTTP_REQUEST_BYTES,
        MHD_OPTION_THREAD_STACK_SIZE, (size_t)HTTP_STACK_BYTES, MHD_OPTION_NOTIFY_CONNECTION,
        on_connection, h, MHD_OPTION_END);
    if (!h->daemon[h->daemons]) return err_sys(errno, "the HTTP server");
    h->daemons++;
    return ERR_NONE;
}

/* A daemon closes its own socket; the others are closed here after an error. */
static err start_all(struct http *h, const char *listen)
{
    struct front_listeners l = {0};
    err e = ERR_NONE;
    TRY(front_listen_text(&l, listen, "http.listen"));
    h->port = l.port;
    for (size_t i = 0; i < l.count && !err_is(e); i++)
        e = start_daemon(h, l.fd[i]);
    if (!err_is(e)) return e;
    memmove(l.fd, l.fd + h->daemons, (l.count - h->daemons) * sizeof *l.fd);
    l.count -= h->daemons;
    front_listen_close(&l);
    return e;
}

err http_open(struct http **out, const struct config *config)
{
    if (!config->http_listen || !*config->http_listen) return ERR_NONE;
    struct http *h = calloc(1, sizeof *h);
    if (!h) return err_sys(ENOMEM, "the HTTP server");
    pthread_mutex_init(&h->lock, NULL);
    overview_policy(h->policy, sizeof h->policy);
    err e = http_cache_open(&h->cache, config);
    if (!err_is(e)) e = start_all(h, config->http_listen);
    if (err_is(e)) {
        http_close(h);
        return e;
    }
    LOG(LOG_INFO, "http.listening", LOG_STR("listen", config->http_listen),
        LOG_INT("port", h->port));
    *out = h;
    return ERR_NONE;
}

int http_port(const struct http *h)
{
    return h ? h->port : 0;
}

/* The watch over old connections is here because the loop turns at least twice a second. */
void http_turn(struct http *h, struct serve *s)
{
    if (!h) return;
    http_cache_turn(&h->cache, s);
    end_old(h);
}

void http_drain(struct http *h)
{
    if (h) http_cache_drain(&h->cache);
}

void http_close(struct http *h)
{
    if (!h) return;
    http_cache_drain(&h->cache);
    for (size_t i = 0; i < h->daemons; i++)
        MHD_stop_daemon(h->daemon[i]);
    http_cache_close(&h->cache);
    pthread_mutex_destroy(&h->lock);
    free(h);
}
