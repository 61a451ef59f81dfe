/* The HTTP server around a loop that starts, turns, stops turning, and ends. Pages and metrics:
 * overview_html.c, metrics.c; a whole coordinator: e2e/http.sh. */
#include "coordinator/http/http.h"

#include "base/text.h"
#include "tests/support/runs_fixture.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <unistd.h>

static struct runs_fixture f;
static struct http *h;
static char reply[65536];

static int dial(void)
{
    struct sockaddr_in to = {.sin_family = AF_INET,
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
                             .sin_port = htons((uint16_t)http_port(h))};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    cr_assert_eq(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
    return fd;
}

/* The whole answer; "" if the server closed the connection without one. */
static const char *ask(const char *request)
{
    int fd = dial();
    size_t size = 0;
    ssize_t n = send(fd, request, strlen(request), MSG_NOSIGNAL);
    while (n > 0 && size < sizeof reply - 1)
        if ((n = recv(fd, reply + size, sizeof reply - 1 - size, 0)) > 0) size += (size_t)n;
    reply[size] = 0;
    close(fd);
    return reply;
}

static const char *get(const char *path)
{
    char request[256];
    snprintf(request, sizeof request, "GET %s HTTP/1.1\r\nHost: x\r\n\r\n", path);
    return ask(request);
}

#define SAYS(text, part)                                                                           \
    do {                                                                                           \
        const char *says_ = (text);                                                                \
        cr_expect(strstr(says_, part), "no %s in: %s", part, says_);                               \
    } while (0)

static void begin(void)
{
    runs_fixture_open(&f, 2);
    f.config.http_listen = "127.0.0.1:0";
    f.config.cert = f.config.ca = "/nowhere.pem";
    err e = http_open(&h, &f.config);
    cr_assert(!err_is(e), "%s", e.text);
}

static void end(void)
{
    http_close(h);
    runs_fixture_close(&f);
}

/* ---- a loop in its own thread */

static atomic_bool stop;
static pthread_t loop;

static void *turn(void *unused)
{
    for (; !atomic_load(&stop); usleep(20 * 1000))
        http_turn(h, &f.serve);
    return unused;
}

static void start_loop(void)
{
    atomic_store(&stop, false);
    cr_assert_eq(pthread_create(&loop, NULL, turn, NULL), 0);
    for (int i = 0; i < 100 && !strstr(get("/healthz"), "\r\n\r\nok"); i++)
        usleep(50 * 1000);
    SAYS(reply, "ok");
}

static void stop_loop(void)
{
    atomic_store(&stop, true);
    pthread_join(loop, NULL);
}

Test(http, says_what_a_start_and_an_end_mean_for_probes)
{
    begin();
    SAYS(get("/healthz"), "HTTP/1.1 200");
    SAYS(get("/readyz"), "HTTP/1.1 503");
    SAYS(reply, "\"check\":\"recovery\"");
    SAYS(get("/metrics"), "HTTP/1.1 503");
    start_loop();
    SAYS(get("/healthz"), "ok");
    SAYS(get("/readyz"), "\"check\":\"certificate\""); /* there is no such file */
    SAYS(reply, "HTTP/1.1 503");
    SAYS(get("/metrics"), "fedlora_members{state=\"enrolled\"} 2");
    SAYS(get("/"), "<h1>clinics</h1>");
    stop_loop();
    http_drain(h);
    SAYS(get("/healthz"), "HTTP/1.1 200");
    SAYS(get("/readyz"), "\"check\":\"draining\"");
    SAYS(get("/metrics"), "fedlora_ready 0"); /* the last one that was made */
    end();
}

Test(http, tells_within_seconds_that_the_loop_does_not_turn)
{
    begin();
    start_loop();
    SAYS(get("/healthz"), "HTTP/1.1 200");
    stop_loop();
    uint64_t from = text_now_ms();
    SAYS(get("/metrics"), "HTTP/1.1 503"); /* none was ever made */
    cr_expect_lt(text_now_ms() - from, 9000, "a request waited for a loop that does not turn");
    while (text_now_ms() - from < 10500)
        usleep(100 * 1000);
    SAYS(get("/healthz"), "HTTP/1.1 503");
    SAYS(get("/readyz"), "\"check\":\"loop\"");
    end();
}

Test(http, refuses_everything_but_small_requests_to_read)
{
    static char request[200000];
    begin();
    SAYS(ask("DELETE / HTTP/1.1\r\nHost: x\r\n\r\n"), "HTTP/1.1 405");
    SAYS(ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc"), "HTTP/1.1 405");
    SAYS(get("/../etc/passwd"), "HTTP/1.1 404");
    SAYS(reply, "Content-Security-Policy: default-src 'none'; style-src 'sha256-");
    SAYS(reply, "X-Content-Type-Options: nosniff");
    int n = snprintf(request, sizeof request, "GET / HTTP/1.1\r\nX: ");
    memset(request + n, 'x', sizeof request - 1 - (size_t)n);
    ask(request);
    cr_expect(!strstr(reply, "HTTP/1.1 200"), "%.60s", reply);
    SAYS(get("/healthz"), "HTTP/1.1 200");
    end();
}

/* 16 from one address is the limit, so with 12 silent ones there is room. */
Test(http, serves_others_beside_clients_that_say_nothing)
{
    int silent[12];
    begin();
    start_loop();
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++)
        silent[i] = dial();
    uint64_t from = text_now_ms();
    SAYS(get("/metrics"), "HTTP/1.1 200");
    cr_expect_lt(text_now_ms() - from, 5000);
    for (size_t i = 0; i < sizeof silent / sizeof *silent; i++)
        close(silent[i]);
    stop_loop();
    end();
}

Test(http, refuses_an_address_that_it_cannot_listen_on)
{
    struct http *second = NULL;
    char listen[32];
    begin();
    snprintf(listen, sizeof listen, "127.0.0.1:%d", http_port(h));
    f.config.http_listen = listen;
    err e = http_open(&second, &f.config);
    cr_expect_eq(e.kind, ERR_MACHINE, "%s", e.text);
    cr_expect(strstr(e.text, "http.listen: "), "%s", e.text);
    f.config.http_listen = "no port";
    cr_expect_eq(http_open(&second, &f.config).kind, ERR_INPUT);
    f.config.http_listen = "";
    cr_expect(!err_is(http_open(&second, &f.config)));
    cr_expect_null(second, "it is off");
    cr_expect_eq(http_port(second), 0);
    end();
}
