/* The first contact with a server, against a plain OpenSSL server whose chain the tests choose. The
 * hashes come from the `openssl` command. */
#include "proto/rpc_root.h"

#include "base/file.h"
#include "proto/rpc_openssl.h"
#include "tests/support/rpc_fixture.h"
#include "tests/support/support.h"

#include <arpa/inet.h>
#include <sys/socket.h>

struct plain {
    const char *chain, *key; /* files */
    int listener, tries;
    pthread_t thread;
    char address[32];
};

static void serve_one(const struct plain *p, SSL_CTX *context)
{
    int fd = accept(p->listener, NULL, NULL);
    SSL *ssl = SSL_new(context);
    SSL_set_fd(ssl, fd);
    if (SSL_accept(ssl) == 1 && SSL_write(ssl, "x", 1) == 1) (void)SSL_shutdown(ssl);
    SSL_free(ssl);
    close(fd);
}

static void *serve(void *user)
{
    struct plain *p = user;
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(context, p->chain) == 1 &&
        SSL_CTX_use_PrivateKey_file(context, p->key, SSL_FILETYPE_PEM) == 1)
        for (int i = 0; i < p->tries; i++)
            serve_one(p, context);
    SSL_CTX_free(context);
    return NULL;
}

static void start(struct plain *p)
{
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    signal(SIGPIPE, SIG_IGN); /* a client that refuses this server closes early */
    fixture_certs();
    p->listener = socket(AF_INET, SOCK_STREAM, 0);
    cr_assert_eq(bind(p->listener, (struct sockaddr *)&at, size), 0);
    cr_assert_eq(listen(p->listener, 4), 0);
    cr_assert_eq(getsockname(p->listener, (struct sockaddr *)&at, &size), 0);
    snprintf(p->address, sizeof p->address, "127.0.0.1:%d", ntohs(at.sin_port));
    cr_assert_eq(pthread_create(&p->thread, NULL, serve, p), 0);
}

static void stop(struct plain *p)
{
    pthread_join(p->thread, NULL);
    close(p->listener);
}

/* SHA-256 of the DER form, by the command that an operator would use. */
static struct enroll_hash hash_by_openssl(const char *pem)
{
    char command[1024], text[80] = "";
    struct enroll_hash hash;
    snprintf(command, sizeof command,
             "openssl x509 -in %s -outform DER | openssl dgst -sha256 -r | cut -c1-64", pem);
    FILE *pipe = popen(command, "r");
    cr_assert(pipe != NULL && fgets(text, sizeof text, pipe) != NULL);
    pclose(pipe);
    text[strcspn(text, "\n")] = 0;
    ok(enroll_token_hash_parse(&hash, text));
    return hash;
}

/* A chain as the address of enrolment sends it. */
static void make_chain(char path[512], const char *leaf, const char *root)
{
    char command[2048];
    fixture_certs();
    snprintf(path, 512, FIXTURE_CERTS "/sent.%d.pem", (int)getpid());
    snprintf(command, sizeof command, "cat %s %s > %s", leaf, root, path);
    cr_assert_eq(system(command), 0);
}

Test(rpc_root, is_found_by_its_hash_and_makes_the_server_trusted)
{
    char chain[512], *ca = NULL;
    size_t size = 0;
    make_chain(chain, FIXTURE_CERTS "/server.pem", FIXTURE_CERTS "/ca.pem");
    struct plain p = {chain, FIXTURE_CERTS "/server.key", .tries = 1};
    struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
    struct bytes pem = {.max = 1 << 16};
    start(&p);
    ok(rpc_root_find(&pem, p.address, &hash));
    stop(&p);
    ok(file_read_all(&ca, &size, FIXTURE_CERTS "/ca.pem", 1 << 16));
    cr_expect_str_eq((const char *)pem.data, strstr(ca, "-----BEGIN"));
    free(ca);
    bytes_close(&pem);
    unlink(chain);
}

Test(rpc_root, refuses_a_server_of_another_authority)
{
    char chain[512];
    make_chain(chain, FIXTURE_CERTS "/foreign/server.pem", FIXTURE_CERTS "/foreign/ca.pem");
    struct plain p = {chain, FIXTURE_CERTS "/foreign/server.key", .tries = 1};
    struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
    struct bytes pem = {.max = 1 << 16};
    start(&p);
    refused(rpc_root_find(&pem, p.address, &hash), ERR_INPUT,
            "this server is not of the authority that the token names");
    stop(&p);
    cr_expect_eq(pem.size, 0);
    unlink(chain);
}

/* The root is public, so an attacker can send it behind a certificate of its own. */
Test(rpc_root, refuses_a_server_that_only_sends_the_right_root)
{
    char chain[512];
    make_chain(chain, FIXTURE_CERTS "/foreign/server.pem", FIXTURE_CERTS "/ca.pem");
    struct plain p = {chain, FIXTURE_CERTS "/foreign/server.key", .tries = 1};
    struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
    struct bytes pem = {.max = 1 << 16};
    start(&p);
    refused(rpc_root_find(&pem, p.address, &hash), ERR_INPUT, "cannot be trusted");
    stop(&p);
    cr_expect_eq(pem.size, 0);
    unlink(chain);
}

Test(rpc_root, refuses_a_certificate_for_another_name_or_for_a_client)
{
    static const struct {
        const char *leaf, *key, *says;
    } cases[] = {
        {FIXTURE_CERTS "/other-host.pem", FIXTURE_CERTS "/other-host.key", "for another name"},
        {FIXTURE_CERTS "/a.pem", FIXTURE_CERTS "/a.key", "cannot be trusted"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char chain[512];
        make_chain(chain, cases[i].leaf, FIXTURE_CERTS "/ca.pem");
        struct plain p = {chain, cases[i].key, .tries = 1};
        struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
        struct bytes pem = {.max = 1 << 16};
        start(&p);
        refused(rpc_root_find(&pem, p.address, &hash), ERR_INPUT, cases[i].says);
        stop(&p);
        unlink(chain);
    }
}

Test(rpc_root, says_that_the_address_is_the_one_of_the_main_service)
{
    struct fixture f = {0};
    char chain[512];
    make_chain(chain, FIXTURE_CERTS "/server.pem", FIXTURE_CERTS "/ca.pem");
    struct rpc_server_options server = fixture_server_options(&f, "localhost:0");
    server.cert = chain;
    fixture_serve(&f, &server);
    struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
    struct bytes pem = {.max = 1 << 16};
    refused(rpc_root_find(&pem, f.address, &hash), ERR_INPUT, "it is no address of enrolment");
    fixture_stop(&f);
    unlink(chain);
}

Test(rpc_root, is_found_in_a_file_by_its_hash)
{
    char *text = NULL;
    size_t size = 0;
    struct bytes pem = {.max = 1 << 16};
    fixture_certs();
    struct enroll_hash hash = hash_by_openssl(FIXTURE_CERTS "/ca.pem");
    ok(file_read_all(&text, &size, FIXTURE_CERTS "/foreign/ca.pem", 1 << 16));
    refused(rpc_root_in(&pem, text, &hash), ERR_INPUT, "none of the 1 certificates");
    free(text);
    ok(file_read_all(&text, &size, FIXTURE_CERTS "/ca.pem", 1 << 16));
    ok(rpc_root_in(&pem, text, &hash));
    cr_expect_gt(pem.size, 100);
    free(text);
    bytes_close(&pem);
}
