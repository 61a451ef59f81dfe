#include "tests/support/rpc_fixture.h"

#include <errno.h>
#include <sys/wait.h>

static struct rpc_client *open_as(struct fixture *f, const char *name)
{
    struct rpc_client *client = NULL;
    const struct rpc_client_options options = fixture_client(f, name);
    FIXTURE_OK(rpc_client_open(&client, &options));
    return client;
}

Test(rpc_server, answers_a_call_with_who_called)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a");
    struct bytes reply = {.max = RPC_MESSAGE_BYTES};
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "hello", &reply));
    cr_assert_str_eq((char *)reply.data, "fed:a:hello");
    cr_assert(fixture_wait(&f.over, 1));
    cr_assert_eq(atomic_load(&f.answered), 1);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_server, every_kind_of_error_arrives_as_what_it_is)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a");
    const struct {
        enum err_kind sent, got;
    } cases[] = {{ERR_INPUT, ERR_REFUSED},
                 {ERR_STATE, ERR_STATE},
                 {ERR_LIMIT, ERR_LIMIT},
                 {ERR_MACHINE, ERR_MACHINE},
                 {ERR_REFUSED, ERR_REFUSED}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct bytes reply = {.max = 100};
        char request[2] = {(char)cases[i].sent, 0}, text[32];
        err e = fixture_call(client, "/test.T/Fail", request, &reply);
        snprintf(text, sizeof text, "because of %d", cases[i].sent);
        cr_assert_eq(e.kind, cases[i].got, "%d: %s", cases[i].sent, e.text);
        cr_assert_str_eq(e.text, text);
        bytes_close(&reply);
    }
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_server, refuses_who_has_another_role_and_methods_it_does_not_know)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *member = open_as(&f, "a"), *admin = open_as(&f, "ops");
    struct bytes reply = {.max = 1000};
    err e = fixture_call(member, "/test.T/AdminOnly", "x", &reply);
    cr_assert_eq(e.kind, ERR_REFUSED);
    cr_assert(strstr(e.text, "only an admin may call this") != NULL, "%s", e.text);
    FIXTURE_OK(fixture_call(admin, "/test.T/AdminOnly", "x", &reply));
    e = fixture_call(member, "/test.T/Nothing", "x", &reply);
    cr_assert_eq(e.kind, ERR_REFUSED);
    cr_assert(strstr(e.text, "/test.T/Nothing") != NULL, "%s", e.text);
    bytes_close(&reply);
    rpc_client_close(member);
    rpc_client_close(admin);
    fixture_stop(&f);
}

Test(rpc_server, refuses_certificates_without_one_identity_of_this_federation)
{
    struct fixture f = {0};
    fixture_start(&f);
    /* Our client checks its own certificate before it connects, so most faulty certificates are
     * tested with the tool of openssl. Here only the federation is wrong, which our client
     * cannot know. */
    struct rpc_client *client = open_as(&f, "other-fed");
    struct bytes reply = {.max = 1000};
    err e = fixture_call(client, "/test.T/Echo", "x", &reply);
    cr_assert_eq(e.kind, ERR_REFUSED);
    cr_assert(strstr(e.text, "elsewhere") != NULL, "%s", e.text);
    cr_assert_eq(atomic_load(&f.begun), 0);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

static void *hold_main(void *argument)
{
    struct bytes reply = {.max = 100};
    err e = fixture_call(argument, "/test.T/Hold", "x", &reply);
    bytes_close(&reply);
    return (void *)(uintptr_t)e.kind;
}

Test(rpc_server, a_hung_call_blocks_nobody_and_ends_at_its_deadline)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a"), *other = open_as(&f, "b");
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, hold_main, client), 0);
    cr_assert(fixture_wait(&f.held, 1));
    struct bytes reply = {.max = 1000};
    FIXTURE_OK(fixture_call(other, "/test.T/Echo", "1", &reply));
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "2", &reply));
    void *kind = NULL;
    pthread_join(thread, &kind);
    cr_assert_eq((uintptr_t)kind, ERR_MACHINE);
    cr_assert(fixture_wait(&f.over, 3), "the held call's end was not told");
    bytes_close(&reply);
    rpc_client_close(client);
    rpc_client_close(other);
    fixture_stop(&f);
}

Test(rpc_server, a_second_server_on_the_port_is_told_that_it_is_taken)
{
    struct fixture f = {0}, second = {0};
    fixture_start(&f);
    const struct rpc_server_options options = fixture_server_options(&second, f.address);
    err e = rpc_server_open(&second.server, &options);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert_eq(e.sys, EADDRINUSE);
    cr_assert(strstr(e.text, f.address) != NULL, "%s", e.text);
    cr_assert(strstr(e.text, "another program") != NULL, "%s", e.text);
    cr_assert_null(second.server);
    fixture_stop(&f);
}

Test(rpc_server, refuses_addresses_and_files_that_cannot_be)
{
    struct fixture f = {0};
    fixture_certs();
    const char *bad[] = {"localhost", "localhost:", "localhost:99999",
                         ":7",        "::1:7",      "no.such.host.invalid:7"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const struct rpc_server_options options = fixture_server_options(&f, bad[i]);
        err e = rpc_server_open(&f.server, &options);
        cr_assert_eq(e.kind, ERR_INPUT, "%s: %s", bad[i], e.text);
        cr_assert(strstr(e.text, bad[i]) != NULL || i == 5, "%s", e.text);
    }
    struct rpc_server_options options = fixture_server_options(&f, "localhost:0");
    options.cert = FIXTURE_CERTS "/a.pem";
    options.key = FIXTURE_CERTS "/a.key";
    err e = rpc_server_open(&f.server, &options);
    cr_assert_eq(e.kind, ERR_INPUT);
    cr_assert(strstr(e.text, "serverAuth") != NULL, "%s", e.text);
}

Test(rpc_server, a_client_goes_on_after_the_server_was_restarted)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a");
    struct bytes reply = {.max = 1000};
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "1", &reply));
    fixture_stop(&f);
    err e = fixture_call(client, "/test.T/Echo", "2", &reply);
    cr_assert_eq(e.kind, ERR_MACHINE);
    cr_assert(strstr(e.text, "cannot connect") != NULL, "%s", e.text);
    const struct rpc_server_options options = fixture_server_options(&f, f.address);
    char address[64];
    snprintf(address, sizeof address, "%s", f.address);
    struct rpc_server_options again = options;
    again.listen = address;
    fixture_serve(&f, &again);
    e = ERR_NONE;
    for (int i = 0; i < 50; i++) {
        e = fixture_call(client, "/test.T/Echo", "3", &reply);
        if (!err_is(e)) break;
        usleep(100000);
    }
    cr_assert_eq(e.kind, ERR_OK, "%s", e.text);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

static void copy_file(const char *from, const char *to)
{
    char command[1200];
    snprintf(command, sizeof command, "cp %s %s", from, to);
    cr_assert_eq(system(command), 0);
}

/* The files of `name` take the place of those the client was opened with. */
static void become(const char *dir, const char *name)
{
    char from[200], to[200];
    static const char *const kinds[] = {"pem", "key"};
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s.%s", FIXTURE_CERTS, name, kinds[i]);
        snprintf(to, sizeof to, "%s/me.%s", dir, kinds[i]);
        copy_file(from, to);
    }
}

Test(rpc_server, a_client_takes_a_renewed_certificate_and_no_one_elses)
{
    struct fixture f = {0};
    char dir[] = "/tmp/fedlora-renewed-XXXXXX", path[3][200], command[64];
    bool changed = true;
    struct rpc_client *client = NULL;
    struct bytes reply = {.max = 1000};
    fixture_start(&f);
    cr_assert_not_null(mkdtemp(dir));
    become(dir, "a");
    snprintf(path[0], sizeof path[0], "%s/ca.pem", FIXTURE_CERTS);
    snprintf(path[1], sizeof path[1], "%s/me.pem", dir);
    snprintf(path[2], sizeof path[2], "%s/me.key", dir);
    const struct rpc_client_options options = {
        .server = f.address, .ca = path[0], .cert = path[1], .key = path[2]};
    FIXTURE_OK(rpc_client_open(&client, &options));
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "1", &reply));
    FIXTURE_OK(rpc_client_reload(&changed, client));
    cr_expect_not(changed, "the same files");
    become(dir, "a-again");
    FIXTURE_OK(rpc_client_reload(&changed, client));
    cr_expect(changed);
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "2", &reply));
    become(dir, "b");
    err e = rpc_client_reload(&changed, client);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "now has the identity b; it was a") != NULL, "%s", e.text);
    become(dir, "expired");
    cr_expect_eq(rpc_client_reload(&changed, client).kind, ERR_INPUT);
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "3", &reply));
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
}

Test(rpc_server, a_message_over_the_limit_is_refused_and_the_server_goes_on)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a");
    struct bytes big = {.max = 4u << 20}, reply = {.max = 1000};
    static const char zeros[65536];
    while (big.size < (2u << 20))
        FIXTURE_OK(bytes_append(&big, zeros, sizeof zeros));
    err e = rpc_client_unary(&reply, client, "/test.T/Echo", &big, 5000);
    cr_assert_eq(e.kind, ERR_LIMIT, "%s", e.text);
    cr_assert_eq(atomic_load(&f.begun), 0);
    FIXTURE_OK(fixture_call(client, "/test.T/Echo", "small", &reply));
    bytes_close(&big);
    bytes_close(&reply);
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_server, closing_ends_held_calls_within_its_grace)
{
    struct fixture f = {0};
    fixture_start(&f);
    struct rpc_client *client = open_as(&f, "a");
    pthread_t thread;
    cr_assert_eq(pthread_create(&thread, NULL, hold_main, client), 0);
    cr_assert(fixture_wait(&f.held, 1));
    uint64_t start = text_now_ms();
    fixture_stop(&f);
    cr_assert_lt(text_now_ms() - start, 3000);
    void *kind = NULL;
    pthread_join(thread, &kind);
    cr_assert_eq((uintptr_t)kind, ERR_MACHINE);
    cr_assert_eq(atomic_load(&f.over), 1);
    rpc_client_close(client);
}

/* ---------------------------------------------------------------- by openssl's own tool */

static int run_tool(struct fixture *f, const char *arguments, char *output, size_t size)
{
    char command[2048];
    snprintf(
        command, sizeof command,
        "sleep 1 | timeout 10 openssl s_client -connect %s -CAfile " FIXTURE_CERTS
        "/ca.pem -alpn h2 %s 2>&1 | tr '\\000\\004' '@^' | sed 's/@@.^@@/HTTP2-settings-came/'",
        f->address, arguments);
    FILE *pipe = popen(command, "r");
    cr_assert_not_null(pipe);
    size_t used = fread(output, 1, size - 1, pipe);
    output[used] = 0;
    return pclose(pipe);
}

#define AS(name) "-cert " FIXTURE_CERTS "/" name ".pem -key " FIXTURE_CERTS "/" name ".key "

Test(rpc_server, speaks_no_tls_1_2_whatever_the_peer_offers)
{
    struct fixture f = {0};
    char output[65536];
    fixture_start(&f);
    run_tool(&f, AS("a") "-tls1_2", output, sizeof output);
    cr_assert(strstr(f.reason, ": it does not speak TLS 1.3") != NULL, "%s", f.reason);
    cr_assert(strstr(output, "protocol version") != NULL ||
                  strstr(output, "no peer certificate") != NULL,
              "%s", output);
    cr_assert(strstr(output, "Cipher is (NONE)") != NULL, "%s", output);
    run_tool(&f, AS("a") "-tls1_3", output, sizeof output);
    cr_assert(strstr(output, "TLSv1.3, Cipher is TLS_AES") != NULL, "%s", output);
    fixture_stop(&f);
}

/* Our client does not start with such certificates, but openssl's does. An accepted client gets the
 * server's HTTP/2 settings; a refused one gets an alert or nothing. */
static bool let_in(struct fixture *f, const char *arguments)
{
    char output[65536];
    run_tool(f, arguments, output, sizeof output);
    return strstr(output, "alert") == NULL && strstr(output, "error") == NULL &&
           strstr(output, "HTTP2-settings-came") != NULL;
}

Test(rpc_server, lets_only_clients_of_its_own_authority_in)
{
    struct fixture f = {0};
    fixture_start(&f);
    cr_assert(let_in(&f, AS("a")));
    cr_assert_eq(atomic_load(&f.events), 0);
    cr_assert_not(let_in(&f, ""), "no certificate");
    cr_assert_eq(atomic_load(&f.events), 1);
    cr_assert(strstr(f.reason, ": it has no certificate") != NULL, "%s", f.reason);
    cr_assert_not(let_in(&f, AS("foreign/a")), "an unknown authority");
    cr_assert_eq(atomic_load(&f.events), 1, "one a minute");
    cr_assert_not(let_in(&f, AS("wrong-use")), "not for clients");
    cr_assert_not(let_in(&f, AS("expired")), "expired");
    fixture_stop(&f);
}

static void link_certificate(const char *dir, const char *name)
{
    char command[1024];
    snprintf(command, sizeof command,
             "cp " FIXTURE_CERTS "/%s.pem %s/cert.pem && cp " FIXTURE_CERTS "/%s.key %s/key.pem",
             name, dir, name, dir);
    cr_assert_eq(system(command), 0);
}

static bool names_of_server(struct fixture *f, const char *name)
{
    struct rpc_tls_report report = {0};
    const struct rpc_client_options options = fixture_client(f, "a");
    err e = rpc_tls_probe(&report, &options);
    return strstr(err_is(e) ? e.text : report.server_names, name) != NULL;
}

Test(rpc_server, shows_its_new_certificate_after_reading_it_again)
{
    struct fixture f = {0};
    char dir[] = "/tmp/rpc_server.XXXXXX", cert[64], key[64], command[64];
    fixture_certs();
    cr_assert_not_null(mkdtemp(dir));
    snprintf(cert, sizeof cert, "%s/cert.pem", dir);
    snprintf(key, sizeof key, "%s/key.pem", dir);
    link_certificate(dir, "server");
    struct rpc_server_options options = fixture_server_options(&f, "localhost:0");
    options.cert = cert;
    options.key = key;
    fixture_serve(&f, &options);
    cr_assert(names_of_server(&f, "127.0.0.1"));
    link_certificate(dir, "other-host");
    cr_assert(names_of_server(&f, "127.0.0.1"), "not before it is told to");
    FIXTURE_OK(rpc_server_reload(f.server));
    cr_assert(names_of_server(&f, "example.org"));
    link_certificate(dir, "a");
    err e = rpc_server_reload(f.server);
    cr_assert_eq(e.kind, ERR_INPUT, "a client's certificate will not do");
    cr_assert(names_of_server(&f, "example.org"), "the old one stays");
    snprintf(command, sizeof command, "rm -r %s", dir);
    cr_assert_eq(system(command), 0);
    fixture_stop(&f);
}
