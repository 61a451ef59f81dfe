#include "tests/support/rpc_fixture.h"

Test(rpc_tls, reads_identities_and_nothing_else)
{
    struct rpc_peer peer = {0};
    cr_assert_eq(rpc_peer_parse(&peer, "fl://clinics/client/north").kind, ERR_OK);
    cr_assert_eq(peer.role, RPC_CLIENT);
    cr_assert_str_eq(peer.federation, "clinics");
    cr_assert_str_eq(peer.id, "north");
    cr_assert_eq(rpc_peer_parse(&peer, "fl://clinics/admin/ops.1").kind, ERR_OK);
    cr_assert_eq(peer.role, RPC_ADMIN);
    const char *bad[] = {"",
                         "fl://",
                         "fl://clinics",
                         "fl://clinics/client",
                         "fl://clinics/client/",
                         "fl:///client/x",
                         "fl://clinics/root/x",
                         "fl://clinics/client/../x",
                         "fl://clinics/client/a/b",
                         "fl://clinics/client/a b",
                         "http://clinics/client/x",
                         "fl://clinics/clientx/x"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        cr_assert_eq(rpc_peer_parse(&peer, bad[i]).kind, ERR_INPUT, "%s", bad[i]);
    char longest[300] = "fl://clinics/client/";
    memset(longest + strlen(longest), 'x', 200);
    cr_assert_eq(rpc_peer_parse(&peer, longest).kind, ERR_INPUT);
    cr_assert_str_eq(peer.id, "ops.1");
}

#define CERT(name) FIXTURE_CERTS "/" name ".pem", FIXTURE_CERTS "/" name ".key"
#define CA FIXTURE_CERTS "/ca.pem"

static void refuses(err e, const char *text)
{
    cr_assert_eq(e.kind, ERR_INPUT, "%s", e.text);
    cr_assert(strstr(e.text, text) != NULL, "\"%s\" does not say \"%s\"", e.text, text);
}

Test(rpc_tls, checks_that_files_are_a_pair_in_date_and_for_their_use)
{
    int64_t days = 0;
    fixture_certs();
    FIXTURE_OK(rpc_tls_check(CA, CERT("a"), false, &days));
    cr_assert(days > 300 && days < 366, "%ld", (long)days);
    FIXTURE_OK(rpc_tls_check(CA, CERT("server"), true, NULL));
    refuses(rpc_tls_check(CA, CERT("a"), true, NULL),
            "a.pem: this certificate is not for a server");
    refuses(rpc_tls_check(CA, CERT("server"), false, NULL), "not for a client");
    refuses(rpc_tls_check(CA, CERT("wrong-use"), false, NULL), "not for a client");
    refuses(rpc_tls_check(CA, CERT("foreign/a"), false, NULL), "not signed by the authority in");
    refuses(rpc_tls_check(CA, CERT("expired"), false, NULL), "expired");
    refuses(rpc_tls_check(CA, FIXTURE_CERTS "/a.pem", FIXTURE_CERTS "/b.key", false, NULL),
            "b.key is not the key of the certificate");
    refuses(rpc_tls_check(CA, FIXTURE_CERTS "/a.key", FIXTURE_CERTS "/a.key", false, NULL),
            "holds no certificate");
    refuses(rpc_tls_check(FEDLORA_SOURCE_DIR "/LICENSE", CERT("a"), false, NULL), "not a PEM file");
    refuses(rpc_tls_check(CA, NULL, NULL, false, NULL), "no file was given");
    err e = rpc_tls_check(FIXTURE_CERTS "/absent.pem", CERT("a"), false, NULL);
    cr_assert(err_is(e) && strstr(e.text, "absent.pem") != NULL, "%s", e.text);
}

Test(rpc_tls, a_client_without_one_identity_does_not_start)
{
    struct fixture f = {0};
    struct rpc_client *client = NULL;
    fixture_certs();
    snprintf(f.address, sizeof f.address, "localhost:1");
    const char *name[] = {"no-name", "bad-name", "two-names"};
    const char *text[] = {"has no identity", "is no identity", "has 2 URI names"};
    for (size_t i = 0; i < 3; i++) {
        const struct rpc_client_options options = fixture_client(&f, name[i]);
        refuses(rpc_client_open(&client, &options), text[i]);
        cr_assert_null(client);
    }
}

Test(rpc_tls, knows_when_the_first_certificate_of_a_file_ends)
{
    char line[64] = "";
    int64_t ends = 0, chain = 0;
    fixture_certs();
    FILE *end =
        popen("date +%s -d \"$(openssl x509 -noout -enddate -in " CA " | cut -d= -f2)\"", "r");
    cr_assert_not_null(end);
    cr_assert_not_null(fgets(line, sizeof line, end));
    pclose(end);
    FIXTURE_OK(rpc_tls_ends(&ends, CA));
    cr_expect_eq(ends, strtoll(line, NULL, 10));
    /* The expired certificate ends before its authority, wherever it stands. */
    cr_assert_eq(system("cat " CA " " FIXTURE_CERTS "/expired.pem >" FIXTURE_CERTS "/chain.pem"),
                 0);
    FIXTURE_OK(rpc_tls_ends(&chain, FIXTURE_CERTS "/chain.pem"));
    FIXTURE_OK(rpc_tls_ends(&ends, FIXTURE_CERTS "/expired.pem"));
    cr_expect_eq(chain, ends);
    refuses(rpc_tls_ends(&ends, FIXTURE_CERTS "/a.key"), "holds no certificate");
    cr_expect_eq(chain, ends, "untouched");
}
