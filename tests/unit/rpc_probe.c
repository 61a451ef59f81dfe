#include "tests/support/rpc_fixture.h"

#include <arpa/inet.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/types.h>

static err probe_as(struct fixture *f, const char *name, struct rpc_tls_report *report)
{
    const struct rpc_client_options options = fixture_client(f, name);
    return rpc_tls_probe(report, &options);
}

static void says(err e, enum err_kind kind, const char *text)
{
    cr_assert_eq(e.kind, kind, "%d: %s", e.kind, e.text);
    cr_assert(strstr(e.text, text) != NULL, "\"%s\" does not say \"%s\"", e.text, text);
}

Test(rpc_probe, reports_what_was_agreed_and_who_is_who)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    fixture_start(&f);
    FIXTURE_OK(probe_as(&f, "a", &report));
    cr_assert_str_eq(report.version, "TLSv1.3");
    cr_assert_str_eq(report.self.id, "a");
    cr_assert(strstr(report.server_names, "localhost") != NULL, "%s", report.server_names);
    cr_assert_gt(report.server_days_left, 300);
    fixture_stop(&f);
}

Test(rpc_probe, says_which_side_refused_what)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    fixture_start(&f);
    /* The client trusts another authority than the server's, so it refuses the server's
     * certificate. */
    struct rpc_client_options options = fixture_client(&f, "foreign/a");
    options.ca = FIXTURE_CERTS "/foreign/ca.pem";
    says(rpc_tls_probe(&report, &options), ERR_INPUT, "cannot be trusted");
    struct rpc_client *client = NULL;
    struct bytes reply = {.max = 100};
    FIXTURE_OK(rpc_client_open(&client, &options));
    says(fixture_call(client, "/test.T/Echo", "x", &reply), ERR_INPUT, "cannot be trusted");
    rpc_client_close(client);
    fixture_stop(&f);
}

Test(rpc_probe, says_that_the_servers_name_is_another)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    fixture_certs();
    struct rpc_server_options server = fixture_server_options(&f, "localhost:0");
    server.cert = FIXTURE_CERTS "/other-host.pem";
    server.key = FIXTURE_CERTS "/other-host.key";
    fixture_serve(&f, &server);
    says(probe_as(&f, "a", &report), ERR_INPUT, "the server's certificate is for example.org");
    fixture_stop(&f);
}

/* The server's certificate is from the client's authority, but the server trusts another authority
 * and refuses the client. */
Test(rpc_probe, says_that_the_server_refuses_our_certificate)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    char both[512];
    fixture_certs();
    char command[2048];
    snprintf(both, sizeof both, FIXTURE_CERTS "/cross.%d.pem", (int)getpid());
    snprintf(command, sizeof command, "cat %s %s > %s", FIXTURE_CERTS "/foreign/server.pem",
             FIXTURE_CERTS "/foreign/ca.pem", both);
    cr_assert_eq(system(command), 0);
    struct rpc_server_options server = fixture_server_options(&f, "localhost:0");
    server.ca = FIXTURE_CERTS "/foreign/ca.pem";
    server.cert = FIXTURE_CERTS "/foreign/server.pem";
    server.key = FIXTURE_CERTS "/foreign/server.key";
    fixture_serve(&f, &server);
    /* The client trusts both authorities, but its own certificate is from one the server does not
 * trust. */
    snprintf(command, sizeof command, "cat " FIXTURE_CERTS "/ca.pem >> %s", both);
    cr_assert_eq(system(command), 0);
    struct rpc_client_options options = fixture_client(&f, "a");
    options.ca = both;
    says(rpc_tls_probe(&report, &options), ERR_REFUSED, "a.pem");
    struct rpc_client *client = NULL;
    struct bytes reply = {.max = 100};
    FIXTURE_OK(rpc_client_open(&client, &options));
    says(fixture_call(client, "/test.T/Echo", "x", &reply), ERR_REFUSED, "a.pem");
    rpc_client_close(client);
    unlink(both);
    fixture_stop(&f);
}

Test(rpc_probe, says_that_nobody_listens_or_that_it_is_no_tls)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    fixture_certs();
    snprintf(f.address, sizeof f.address, "localhost:1");
    says(probe_as(&f, "a", &report), ERR_MACHINE, "cannot connect to localhost:1");
    snprintf(f.address, sizeof f.address, "no.such.host.invalid:1");
    says(probe_as(&f, "a", &report), ERR_MACHINE, "cannot be looked up");
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof any;
    cr_assert_eq(bind(fd, (struct sockaddr *)&any, sizeof any), 0);
    cr_assert_eq(listen(fd, 1), 0);
    cr_assert_eq(getsockname(fd, (struct sockaddr *)&any, &size), 0);
    snprintf(f.address, sizeof f.address, "127.0.0.1:%d", ntohs(any.sin_port));
    if (fork() == 0) {
        int peer = accept(fd, NULL, NULL);
        (void)!write(peer, "HTTP/1.1 400 Bad Request\r\n\r\n", 28);
        usleep(300000);
        _Exit(0);
    }
    says(probe_as(&f, "a", &report), ERR_INPUT, "does not use TLS");
    close(fd);
}

/* A server that is killed during a handshake has not refused the client. */
Test(rpc_probe, takes_a_server_that_dies_in_the_handshake_for_one_that_is_away)
{
    struct fixture f = {0};
    struct rpc_tls_report report = {0};
    int ready[2];
    char port[8] = "";
    fixture_certs();
    cr_assert_eq(pipe(ready), 0);
    pid_t child = fork();
    if (child == 0) {
        fixture_start(&f);
        (void)!write(ready[1], strrchr(f.address, ':') + 1, 6);
        pause();
    }
    cr_assert_gt(read(ready[0], port, sizeof port - 1), 0);
    snprintf(f.address, sizeof f.address, "127.0.0.1:%s", port);
    FIXTURE_OK(probe_as(&f, "a", &report));
    pid_t killer = fork();
    if (killer == 0) {
        usleep(20000);
        kill(child, SIGKILL);
        _Exit(0);
    }
    err e = ERR_NONE;
    for (int i = 0; i < 200 && !err_is(e); i++)
        e = probe_as(&f, "a", &report);
    cr_assert_eq(e.kind, ERR_MACHINE, "%s", e.text);
}
