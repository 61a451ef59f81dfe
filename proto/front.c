#include "proto/front_internal.h"

#include "base/text.h"

#include <arpa/inet.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    FRONT_EVENTS = 64,
    /* A handshake costs about a millisecond of computing, a relayed record some microseconds. So
     * only a few handshakes run between two turns of the others. */
    FRONT_SHAKES = 4,
    FRONT_ACCEPTS = 16,
    FRONT_SWEEP_MS = 250,
    FRONT_PAUSED_MS = 20,
    FRONT_ROOM_MS = 20,   /* until accepting tries again, when all handshakes are in use */
    FRONT_SHORT_MS = 250, /* the same without a free descriptor */
    FRONT_PEERS_MAX = 4 * LIMIT_MEMBERS,
    FRONT_CHECKED_BYTES = 1 << 20, /* one read, with its headers written again, is far below */
};

/* ---------------------------------------------------------------- names */

/* Names are random hexadecimal digits, so three of them are a hash. */
static struct front_conn **bucket_of(struct front *front, const char *name)
{
    char digits[4];
    snprintf(digits, sizeof digits, "%.3s", name);
    return &front->name[strtoul(digits, NULL, 16) % FRONT_NAMES];
}

void front_name_add(struct front_conn *c)
{
    struct front *front = c->front;
    pthread_mutex_lock(&front->lock);
    struct front_conn **bucket = bucket_of(front, c->name);
    c->name_next = *bucket;
    *bucket = c;
    pthread_mutex_unlock(&front->lock);
}

void front_name_remove(struct front_conn *c)
{
    struct front *front = c->front;
    pthread_mutex_lock(&front->lock);
    struct front_conn **at = bucket_of(front, c->name);
    while (*at != NULL && *at != c)
        at = &(*at)->name_next;
    if (*at != NULL) *at = c->name_next;
    pthread_mutex_unlock(&front->lock);
}

bool front_find(struct rpc_peer *peer, struct front *front, const char *authority)
{
    bool found = false;
    pthread_mutex_lock(&front->lock);
    for (struct front_conn *c = *bucket_of(front, authority); c != NULL && !found; c = c->name_next)
        if (strcmp(c->name, authority) == 0) {
            *peer = c->peer;
            found = true;
        }
    pthread_mutex_unlock(&front->lock);
    return found;
}

/* ---------------------------------------------------------------- accepting */

/* The address as text, and the name of its limits: IPv6 hosts have 2^64 addresses, so these are
 * counted by network. */
static void write_address(char out[RPC_ADDRESS_BYTES], char place[RPC_ADDRESS_BYTES],
                          const struct sockaddr_storage *from)
{
    struct in6_addr six = ((const struct sockaddr_in6 *)from)->sin6_addr;
    struct in_addr four = ((const struct sockaddr_in *)from)->sin_addr;
    bool is_six = from->ss_family == AF_INET6;
    if (is_six && IN6_IS_ADDR_V4MAPPED(&six)) {
        memcpy(&four, six.s6_addr + 12, sizeof four);
        is_six = false;
    }
    if (is_six)
        (void)inet_ntop(AF_INET6, &six, out, RPC_ADDRESS_BYTES);
    else
        (void)inet_ntop(AF_INET, &four, out, RPC_ADDRESS_BYTES);
    memcpy(place, out, RPC_ADDRESS_BYTES);
    if (!is_six || IN6_IS_ADDR_LOOPBACK(&six)) return;
    memset(six.s6_addr + 8, 0, 8);
    (void)inet_ntop(AF_INET6, &six, place, RPC_ADDRESS_BYTES);
}

static void unwatch_listeners(struct front *front)
{
    for (size_t i = 0; i < front->listeners.count; i++)
        (void)epoll_ctl(front->epoll, EPOLL_CTL_DEL, front->listeners.fd[i], NULL);
}

static void accept_later(struct front *front, uint64_t ms)
{
    front->accept_at_ms = front->now_ms + ms;
    unwatch_listeners(front);
}

static bool accept_now(struct front *front)
{
    front->accept_at_ms = 0;
    for (size_t i = 0; i < front->listeners.count; i++) {
        struct epoll_event event = {.events = EPOLLIN, .data.u64 = i << 3 | FRONT_TAG_LISTEN};
        if (epoll_ctl(front->epoll, EPOLL_CTL_ADD, front->listeners.fd[i], &event) != 0)
            return false;
    }
    return true;
}

/* False: nobody waits, or accepting pauses. */
static bool accept_one(struct front *front, int listener)
{
    struct sockaddr_storage from = {0};
    socklen_t size = sizeof from;
    char address[RPC_ADDRESS_BYTES] = "", place[RPC_ADDRESS_BYTES] = "";
    if (!front_pool_room(front)) {
        accept_later(front, FRONT_ROOM_MS);
        return false;
    }
    int fd = accept4(listener, (struct sockaddr *)&from, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)) {
        struct rpc_event event = {.kind = RPC_EVENT_DESCRIPTORS,
                                  .refusal = RPC_REFUSAL_LIMIT,
                                  .address = "",
                                  .reason = errno == EMFILE || errno == ENFILE
                                                ? "no descriptor is free"
                                                : "no memory is free for a socket"};
        front_pool_report(front, &front->self, &event);
        accept_later(front, FRONT_SHORT_MS);
        return false;
    }
    if (fd < 0) return errno != EAGAIN; /* others are the faults of one client */
    write_address(address, place, &from);
    struct front_peer *peer = front_peers_take(&front->places, place, front->now_ms);
    if (peer == NULL || front_peer_is_refused(peer, front->now_ms))
        close(fd);
    else
        front_conn_new(front, fd, peer, address);
    return true;
}

/* ---------------------------------------------------------------- the thread */

static void shake_some(struct front *front)
{
    struct epoll_event event[FRONT_SHAKES];
    int count = epoll_wait(front->shaking_epoll, event, FRONT_SHAKES, 0);
    for (int i = 0; i < count; i++)
        front_conn_shake((struct front_conn *)(uintptr_t)event[i].data.u64);
}

static void on_conn_event(const struct epoll_event *event)
{
    uint64_t tag = event->data.u64;
    struct front_conn *c = (struct front_conn *)(uintptr_t)(tag & ~(uint64_t)7);
    bool of_pipe = (tag & 7) == FRONT_TAG_PIPE;
    bool hup = event->events & (EPOLLHUP | EPOLLERR);
    if (hup && !of_pipe && c->phase != CONN_DEAD)
        front_conn_close(c); /* the client has gone both ways, so no answer can reach it */
    else
        front_conn_turn(c, hup && of_pipe);
}

static void on_event(struct front *front, const struct epoll_event *event)
{
    uint64_t tag = event->data.u64, unused;
    switch (tag & 7) {
    case FRONT_TAG_LISTEN:
        for (int i = 0; i < FRONT_ACCEPTS && front->accept_at_ms == 0; i++)
            if (!accept_one(front, front->listeners.fd[tag >> 3])) break;
        break;
    case FRONT_TAG_WAKE:
        if (read(front->wake, &unused, sizeof unused) < 0) return;
        break;
    case FRONT_TAG_SHAKING:
        shake_some(front);
        break;
    default:
        on_conn_event(event);
    }
}

static void close_list(struct front_list *list)
{
    while (list->first != NULL)
        front_conn_close(list->first);
}

static void drop_some(struct front *front, const struct front_drop *drop)
{
    for (struct front_conn *c = front->open.first, *next; c != NULL; c = next) {
        next = c->next;
        if (c->peer.role == drop->role && strcmp(c->peer.id, drop->id) == 0) front_conn_close(c);
    }
}

/* Does what other threads have asked for. */
static void take_requests(struct front *front)
{
    pthread_mutex_lock(&front->lock);
    struct front_drop *drops = front->drops;
    bool draining = front->draining;
    front->drops = NULL;
    pthread_mutex_unlock(&front->lock);
    for (struct front_drop *next; drops != NULL; drops = next) {
        next = drops->next;
        drop_some(front, drops);
        free(drops);
    }
    if (draining) {
        unwatch_listeners(front);
        front_listen_close(&front->listeners);
        close_list(&front->shaking);
    }
    if (atomic_load(&front->shutting)) close_list(&front->open);
}

static void resume_paused(struct front *front)
{
    for (struct front_conn *c = front->open.first, *next; c != NULL && front->paused > 0;
         c = next) {
        next = c->next;
        if (c->read_at_ms == 0 || front->now_ms < c->read_at_ms) continue;
        c->read_at_ms = 0;
        front->paused--;
        front_conn_turn(c, false);
    }
}

static void sweep(struct front *front)
{
    struct front_list *lists[] = {&front->shaking, &front->open};
    if (front->now_ms - front->swept_ms < FRONT_SWEEP_MS) return;
    front->swept_ms = front->now_ms;
    for (int i = 0; i < 2; i++)
        for (struct front_conn *c = lists[i]->first, *next; c != NULL; c = next) {
            next = c->next;
            front_conn_sweep(c);
        }
}

/* Connections are freed only here, because a later event of the same turn may name one. */
static void free_dead(struct front *front)
{
    for (struct front_conn *c = front->dead, *next; c != NULL; c = next) {
        next = c->next;
        free(c);
    }
    front->dead = NULL;
}

static int timeout_ms(const struct front *front)
{
    if (front->paused > 0 || front->accept_at_ms != 0) return FRONT_PAUSED_MS;
    return FRONT_SWEEP_MS;
}

static void *front_main(void *argument)
{
    struct front *front = argument;
    struct epoll_event event[FRONT_EVENTS];
    while (!atomic_load(&front->stopping)) {
        int count = epoll_wait(front->epoll, event, FRONT_EVENTS, timeout_ms(front));
        front->now_ms = text_now_ms();
        for (int i = 0; i < count; i++)
            on_event(front, &event[i]);
        take_requests(front);
        resume_paused(front);
        sweep(front);
        if (front->waiting > 0) front_pool_promote(front);
        if (front->accept_at_ms != 0 && front->now_ms >= front->accept_at_ms && !accept_now(front))
            accept_later(front, FRONT_SHORT_MS);
        free_dead(front);
    }
    atomic_store(&front->shutting, true);
    take_requests(front);
    free_dead(front);
    return NULL;
}

/* ---------------------------------------------------------------- open and close */

static void wake(struct front *front)
{
    uint64_t one = 1;
    ssize_t n = write(front->wake, &one, sizeof one); /* a full counter wakes the thread too */
    (void)n;
}

static err open_events(struct front *front)
{
    front->epoll = epoll_create1(EPOLL_CLOEXEC);
    front->shaking_epoll = epoll_create1(EPOLL_CLOEXEC);
    front->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event woken = {.events = EPOLLIN, .data.u64 = FRONT_TAG_WAKE};
    struct epoll_event shaking = {.events = EPOLLIN, .data.u64 = FRONT_TAG_SHAKING};
    if (front->epoll < 0 || front->shaking_epoll < 0 || front->wake < 0 ||
        epoll_ctl(front->epoll, EPOLL_CTL_ADD, front->wake, &woken) != 0 ||
        epoll_ctl(front->epoll, EPOLL_CTL_ADD, front->shaking_epoll, &shaking) != 0)
        return err_sys(errno, "cannot wait for connections");
    return ERR_NONE;
}

/* Signals are for the main thread. A write to a client that has left raises SIGPIPE, which stays
 * blocked here. */
static err start_thread(struct front *front)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    int code = pthread_create(&front->thread, NULL, front_main, front);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (code != 0) return err_sys(code, "cannot start a thread");
    front->has_thread = true;
    return ERR_NONE;
}

err front_open(struct front **out, const struct front_options *o)
{
    struct front *front = calloc(1, sizeof *front);
    if (front == NULL) return err_sys(ENOMEM, "a server");
    front->epoll = front->shaking_epoll = front->wake = -1;
    front->options = *o;
    front->checked.max = FRONT_CHECKED_BYTES;
    front->now_ms = text_now_ms();
    pthread_mutex_init(&front->lock, NULL);
    err e;
    const struct front_tls_files files = {o->ca, o->cert, o->key, o->open_to != NULL};
    TRY_OUT(e, front_tls_open(&front->context, &files));
    front_pool_limits(front);
    TRY_OUT(e, front_peers_open(&front->places, FRONT_PEERS_MAX));
    TRY_OUT(e, front_peers_open(&front->identities, FRONT_PEERS_MAX));
    TRY_OUT(e, open_events(front));
    TRY_OUT(e, front_listen(&front->listeners, o->host, o->port, o->listen));
    if (!accept_now(front)) {
        e = err_sys(errno, "cannot wait for connections");
        goto out;
    }
    TRY_OUT(e, start_thread(front));
    *out = front;
    return ERR_NONE;
out:
    front_close(front);
    return e;
}

int front_port(const struct front *front)
{
    return front->listeners.port;
}

err front_reload(struct front *front, const char *ca, const char *cert, const char *key)
{
    SSL_CTX *context = NULL;
    const struct front_tls_files files = {ca, cert, key, front->options.open_to != NULL};
    TRY(front_tls_open(&context, &files));
    pthread_mutex_lock(&front->lock);
    SSL_CTX *old = front->context;
    front->context = context;
    pthread_mutex_unlock(&front->lock);
    SSL_CTX_free(old); /* connections hold it as long as they need it */
    return ERR_NONE;
}

err front_drop(struct front *front, enum rpc_role role, const char *id)
{
    struct front_drop *drop = calloc(1, sizeof *drop);
    if (drop == NULL) return err_sys(ENOMEM, "dropping the connections of %s", id);
    drop->role = role;
    snprintf(drop->id, sizeof drop->id, "%s", id);
    pthread_mutex_lock(&front->lock);
    drop->next = front->drops;
    front->drops = drop;
    pthread_mutex_unlock(&front->lock);
    wake(front);
    return ERR_NONE;
}

void front_drain(struct front *front)
{
    pthread_mutex_lock(&front->lock);
    front->draining = true;
    pthread_mutex_unlock(&front->lock);
    wake(front);
}

void front_shut(struct front *front)
{
    front_drain(front);
    atomic_store(&front->shutting, true);
    wake(front);
}

void front_close(struct front *front)
{
    if (front == NULL) return;
    if (front->has_thread) {
        front_shut(front);
        atomic_store(&front->stopping, true);
        wake(front);
        pthread_join(front->thread, NULL);
    }
    front_listen_close(&front->listeners);
    if (front->wake >= 0) close(front->wake);
    if (front->shaking_epoll >= 0) close(front->shaking_epoll);
    if (front->epoll >= 0) close(front->epoll);
    SSL_CTX_free(front->context);
    front_peers_close(&front->places);
    front_peers_close(&front->identities);
    bytes_close(&front->checked);
    pthread_mutex_destroy(&front->lock);
    free(front);
}
