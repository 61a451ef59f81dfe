/* The front with clients in several threads, while other threads find, drop and reload: no data
 * race, and each client gets its own bytes back. In place of gRPC, a thread returns what it
 * reads. */
#include "proto/front.h"
#include "base/text.h"
#include "proto/rpc_openssl.h"

#include "tests/threads/threads.h"

#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CLIENTS = 4, TURNS = 12, GIVEN_MAX = 1024, PING_BYTES = 17 };

static struct {
    pthread_mutex_t lock;
    int fd[GIVEN_MAX];
    size_t count;
    atomic_bool ends;
    atomic_int events;
} server = {.lock = PTHREAD_MUTEX_INITIALIZER};

static char certs[200], ca[240], cert[240], key[240];

static void give(void *context, int fd)
{
    (void)context;
    pthread_mutex_lock(&server.lock);
    CHECK(server.count < GIVEN_MAX);
    server.fd[server.count++] = fd;
    pthread_mutex_unlock(&server.lock);
}

static void on_event(void *context, const struct rpc_event *event)
{
    (void)context, (void)event;
    atomic_fetch_add(&server.events, 1);
}

/* Sends everything back, but for the preface, so that frames stay whole. */
static bool echo_one(int fd)
{
    uint8_t buffer[4096];
    ssize_t n = recv(fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (n <= 0) return n < 0;
    size_t skip = n >= 24 && memcmp(buffer, "PRI * ", 6) == 0 ? 24 : 0;
    return send(fd, buffer + skip, (size_t)n - skip, MSG_NOSIGNAL) >= 0;
}

static void *echo_main(void *unused)
{
    (void)unused;
    while (!atomic_load(&server.ends)) {
        pthread_mutex_lock(&server.lock);
        for (size_t i = 0; i < server.count;) {
            if (echo_one(server.fd[i])) {
                i++;
            } else {
                close(server.fd[i]);
                server.fd[i] = server.fd[--server.count];
            }
        }
        pthread_mutex_unlock(&server.lock);
        usleep(500);
    }
    return NULL;
}

struct client {
    pthread_t thread;
    int port, done;
    SSL_CTX *context;
};

static bool write_all(SSL *ssl, const void *data, int size)
{
    return SSL_write(ssl, data, size) == size;
}

/* True if our ping came back; false if the connection was dropped. */
static bool ping_once(SSL *ssl, int number)
{
    static const uint8_t start[] = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0";
    uint8_t ping[PING_BYTES] = {0, 0, 8, 6, 0, 0, 0, 0, 0}, back[9 + PING_BYTES];
    memcpy(ping + 9, &number, sizeof number);
    if (!write_all(ssl, start, sizeof start) || !write_all(ssl, ping, sizeof ping)) return false;
    for (int used = 0; used < (int)sizeof back;) {
        int n = SSL_read(ssl, back + used, (int)sizeof back - used);
        if (n <= 0) return false;
        used += n;
    }
    CHECK(memcmp(back + 9, ping, sizeof ping) == 0);
    return true;
}

static void *client_main(void *argument)
{
    struct client *c = argument;
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)c->port),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (int i = 0; i < TURNS; i++) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(fd >= 0 && connect(fd, (struct sockaddr *)&to, sizeof to) == 0);
        SSL *ssl = SSL_new(c->context);
        CHECK(ssl != NULL && SSL_set_fd(ssl, fd) == 1);
        if (SSL_connect(ssl) == 1 && ping_once(ssl, i)) c->done++;
        if (i % 2 == 0) SSL_shutdown(ssl);
        SSL_free(ssl);
        close(fd);
    }
    return NULL;
}

static void make_certs(void)
{
    char command[1200];
    snprintf(certs, sizeof certs, "/tmp/fedlora-threads-XXXXXX");
    CHECK(mkdtemp(certs) != NULL);
    snprintf(command, sizeof command,
             FEDLORA_SOURCE_DIR "/deploy/make-certs.sh %s --federation fed a >/dev/null", certs);
    CHECK(system(command) == 0);
    snprintf(ca, sizeof ca, "%s/ca.pem", certs);
    snprintf(cert, sizeof cert, "%s/server.pem", certs);
    snprintf(key, sizeof key, "%s/server.key", certs);
}

static SSL_CTX *client_context(void)
{
    char path[240];
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    CHECK(context != NULL);
    snprintf(path, sizeof path, "%s/a.pem", certs);
    CHECK(SSL_CTX_use_certificate_chain_file(context, path) == 1);
    snprintf(path, sizeof path, "%s/a.key", certs);
    CHECK(SSL_CTX_use_PrivateKey_file(context, path, SSL_FILETYPE_PEM) == 1);
    CHECK(SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\x02h2", 3) == 0);
    return context;
}

int main(void)
{
    struct client client[CLIENTS] = {0};
    struct front *front = NULL;
    pthread_t echo;
    int done = 0;
    char command[300];
    struct rpc_peer peer;
    signal(SIGPIPE, SIG_IGN);
    make_certs();
    const struct front_options options = {.listen = "127.0.0.1:0",
                                          .host = "127.0.0.1",
                                          .port = "0",
                                          .ca = ca,
                                          .cert = cert,
                                          .key = key,
                                          .streams_max = 16,
                                          .give = give,
                                          .event = on_event};
    CHECK_OK(front_open(&front, &options));
    CHECK(pthread_create(&echo, NULL, echo_main, NULL) == 0);
    SSL_CTX *context = client_context();
    for (int i = 0; i < CLIENTS; i++) {
        client[i].port = front_port(front);
        client[i].context = context;
        CHECK(pthread_create(&client[i].thread, NULL, client_main, &client[i]) == 0);
    }
    for (int i = 0; i < 20; i++) {
        CHECK(!front_find(&peer, front, "0123456789abcdef0123456789abcdef"));
        CHECK_OK(front_reload(front, ca, cert, key));
        if (i % 10 == 9) CHECK_OK(front_drop(front, RPC_CLIENT, "a"));
        usleep(5000);
    }
    for (int i = 0; i < CLIENTS; i++) {
        pthread_join(client[i].thread, NULL);
        done += client[i].done;
    }
    front_drain(front);
    front_shut(front);
    front_close(front);
    atomic_store(&server.ends, true);
    pthread_join(echo, NULL);
    for (size_t i = 0; i < server.count; i++)
        close(server.fd[i]);
    SSL_CTX_free(context);
    CHECK(done > CLIENTS * TURNS / 2); /* some were dropped */
    CHECK(atomic_load(&server.events) == 0);
    snprintf(command, sizeof command, "rm -r %s", certs);
    CHECK(system(command) == 0);
    return 0;
}
