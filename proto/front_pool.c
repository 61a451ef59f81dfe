/* Decides whether a connection may stay: the limits that follow from the number of descriptors, the
 * order in which connections give way when they are reached, and refusals. */
#include "proto/front_internal.h"

#include <errno.h>
#include <sodium.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    POOL_RESERVE = 128, /* descriptors for the store, the log, gRPC itself and programs beside it */
    POOL_SHARE = 8,     /* one in 8 descriptors is for handshakes */
    POOL_SHAKING_MOST = 1024,
    POOL_DESCRIPTORS = 4, /* of a member: socket, socket pair, and the file of its upload */
    POOL_OPEN_MOST = 2 * LIMIT_MEMBERS,
    POOL_LEAST = 8,
    POOL_STRANGERS = 64, /* connections, and handshakes, of peers without a certificate */
    /* A client begins its handshake with its first packet, so one that is silent for 100 ms may
     * give way to others. One that has begun gets a second for two more round trips. */
    POOL_SILENT_MS = 100,
    POOL_BEGUN_MS = 1000,
    POOL_STAY_MS = 2000,           /* a connection is not asked to leave before */
    POOL_LEAVE_MS = 5 * 60 * 1000, /* for its transfers */
    POOL_REPORTS = 60,             /* in a minute, of all peers together */
    POOL_REPORT_MS = 60 * 1000,
};

void front_list_add(struct front_list *list, struct front_conn *c)
{
    c->next = NULL;
    c->previous = list->last;
    if (list->last != NULL)
        list->last->next = c;
    else
        list->first = c;
    list->last = c;
    list->count++;
}

void front_list_remove(struct front_list *list, struct front_conn *c)
{
    if (c->previous != NULL)
        c->previous->next = c->next;
    else
        list->first = c->next;
    if (c->next != NULL)
        c->next->previous = c->previous;
    else
        list->last = c->previous;
    c->previous = c->next = NULL;
    list->count--;
}

static size_t between(size_t least, size_t n, size_t most)
{
    return n < least ? least : n > most ? most : n;
}

/* The soft limit is often 1,024 for the sake of select(2), which nothing here uses. */
void front_pool_limits(struct front *front)
{
    struct rlimit limit = {0};
    (void)getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur < limit.rlim_max) {
        struct rlimit raised = {.rlim_cur = limit.rlim_max, .rlim_max = limit.rlim_max};
        if (setrlimit(RLIMIT_NOFILE, &raised) == 0) limit = raised;
    }
    size_t most = POOL_OPEN_MOST * POOL_DESCRIPTORS * 2;
    size_t n = limit.rlim_cur > most ? most : (size_t)limit.rlim_cur;
    front->shaking_max = between(POOL_LEAST, n / POOL_SHARE, POOL_SHAKING_MOST);
    size_t used = POOL_RESERVE + front->shaking_max;
    front->open_max =
        between(POOL_LEAST, (n > used ? n - used : 0) / POOL_DESCRIPTORS, POOL_OPEN_MOST);
    if (front->options.open_to == NULL) return;
    front->shaking_max = between(POOL_LEAST, front->shaking_max, POOL_STRANGERS);
    front->open_max = between(POOL_LEAST, front->open_max, POOL_STRANGERS);
}

/* ---------------------------------------------------------------- reports and refusals */

void front_pool_report(struct front *front, struct front_peer *peer, struct rpc_event *event)
{
    if (front->options.count != NULL) front->options.count(front->options.event_context, event);
    if (front->options.event == NULL) return;
    if (!front_peer_may_report(peer, &event->left_out, front->now_ms)) return;
    if (front->now_ms - front->reports_ms >= POOL_REPORT_MS) {
        front->reports_ms = front->now_ms;
        front->reports = 0;
    }
    if (front->reports++ >= POOL_REPORTS) {
        front->reports_left_out += 1 + event->left_out;
        return;
    }
    event->left_out += front->reports_left_out;
    front->reports_left_out = 0;
    front->options.event(front->options.event_context, event);
}

void front_pool_refuse(struct front_conn *c, const char *reason)
{
    struct front *front = c->front;
    struct front_peer *identity = c->identity;
    struct rpc_event event = {.kind = RPC_EVENT_REFUSED,
                              .refusal = RPC_REFUSAL_LIMIT,
                              .address = c->address,
                              .peer = &c->peer,
                              .reason = reason,
                              .refused_ms = front_peer_refuse(identity, front->now_ms)};
    front_pool_report(front, identity, &event);
    for (struct front_conn *other = front->open.first, *next; other != NULL; other = next) {
        next = other->next;
        if (other->identity == identity) front_conn_close(other);
    }
}

void front_pool_charge_handshake(struct front *front, struct front_peer *place)
{
    front_budget_gain(&place->budget, front->now_ms);
    if (front_budget_take(&place->budget, FRONT_COST_HANDSHAKE, 1)) return;
    struct rpc_event event = {.kind = RPC_EVENT_REFUSED,
                              .refusal = RPC_REFUSAL_LIMIT,
                              .address = place->name,
                              .reason = "too many handshakes that were refused",
                              .refused_ms = front_peer_refuse(place, front->now_ms)};
    place->reported = false; /* this line says more than the one before */
    front_pool_report(front, place, &event);
}

/* ---------------------------------------------------------------- handshakes */

/* The oldest handshake of the address with the most of them gives way, so one address cannot keep
 * all others out. */
bool front_pool_room(struct front *front)
{
    struct front_conn *victim = NULL;
    if (front->shaking.count < front->shaking_max) return true;
    for (struct front_conn *c = front->shaking.first; c != NULL; c = c->next)
        if (c->phase == CONN_HANDSHAKE &&
            (victim == NULL || c->place->handshakes > victim->place->handshakes))
            victim = c;
    if (victim == NULL) return false;
    bool silent = SSL_get_state(victim->ssl) == TLS_ST_BEFORE;
    if (front->now_ms - victim->born_ms < (silent ? POOL_SILENT_MS : POOL_BEGUN_MS)) return false;
    struct rpc_event event = {.kind = RPC_EVENT_HANDSHAKE,
                              .refusal = RPC_REFUSAL_LIMIT,
                              .address = victim->address,
                              .reason = "too many handshakes at once; the oldest gave way"};
    front_pool_report(front, victim->place, &event);
    front_conn_close(victim);
    return true;
}

/* ---------------------------------------------------------------- connections */

static void report_descriptors(struct front *front, const char *address)
{
    struct rpc_event event = {.kind = RPC_EVENT_DESCRIPTORS,
                              .refusal = RPC_REFUSAL_LIMIT,
                              .address = address,
                              .reason = "no descriptor is free"};
    front_pool_report(front, &front->self, &event);
}

static bool watch_new(struct front_conn *c)
{
    uint64_t tag = (uintptr_t)c;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = tag};
    struct epoll_event pipe_event = {.events = EPOLLIN, .data.u64 = tag | FRONT_TAG_PIPE};
    c->fd_wants = c->pipe_wants = EPOLLIN;
    return epoll_ctl(c->front->epoll, EPOLL_CTL_ADD, c->fd, &event) == 0 &&
           epoll_ctl(c->front->epoll, EPOLL_CTL_ADD, c->pipe, &pipe_event) == 0;
}

/* Moves the connection from the handshakes to those that are open, and gives its other end to
 * gRPC. */
static void open_conn(struct front_conn *c)
{
    struct front *front = c->front;
    unsigned char random[(FRONT_FRAME_AUTHORITY - 1) / 2];
    int pair[2];
    if (c->phase == CONN_WAITING) front->waiting--;
    front_list_remove(&front->shaking, c);
    c->place->handshakes--;
    c->phase = CONN_OPEN;
    c->open_ms = c->taken_ms = c->identity->served_ms = front->now_ms;
    front_list_add(&front->open, c);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, pair) != 0) {
        report_descriptors(front, c->address);
        front_conn_close(c);
        return;
    }
    c->pipe = pair[0];
    randombytes_buf(random, sizeof random);
    sodium_bin2hex(c->name, sizeof c->name, random, sizeof random);
    err e = front_frame_open(&c->frame, c->name, front->options.streams_max, &c->identity->budget);
    if (err_is(e) || !watch_new(c)) {
        close(pair[1]);
        front_conn_close(c);
        return;
    }
    front_name_add(c);
    pthread_mutex_lock(&front->lock);
    bool given = !front->draining;
    if (given) front->options.give(front->options.give_context, pair[1]);
    pthread_mutex_unlock(&front->lock);
    if (given) return;
    close(pair[1]);
    front_conn_close(c);
}

/* A member whose network has failed connects again before its old connection is known to be dead.
 * So the oldest gives way, not the newest; one without a call, if there is one. */
static void limit_identity(const struct front_conn *newest)
{
    struct front_conn *victim = NULL;
    if (newest->identity->connections <= FRONT_IDENTITY_CONNECTIONS) return;
    for (struct front_conn *c = newest->front->open.first; c != NULL; c = c->next) {
        if (c->identity != newest->identity) continue;
        if (victim == NULL || (victim->frame.open_count > 0 && c->frame.open_count == 0))
            victim = c;
    }
    if (victim != NULL) front_conn_close(victim);
}

/* Asks one connection to end after its calls, so that another peer gets its turn. Its client
 * connects again when it has the next call. One without calls goes first, then the oldest. */
static void ask_to_leave(struct front *front)
{
    struct front_conn *best = NULL;
    for (struct front_conn *c = front->open.first; c != NULL; c = c->next) {
        if (c->phase != CONN_OPEN || c->leaves || front->now_ms - c->open_ms < POOL_STAY_MS)
            continue;
        if (best == NULL || (best->frame.open_count > 0 && c->frame.open_count == 0)) best = c;
    }
    if (best == NULL) return;
    best->leaves = true;
    best->close_at_ms = front->now_ms + POOL_LEAVE_MS;
    front_conn_turn(best, false);
}

void front_pool_end_full(struct front_conn *c)
{
    struct rpc_event event = {.kind = RPC_EVENT_FULL,
                              .refusal = RPC_REFUSAL_LIMIT,
                              .address = c->address,
                              .peer = &c->peer,
                              .reason = "all connections are in use"};
    front_pool_report(c->front, &c->front->full, &event);
    front_conn_close(c);
}

/* Of the connections that wait, the one whose identity was served longest ago, or most recently. So
 * peers take turns, although each comes back as soon as it has left. */
static struct front_conn *find_waiting(const struct front *front, bool longest)
{
    struct front_conn *best = NULL;
    for (struct front_conn *c = front->shaking.first; c != NULL; c = c->next) {
        if (c->phase != CONN_WAITING) continue;
        uint64_t served = c->identity->served_ms;
        if (best == NULL ||
            (longest ? served < best->identity->served_ms : served >= best->identity->served_ms))
            best = c;
    }
    return best;
}

void front_pool_admit(struct front_conn *c)
{
    struct front *front = c->front;
    char name[FRONT_PEER_NAME];
    /* Peers without a certificate share the budget of their address. */
    if (c->peer.role == RPC_NONE)
        snprintf(name, sizeof name, "none/%.64s", c->place->name);
    else
        snprintf(name, sizeof name, "%s/%s/%s", c->peer.federation, rpc_role_name(c->peer.role),
                 c->peer.id);
    struct front_peer *identity = front_peers_take(&front->identities, name, front->now_ms);
    if (identity == NULL || front_peer_is_refused(identity, front->now_ms)) {
        if (identity != NULL) identity->left_out++; /* the refusal itself was reported */
        front_conn_close(c);
        return;
    }
    c->identity = identity;
    identity->connections++;
    limit_identity(c);
    if (front->open.count < front->open_max) {
        open_conn(c);
        return;
    }
    c->phase = CONN_WAITING;
    front->waiting++;
    if (front->waiting <= front->shaking_max / 2)
        ask_to_leave(front);
    else
        front_pool_end_full(find_waiting(front, /*longest*/ false));
}

void front_pool_promote(struct front *front)
{
    while (front->waiting > 0 && front->open.count < front->open_max)
        open_conn(find_waiting(front, /*longest*/ true));
}
