/* One connection: its handshake, and the relay between TLS and gRPC. Nothing here blocks. Each
 * direction holds back at most what the other side could not take of one read, and reads no more
 * until that is gone, so a peer that does not read stops its own connection only. */
#include "proto/front_internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    CONN_READS = 4,      /* of one direction in one turn, so that others get theirs */
    CONN_READS_END = 64, /* at least all that a socket pair holds */
};

/* "No new calls on this connection". Its last stream is the highest number there is, so no call is
 * lost (RFC 7540, 6.8). */
static const uint8_t goaway[] = {0, 0, 8, 7, 0, 0, 0, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0};

static bool has_rest(const struct bytes *rest)
{
    return rest->size > 0;
}

/* ---------------------------------------------------------------- events */

static void watch(int epoll, int fd, uint32_t *old, uint32_t wants, uint64_t tag)
{
    if (*old == wants) return;
    struct epoll_event event = {.events = wants, .data.u64 = tag};
    if (epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event) == 0) *old = wants;
}

static void watch_both(struct front_conn *c)
{
    uint64_t tag = (uintptr_t)c;
    uint32_t wants = 0;
    if (c->phase == CONN_LINGER) {
        watch(c->front->epoll, c->fd, &c->fd_wants, EPOLLIN, tag);
        return;
    }
    if (!c->client_ended && !has_rest(&c->up) && !has_rest(&c->down) && c->read_at_ms == 0)
        wants |= EPOLLIN;
    if (has_rest(&c->down) || c->ssl_writes) wants |= EPOLLOUT;
    watch(c->front->epoll, c->fd, &c->fd_wants, wants, tag);
    if (c->pipe_is_out) return;
    wants = 0;
    if (!c->server_ended && !has_rest(&c->down)) wants |= EPOLLIN;
    if (has_rest(&c->up)) wants |= EPOLLOUT;
    watch(c->front->epoll, c->pipe, &c->pipe_wants, wants, tag | FRONT_TAG_PIPE);
}

/* close() alone would leave the descriptor registered while a process that was forked at this
 * moment has a copy, and an event would name a connection that no longer exists. */
static void close_watched(struct front *front, int fd)
{
    (void)epoll_ctl(front->epoll, EPOLL_CTL_DEL, fd, NULL);
    (void)epoll_ctl(front->shaking_epoll, EPOLL_CTL_DEL, fd, NULL);
    close(fd);
}

/* ---------------------------------------------------------------- begin and end */

void front_conn_new(struct front *front, int fd, struct front_peer *place, const char *address)
{
    struct front_conn *c = calloc(1, sizeof *c);
    int yes = 1;
    err e = c == NULL ? err_sys(ENOMEM, "a connection") : ERR_NONE;
    if (!err_is(e)) {
        pthread_mutex_lock(&front->lock);
        e = front_tls_accept(&c->ssl, front->context, fd, &c->notes);
        pthread_mutex_unlock(&front->lock);
    }
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = (uintptr_t)c};
    if (err_is(e) || epoll_ctl(front->shaking_epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        if (c != NULL) SSL_free(c->ssl);
        free(c);
        close(fd);
        return;
    }
    (void)setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    c->front = front;
    c->fd = fd;
    c->fd_wants = EPOLLIN;
    c->pipe = -1;
    c->place = place;
    c->born_ms = front->now_ms;
    c->up.max = c->down.max = front->checked.max;
    snprintf(c->address, sizeof c->address, "%s", address);
    place->connections++;
    place->handshakes++;
    front_list_add(&front->shaking, c);
}

void front_conn_close(struct front_conn *c)
{
    struct front *front = c->front;
    if (c->phase == CONN_DEAD) return;
    bool shaking = c->phase == CONN_HANDSHAKE || c->phase == CONN_WAITING;
    front_list_remove(shaking ? &front->shaking : &front->open, c);
    if (c->phase == CONN_WAITING) front->waiting--;
    if (shaking) c->place->handshakes--;
    c->place->connections--;
    if (c->identity != NULL) c->identity->connections--;
    if (c->read_at_ms != 0) front->paused--;
    front_name_remove(c);
    SSL_free(c->ssl);
    ERR_clear_error();
    if (c->pipe >= 0) close_watched(front, c->pipe);
    close_watched(front, c->fd);
    front_frame_close(&c->frame);
    bytes_close(&c->up);
    bytes_close(&c->down);
    c->phase = CONN_DEAD;
    c->next = front->dead;
    front->dead = c;
}

/* Everything was sent. A socket that is closed while it holds unread bytes resets the connection,
 * and the client may lose the last ones; so they are read and dropped until the client ends. */
static void begin_linger(struct front_conn *c)
{
    front_name_remove(c);
    if (c->read_at_ms != 0) c->front->paused--;
    c->read_at_ms = 0;
    close_watched(c->front, c->pipe);
    c->pipe = -1;
    ERR_clear_error();
    (void)SSL_shutdown(c->ssl);
    (void)shutdown(c->fd, SHUT_WR);
    c->phase = CONN_LINGER;
    c->close_at_ms = c->front->now_ms + FRONT_LINGER_MS;
    watch_both(c);
}

static void linger(struct front_conn *c)
{
    for (int i = 0; i < CONN_READS; i++) {
        ssize_t n = recv(c->fd, c->front->scratch, FRONT_SCRATCH, 0);
        if (n > 0) continue;
        if (n == 0 || (errno != EAGAIN && errno != EINTR)) front_conn_close(c);
        return;
    }
}

/* ---------------------------------------------------------------- handshake */

static void fail_handshake(struct front_conn *c, enum rpc_refusal refusal, const char *reason)
{
    struct rpc_event event = {
        .kind = RPC_EVENT_HANDSHAKE, .refusal = refusal, .address = c->address, .reason = reason};
    front_pool_report(c->front, c->place, &event);
    /* The alert must arrive, so nothing that was sent may stay unread. */
    while (recv(c->fd, c->front->scratch, FRONT_SCRATCH, 0) > 0) {
    }
    (void)shutdown(c->fd, SHUT_WR);
    front_conn_close(c);
}

/* A peer without a certificate is known by its address alone. */
static err identify(struct front_conn *c)
{
    const char *open_to = c->front->options.open_to;
    err e = ERR_NONE;
    if (open_to == NULL) {
        e = rpc_tls_identity_of(&c->peer, SSL_get0_peer_certificate(c->ssl));
    } else {
        c->peer.role = RPC_NONE;
        snprintf(c->peer.federation, sizeof c->peer.federation, "%s", open_to);
    }
    snprintf(c->peer.address, sizeof c->peer.address, "%s", c->address);
    return e;
}

void front_conn_shake(struct front_conn *c)
{
    if (c->phase != CONN_HANDSHAKE) return;
    ERR_clear_error();
    errno = 0;
    int code = SSL_accept(c->ssl), why = code == 1 ? 0 : SSL_get_error(c->ssl, code);
    if (code == 1) {
        (void)epoll_ctl(c->front->shaking_epoll, EPOLL_CTL_DEL, c->fd, NULL);
        err e = identify(c);
        if (err_is(e))
            fail_handshake(c, RPC_REFUSAL_CERTIFICATE, e.text);
        else
            front_pool_admit(c);
    } else if (why == SSL_ERROR_WANT_READ || why == SSL_ERROR_WANT_WRITE) {
        watch(c->front->shaking_epoll, c->fd, &c->fd_wants,
              why == SSL_ERROR_WANT_READ ? EPOLLIN : EPOLLOUT, (uintptr_t)c);
    } else if (SSL_get_state(c->ssl) == TLS_ST_BEFORE && c->notes.reason[0] == 0 &&
               ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        front_conn_close(c); /* a check whether the port is open is not worth a line */
    } else {
        char reason[FRONT_TLS_REASON];
        enum rpc_refusal refusal = front_tls_explain(reason, &c->notes);
        struct front_peer *place = c->place;
        struct front *front = c->front;
        fail_handshake(c, refusal, reason);
        if (refusal != RPC_REFUSAL_BROKEN) front_pool_charge_handshake(front, place);
    }
}

/* ---------------------------------------------------------------- client to gRPC */

/* Keeps what was not taken: data[taken..size). */
static bool keep_rest(struct bytes *rest, const uint8_t *data, size_t size, size_t taken)
{
    return taken == size || !err_is(bytes_append(rest, data + taken, size - taken));
}

/* Returns how many bytes gRPC took. If it has hung up, the rest is dropped; the other direction
 * finds the end. */
static size_t send_up(struct front_conn *c, const uint8_t *data, size_t size)
{
    size_t taken = 0;
    while (taken < size) {
        ssize_t n = send(c->pipe, data + taken, size - taken, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return errno == EAGAIN ? taken : size;
        taken += (size_t)n;
    }
    return taken;
}

static void flush_up(struct front_conn *c)
{
    if (!has_rest(&c->up)) return;
    c->up_at += send_up(c, c->up.data + c->up_at, c->up.size - c->up_at);
    if (c->up_at < c->up.size) return;
    bytes_close(&c->up);
    c->up_at = 0;
}

static void pause_reading(struct front_conn *c)
{
    uint64_t wait = front_budget_wait_ms(c->frame.budget);
    if (wait == 0 || c->read_at_ms != 0) return;
    c->read_at_ms = c->front->now_ms + wait;
    c->front->paused++;
}

static void check_up(struct front_conn *c, size_t size)
{
    struct front *front = c->front;
    struct bytes *out = &front->checked;
    bytes_clear(out);
    front_budget_gain(c->frame.budget, front->now_ms);
    err e = front_frame_feed(out, &c->frame, front->scratch, size);
    if (err_is(e) && e.kind == ERR_MACHINE) {
        front_conn_close(c);
        return;
    }
    if (err_is(e)) {
        front_pool_refuse(c, e.text);
        return;
    }
    pause_reading(c);
    if (!keep_rest(&c->up, out->data, out->size, send_up(c, out->data, out->size)))
        front_conn_close(c);
}

/* Key updates are counted by on_message() of front_tls.c. */
static bool charge_updates(struct front_conn *c)
{
    unsigned fresh = c->notes.updates - c->updates_seen;
    c->updates_seen = c->notes.updates;
    if (fresh == 0) return true;
    front_budget_gain(c->frame.budget, c->front->now_ms);
    if (front_budget_take(c->frame.budget, FRONT_COST_KEYS, fresh)) return true;
    front_pool_refuse(c, "too many TLS key updates");
    return false;
}

/* False: nothing more can be read now. */
static bool read_client(struct front_conn *c)
{
    ERR_clear_error();
    errno = 0;
    c->ssl_writes = false;
    int n = SSL_read(c->ssl, c->front->scratch, FRONT_SCRATCH);
    int why = n > 0 ? 0 : SSL_get_error(c->ssl, n);
    if (!charge_updates(c)) return false;
    if (n > 0) {
        check_up(c, (size_t)n);
        return c->phase == CONN_OPEN;
    }
    if (why == SSL_ERROR_WANT_WRITE)
        c->ssl_writes = true;
    else if (why == SSL_ERROR_ZERO_RETURN ||
             ERR_GET_REASON(ERR_peek_error()) == SSL_R_UNEXPECTED_EOF_WHILE_READING)
        c->client_ended = true;
    else if (why != SSL_ERROR_WANT_READ)
        front_conn_close(c);
    return false;
}

static void turn_up(struct front_conn *c)
{
    for (int i = 0; i < CONN_READS; i++) {
        flush_up(c);
        if (has_rest(&c->up) || has_rest(&c->down) || c->client_ended || c->read_at_ms != 0) return;
        if (!read_client(c)) return;
    }
}

/* ---------------------------------------------------------------- gRPC to client */

/* Returns how many bytes TLS took. On an error the connection is closed. */
static size_t write_client(struct front_conn *c, const uint8_t *data, size_t size)
{
    ERR_clear_error();
    errno = 0;
    int n = SSL_write(c->ssl, data, (int)size);
    if (n > 0) {
        c->taken_ms = c->front->now_ms;
        return (size_t)n;
    }
    int why = SSL_get_error(c->ssl, n);
    if (why != SSL_ERROR_WANT_WRITE && why != SSL_ERROR_WANT_READ) front_conn_close(c);
    return 0;
}

static void flush_down(struct front_conn *c)
{
    if (!has_rest(&c->down)) return;
    size_t taken = write_client(c, c->down.data + c->down_at, c->down.size - c->down_at);
    if (c->phase != CONN_OPEN) return;
    c->down_at += taken;
    if (c->down_at < c->down.size) return;
    bytes_close(&c->down);
    c->down_at = 0;
}

static void put_down(struct front_conn *c, const uint8_t *data, size_t size)
{
    c->taken_ms = c->front->now_ms;
    size_t taken = write_client(c, data, size);
    if (c->phase == CONN_OPEN && !keep_rest(&c->down, data, size, taken)) front_conn_close(c);
}

static void turn_down(struct front_conn *c)
{
    int reads = c->pipe_is_out ? CONN_READS_END : CONN_READS;
    for (int i = 0; i < reads && c->phase == CONN_OPEN; i++) {
        flush_down(c);
        if (c->phase != CONN_OPEN || has_rest(&c->down) || c->server_ended) return;
        if (c->leaves && c->left_ms == 0 && front_frame_is_between(&c->frame)) {
            c->left_ms = c->front->now_ms;
            put_down(c, goaway, sizeof goaway);
            continue;
        }
        ssize_t n = recv(c->pipe, c->front->scratch, FRONT_SCRATCH, 0);
        if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
        if (n <= 0) {
            c->server_ended = true;
            return;
        }
        front_frame_back(&c->frame, c->front->scratch, (size_t)n);
        put_down(c, c->front->scratch, (size_t)n);
    }
}

/* ---------------------------------------------------------------- both */

void front_conn_turn(struct front_conn *c, bool hup)
{
    if (c->phase == CONN_LINGER) linger(c);
    if (c->phase != CONN_OPEN) return;
    if (hup && !c->pipe_is_out) {
        /* Its event would come again and again while the client takes the last bytes. */
        c->pipe_is_out = true;
        (void)epoll_ctl(c->front->epoll, EPOLL_CTL_DEL, c->pipe, NULL);
    }
    turn_up(c);
    if (c->phase == CONN_OPEN) turn_down(c);
    if (c->phase != CONN_OPEN) return;
    if (c->client_ended && !has_rest(&c->up) && !c->pipe_is_shut) {
        c->pipe_is_shut = true;
        (void)shutdown(c->pipe, SHUT_WR);
    }
    if (c->server_ended && !has_rest(&c->down)) {
        begin_linger(c);
        return;
    }
    if ((c->client_ended || c->server_ended) && !c->ends) {
        c->ends = true;
        c->close_at_ms = c->front->now_ms + FRONT_LINGER_MS;
    }
    watch_both(c);
}

static void sweep_open(struct front_conn *c)
{
    uint64_t now = c->front->now_ms;
    bool stalls = has_rest(&c->down) && now - c->taken_ms > FRONT_STALL_MS;
    bool silent = !c->frame.has_settings && now - c->open_ms > FRONT_SETTINGS_MS;
    bool gone = c->left_ms != 0 && c->frame.open_count == 0 && now - c->left_ms > FRONT_LINGER_MS;
    if (stalls || silent)
        front_conn_close(c);
    else if (gone && !has_rest(&c->down) && !has_rest(&c->up))
        begin_linger(c);
}

void front_conn_sweep(struct front_conn *c)
{
    uint64_t now = c->front->now_ms;
    if (c->close_at_ms != 0 && now >= c->close_at_ms) {
        front_conn_close(c);
    } else if (c->phase == CONN_HANDSHAKE && now - c->born_ms > FRONT_HANDSHAKE_MS) {
        fail_handshake(c, RPC_REFUSAL_BROKEN, "it did not finish the handshake in time");
    } else if (c->phase == CONN_WAITING && now - c->born_ms > 2 * FRONT_HANDSHAKE_MS) {
        front_pool_end_full(c);
    } else if (c->phase == CONN_OPEN) {
        sweep_open(c);
    }
}
