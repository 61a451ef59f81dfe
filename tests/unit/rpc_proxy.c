#include "proto/rpc_proxy.h"

#include "proto/rpc.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static void clear(void)
{
    static const char *const all[] = {"grpc_proxy", "https_proxy",   "http_proxy",
                                      "no_proxy",   "no_grpc_proxy", "HTTPS_PROXY"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        unsetenv(all[i]);
}

Test(rpc_proxy, takes_the_first_variable_that_is_set)
{
    static const struct {
        const char *grpc, *https, *http, *variable, *name;
    } cases[] = {
        {NULL, NULL, NULL, NULL, ""},
        {NULL, NULL, "http://p:3128", "http_proxy", "p:3128"},
        {NULL, "http://q", "http://p:3128", "https_proxy", "q:80"},
        {"p.example.org:8080/", "http://q", NULL, "grpc_proxy", "p.example.org:8080"},
        {"", "http://q", "http://p:3128", NULL, ""}, /* set to none */
        {NULL, "HTTP://[fd00::1]:3128", NULL, "https_proxy", "[fd00::1]:3128"},
        {NULL, "http://[fd00::1]", NULL, "https_proxy", "[fd00::1]:80"},
        {NULL, "http://u:p@w@10.0.0.1:3128/", NULL, "https_proxy", "10.0.0.1:3128"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct rpc_proxy p;
        clear();
        if (cases[i].grpc) setenv("grpc_proxy", cases[i].grpc, 1);
        if (cases[i].https) setenv("https_proxy", cases[i].https, 1);
        if (cases[i].http) setenv("http_proxy", cases[i].http, 1);
        ok(rpc_proxy_find(&p, "fed.example.org", "7443"));
        cr_expect_eq(!p.variable, !cases[i].variable, "case %zu", i);
        if (p.variable) cr_expect_str_eq(p.variable, cases[i].variable, "case %zu", i);
        cr_expect_str_eq(p.name, cases[i].name, "case %zu: %s", i, p.name);
    }
}

Test(rpc_proxy, is_not_used_for_this_machine)
{
    static const char *const hosts[] = {"localhost", "127.0.0.1", "127.9.9.9", "::1"};
    struct rpc_proxy p;
    clear();
    setenv("http_proxy", "http://p:3128", 1);
    for (size_t i = 0; i < sizeof hosts / sizeof *hosts; i++) {
        ok(rpc_proxy_find(&p, hosts[i], "7443"));
        cr_expect_null(p.variable, "%s", hosts[i]);
    }
}

Test(rpc_proxy, leaves_out_the_hosts_of_no_proxy)
{
    static const struct {
        const char *list, *host;
        bool direct;
    } cases[] = {
        {"fed.example.org", "fed.example.org", true},
        {"FED.example.org", "fed.Example.org", true},
        {"fed.example.org", "fed.example.org.", true},
        {"example.org", "fed.example.org", true},
        {".example.org", "fed.example.org", true},
        {".example.org", "example.org", true},
        {"*.example.org", "fed.example.org", true},
        {"example.org", "fedexample.org", false},
        {"org", "fed.example.org", true},
        {"example.com", "fed.example.org", false},
        {"", "fed.example.org", false},
        {",, ,", "fed.example.org", false},
        {".", "fed.example.org", false},
        {"example.com, example.org", "fed.example.org", true},
        {"example.com example.org", "fed.example.org", true},
        {"*", "fed.example.org", true},
        {"*", "10.1.2.3", true},
        {"fed.example.org:7443", "fed.example.org", true},
        {"fed.example.org:443", "fed.example.org", false},
        {"10.1.2.3", "10.1.2.3", true},
        {"10.1.2.3:7443", "10.1.2.3", true},
        {"10.1.2.3:443", "10.1.2.3", false},
        {"1.2.3", "10.1.2.3", true}, /* a name; a suffix like any other */
        {"0.1.2.3", "10.1.2.3", false},
        {"10.0.0.0/8", "10.200.3.4", true},
        {"10.0.0.0/8", "11.0.0.1", false},
        {"192.168.12.0/22", "192.168.15.255", true},
        {"192.168.12.0/22", "192.168.16.0", false},
        {"192.168.1.7/32", "192.168.1.7", true},
        {"0.0.0.0/0", "192.168.1.7", true},
        {"10.0.0.0/33", "10.0.0.1", false},
        {"10.0.0.0/x", "10.0.0.1", false},
        {"10.0.0.0/8", "ten.example.org", false},
        {"fd00::/8", "fd12::5", true},
        {"fd00::/8", "fe00::5", false},
        {"fd12:0::5", "fd12::5", true},
        {"[fd12::5]", "fd12::5", true},
        {"[fd12::5]:7443", "fd12::5", true},
        {"[fd12::5]:1", "fd12::5", false},
        {"fd12::/130", "fd12::5", false},
    };
    struct rpc_proxy p;
    clear();
    setenv("https_proxy", "http://p:3128", 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv("no_proxy", cases[i].list, 1);
        ok(rpc_proxy_find(&p, cases[i].host, "7443"));
        cr_expect_eq(!p.variable, cases[i].direct, "no_proxy=%s, %s", cases[i].list, cases[i].host);
        cr_expect_eq(p.excluded != NULL, cases[i].direct);
    }
    setenv("no_grpc_proxy", "example.com", 1); /* it takes the place of no_proxy */
    setenv("no_proxy", "*", 1);
    ok(rpc_proxy_find(&p, "fed.example.org", "7443"));
    cr_expect_not_null(p.variable);
}

Test(rpc_proxy, refuses_what_it_cannot_use_without_printing_it)
{
    static const char *const values[] = {
        "https://user:secret@p:3128",
        "socks5://p:1080",
        "http://",
        "http://p:0",
        "http://p:99999",
        "http://user:secret@",
        "http://p:12x",
        "http://[fd00::1",
        "http://[fd00::1]x",
        "http://:3128",
    };
    struct rpc_proxy p;
    char text[256];
    clear();
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        setenv("https_proxy", values[i], 1);
        err e = rpc_proxy_find(&p, "fed.example.org", "7443");
        cr_expect_eq(e.kind, ERR_INPUT, "%s", values[i]);
        cr_expect(strstr(e.text, "https_proxy: ") && !strstr(e.text, "secret"), "%s", e.text);
    }
    setenv("https_proxy", "http://user:secret@p:3128", 1);
    ok(rpc_client_route(text, sizeof text, "fed.example.org:7443"));
    cr_expect_str_eq(text, "p:3128, from https_proxy, with a user and a password");
    setenv("no_proxy", "example.org", 1);
    ok(rpc_client_route(text, sizeof text, "fed.example.org:7443"));
    cr_expect_str_eq(text, "none: no_proxy excludes fed.example.org");
    clear();
    ok(rpc_client_route(text, sizeof text, "fed.example.org:7443"));
    cr_expect_str_eq(text, "none");
    setenv("HTTPS_PROXY", "http://p:3128", 1);
    ok(rpc_client_route(text, sizeof text, "fed.example.org:7443"));
    cr_expect(strstr(text, "none (HTTPS_PROXY is set, but only"), "%s", text);
}

/* The examples are those of RFC 7617, and one with escapes. */
Test(rpc_proxy, sends_user_and_password_in_base64)
{
    static const char *const cases[][2] = {
        {"http://Aladdin:open%20sesame@p", "QWxhZGRpbjpvcGVuIHNlc2FtZQ=="},
        {"http://test:123%C2%A3@p", "dGVzdDoxMjPCow=="},
        {"http://a:%40%3a%2F%zz@p", "YTpAOi8leno="},
        {"http://user@p", "dXNlcg=="},
    };
    char long_value[1200];
    struct rpc_proxy p;
    clear();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        setenv("http_proxy", cases[i][0], 1);
        ok(rpc_proxy_find(&p, "fed.example.org", "7443"));
        cr_expect_str_eq(p.credentials, cases[i][1], "%s", p.credentials);
        cr_expect_str_eq(p.name, "p:80");
    }
    snprintf(long_value, sizeof long_value, "http://u:%0600d@p", 1);
    setenv("http_proxy", long_value, 1);
    refused(rpc_proxy_find(&p, "fed.example.org", "7443"), ERR_INPUT, "more than 512 bytes");
}

/* ---- the tunnel */

struct peer { /* the proxy's end of a socket pair */
    int fd;
    const char *answer;
    char request[4096];
};

static void *serve(void *argument)
{
    struct peer *p = argument;
    size_t n = 0;
    while (!strstr(p->request, "\r\n\r\n")) {
        ssize_t got = recv(p->fd, p->request + n, sizeof p->request - 1 - n, 0);
        if (got <= 0) break;
        n += (size_t)got;
    }
    if (p->answer) (void)!send(p->fd, p->answer, strlen(p->answer), MSG_NOSIGNAL);
    if (!p->answer || *p->answer != 'H') shutdown(p->fd, SHUT_RDWR);
    return NULL;
}

static err tunnel(struct peer *peer, const char *answer, const char *credentials, char *next)
{
    int fd[2];
    pthread_t thread;
    struct timeval limit = {.tv_usec = 200 * 1000};
    struct rpc_proxy p = {.variable = "http_proxy", .name = "p:3128"};
    snprintf(p.credentials, sizeof p.credentials, "%s", credentials);
    cr_assert_eq(socketpair(AF_UNIX, SOCK_STREAM, 0, fd), 0);
    (void)setsockopt(fd[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    *peer = (struct peer){.fd = fd[1], .answer = answer};
    cr_assert_eq(pthread_create(&thread, NULL, serve, peer), 0);
    err e = rpc_proxy_tunnel(fd[0], &p, "fed.example.org:7443", 200);
    pthread_join(thread, NULL);
    if (next && recv(fd[0], next, 1, 0) != 1) *next = 0;
    close(fd[0]);
    close(fd[1]);
    return e;
}

Test(rpc_proxy, asks_for_a_tunnel_and_leaves_its_bytes)
{
    struct peer peer;
    char next = 0;
    ok(tunnel(&peer, "HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n\x16", "", &next));
    cr_expect_str_eq(peer.request, "CONNECT fed.example.org:7443 HTTP/1.1\r\n"
                                   "Host: fed.example.org:7443\r\n\r\n");
    cr_expect_eq(next, 0x16, "the first byte of the tunnel");
    ok(tunnel(&peer, "HTTP/1.0 200\r\n\r\n", "dXNlcg==", NULL));
    cr_expect(strstr(peer.request, "\r\nProxy-Authorization: Basic dXNlcg==\r\n\r\n"), "%s",
              peer.request);
}

Test(rpc_proxy, names_the_proxy_and_its_answer)
{
    static char endless[20000] = "HTTP/1.1 200 OK\r\nX: ";
    struct peer peer;
    memset(endless + strlen(endless), 'x', sizeof endless - strlen(endless) - 1);
    const struct {
        const char *answer, *part;
    } cases[] = {
        {"HTTP/1.1 403 Denied\x1b[31m\r\n\r\n",
         "the proxy p:3128 (from http_proxy): no connection to fed.example.org:7443: it answers "
         "403 Denied?[31m"},
        {"HTTP/1.1 407 Authentication Required\r\n\r\n", "asks for a user and a password"},
        {"HTTP/1.1 502 Bad Gateway\r\nX: y\r\n\r\n", "it answers 502 Bad Gateway"},
        {"HTTP/1.1\r\n\r\n", "not HTTP"},
        {"SSH-2.0-OpenSSH_9.2\r\n\r\n", "not HTTP"},
        {"HTTP/1.1 200", "no answer within"},
        {NULL, "closed the connection"},
        {endless, "longer than"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(tunnel(&peer, cases[i].answer, "c2VjcmV0", NULL), ERR_MACHINE, cases[i].part);
}
