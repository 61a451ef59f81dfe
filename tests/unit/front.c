#include "tests/support/rpc_fixture.h"

#include <arpa/inet.h>
#include <sys/resource.h>
#include <sys/socket.h>

static struct rpc_client *open_as(struct fixture *f, const char *name)
{
    struct rpc_client *client = NULL;
    const struct rpc_client_options options = fixture_client(f, name);
    FIXTURE_OK(rpc_client_open(&client, &options));
    return client;
}

static void *hold_main(void *argument)
{
    struct bytes reply = {.max = 100};
    err e = fixture_call(argument, "/test.T/Hold", "x", &reply);
    bytes_close(&reply);
    return (void *)(uintptr_t)e.kind;
}

Test(front, connections_of_an_identity_can_be_dropped)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a"), *other = open_as(&f, "b");
    pthread_t thread;
    void *kind = NULL;
    struct bytes reply = {.max = 100};
    cr_assert_eq(pthread_create(&thread, NULL, hold_main, client), 0);
    cr_assert(fixture_wait(&f.held, 1));
    FIXTURE_OK(rpc_server_drop(f.server, RPC_ADMIN, "a"));
    FIXTURE_OK(rpc_server_drop(f.server, RPC_CLIENT, "b"));
    usleep(100000);
    cr_expect_eq(atomic_load(&f.over), 0, "another role or id");
    uint64_t start = text_now_ms();
    FIXTURE_OK(rpc_server_drop(f.server, RPC_CLIENT, "a"));
    pthread_join(thread, &kind);
    cr_expect_eq((uintptr_t)kind, ERR_MACHINE);
    cr_expect_lt(text_now_ms() - start, 2000, "not by its deadline");
    cr_expect(fixture_wait(&f.over, 1));
    (void)fixture_call(client, "/test.T/Echo", "may find the old connection", &reply).kind;
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "x", &reply));
    bytes_close(&reply);
    rpc_client_close(client);
    rpc_client_close(other);
    fixture_stop(&f);
}

struct sleeper {
    struct rpc_client *client;
    atomic_int parts;
    atomic_bool wakes;
};

static err sleep_part(const void *message, size_t size, void *context)
{
    struct sleeper *s = context;
    (void)message, (void)size;
    atomic_fetch_add(&s->parts, 1);
    while (!atomic_load(&s->wakes))
        usleep(10000);
    return ERR_NONE;
}

static void *sleeper_main(void *argument)
{
    struct sleeper *s = argument;
    struct bytes request = {.max = 10};
    int count = 100;
    FIXTURE_OK(bytes_append(&request, &count, sizeof count));
    const struct rpc_download download = {"/test.T/Download", &request, 60000, 60000,
                                          sleep_part,         s};
    (void)rpc_client_download(s->client, &download).kind;
    bytes_close(&request);
    return NULL;
}

Test(front, a_client_that_does_not_read_its_download_does_not_delay_closing)
{
    struct fixture f = {0};
    pthread_t thread;
    fixture_start(&f);
    struct sleeper sleeper = {.client = open_as(&f, "a")};
    cr_assert_eq(pthread_create(&thread, NULL, sleeper_main, &sleeper), 0);
    cr_assert(fixture_wait(&sleeper.parts, 1));
    usleep(200000);
    cr_expect_lt(atomic_load(&f.sent), 50, "what the client does not take is not sent");
    uint64_t start = text_now_ms();
    fixture_stop(&f);
    cr_expect_lt(text_now_ms() - start, 3000);
    cr_expect_eq(atomic_load(&f.over), 1);
    atomic_store(&sleeper.wakes, true);
    pthread_join(thread, NULL);
    rpc_client_close(sleeper.client);
}

/* Connections without a handshake, and one with an unfinished handshake, do not delay other
 * clients. */
Test(front, silent_connections_block_nobody)
{
    struct fixture f = {0};
    int fd[64];
    fixture_start(&f);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)rpc_server_port(f.server)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (size_t i = 0; i < 64; i++) {
        fd[i] = socket(AF_INET, SOCK_STREAM, 0);
        cr_assert_eq(connect(fd[i], (struct sockaddr *)&to, sizeof to), 0);
        if (i % 2) cr_assert_eq(write(fd[i], "\x16\x03\x01", 3), 3);
    }
    struct rpc_client *client = open_as(&f, "a");
    struct bytes reply = {.max = 100};
    uint64_t start = text_now_ms();
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "x", &reply));
    cr_assert_lt(text_now_ms() - start, 4000);
    for (size_t i = 0; i < 64; i++)
        close(fd[i]);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

/* With 400 descriptors there is room for 50 handshakes, fewer than there are silent connections. */
Test(front, silent_connections_give_way_when_descriptors_are_few)
{
    struct fixture f = {0};
    int fd[150];
    const struct rlimit limit = {.rlim_cur = 400, .rlim_max = 400};
    cr_assert_eq(setrlimit(RLIMIT_NOFILE, &limit), 0);
    fixture_start(&f);
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_port = htons((uint16_t)rpc_server_port(f.server)),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    for (size_t i = 0; i < 150; i++) {
        fd[i] = socket(AF_INET, SOCK_STREAM, 0);
        cr_assert_eq(connect(fd[i], (struct sockaddr *)&to, sizeof to), 0);
    }
    struct rpc_client *client = open_as(&f, "a");
    struct bytes reply = {.max = 100};
    uint64_t start = text_now_ms();
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "x", &reply));
    cr_assert_lt(text_now_ms() - start, 4000);
    cr_assert_eq(atomic_load(&f.events), 1);
    cr_assert(strstr(f.reason, "the oldest gave way") != NULL, "%s", f.reason);
    for (size_t i = 0; i < 150; i++)
        close(fd[i]);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}
