#include "proto/certificate.h"

#include "base/text.h"
#include "proto/certificate_internal.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

enum { LIFE_S = 3600 };

static struct bytes root, root_key, issuing, issuing_key, member_key, request;
static struct certificate_authority issuer;

static void make(void)
{
    root.max = root_key.max = issuing.max = issuing_key.max = CERTIFICATE_PEM_BYTES;
    member_key.max = request.max = CERTIFICATE_PEM_BYTES;
    ok(certificate_make_key(&root_key));
    ok(certificate_make_root(&root, (const char *)root_key.data, "clinics", 10 * LIFE_S));
    ok(certificate_make_key(&issuing_key));
    const struct certificate_authority top = {(const char *)root.data, (const char *)root_key.data};
    ok(certificate_make_issuer(&issuing, (const char *)issuing_key.data, &top, "clinics",
                               5 * LIFE_S));
    issuer =
        (struct certificate_authority){(const char *)issuing.data, (const char *)issuing_key.data};
    ok(certificate_make_key(&member_key));
    ok(certificate_make_request(&request, (const char *)member_key.data));
}
static void drop(void)
{
    bytes_close(&root);
    bytes_close(&root_key);
    bytes_close(&issuing);
    bytes_close(&issuing_key);
    bytes_close(&member_key);
    bytes_close(&request);
}
TestSuite(certificate, .init = make, .fini = drop);

static struct certificate_order order_of(const char *federation, const char *id)
{
    return (struct certificate_order){.request = request.data,
                                      .request_size = request.size,
                                      .federation = federation,
                                      .id = id,
                                      .role = RPC_CLIENT,
                                      .life_s = LIFE_S};
}

Test(certificate, signs_an_identity_that_leads_to_the_root)
{
    struct certificate_order order = order_of("clinics", "north");
    struct certificate_issued issued, again;
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES};
    struct digest key;
    int64_t now = (int64_t)(text_wall_ms() / 1000);
    ok(certificate_sign(&chain, &issued, &issuer, &order));
    ok(certificate_check(&again, (const char *)chain.data, (const char *)root.data, &order));
    ok(certificate_request_key(&key, request.data, request.size));
    cr_expect(digest_equal(&issued.key, &key));
    cr_expect_str_eq(issued.serial, again.serial);
    cr_expect(issued.ends_s >= now + LIFE_S && issued.ends_s <= now + LIFE_S + 60);
    cr_expect(issued.begins_s <= now - CERTIFICATE_EARLY_S);
    struct rpc_peer peer;
    ok(rpc_tls_identity(&peer, (const char *)chain.data, chain.size));
    cr_expect_str_eq(peer.id, "north");
    cr_expect_str_eq(peer.serial, issued.serial);
    bytes_close(&chain);
}

/* The name constraint of the issuer, and not this program, must keep it within its federation. */
Test(certificate, an_issuer_cannot_sign_for_another_federation)
{
    struct certificate_order order = order_of("banks", "north");
    struct certificate_issued issued;
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES};
    ok(certificate_sign(&chain, &issued, &issuer, &order));
    refused(certificate_check(&issued, (const char *)chain.data, (const char *)root.data, &order),
            ERR_MACHINE, "permitted subtree violation");
    bytes_close(&chain);
}

Test(certificate, does_not_outlive_its_issuer)
{
    struct certificate_order order = order_of("clinics", "north");
    struct certificate_issued issued, parent;
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES};
    order.life_s = 100 * LIFE_S;
    ok(certificate_sign(&chain, &issued, &issuer, &order));
    ok(certificate_read(&parent, issuer.cert));
    cr_expect_eq(issued.ends_s, parent.ends_s);
    bytes_close(&chain);
}

/* Every single bit of a request is changed; its signature must notice all of them. */
Test(certificate, refuses_a_request_that_was_changed)
{
    struct digest key;
    for (size_t i = 0; i < request.size; i++)
        for (int bit = 0; bit < 8; bit++) {
            request.data[i] ^= (uint8_t)(1 << bit);
            err e = certificate_request_key(&key, request.data, request.size);
            cr_expect(e.kind == ERR_INPUT, "byte %zu bit %d", i, bit);
            request.data[i] ^= (uint8_t)(1 << bit);
        }
    refused(certificate_request_key(&key, request.data, request.size - 1), ERR_INPUT, "PKCS #10");
    refused(certificate_request_key(&key, "", 0), ERR_INPUT, "expected 1 to");
}

static void make_rsa_request(struct bytes *out)
{
    EVP_PKEY *key = EVP_RSA_gen(2048);
    X509_REQ *made = X509_REQ_new();
    unsigned char *der = NULL;
    cr_assert(X509_REQ_set_pubkey(made, key) == 1 && X509_REQ_sign(made, key, EVP_sha256()) > 0);
    int size = i2d_X509_REQ(made, &der);
    ok(bytes_append(out, der, (size_t)size));
    OPENSSL_free(der);
    X509_REQ_free(made);
    EVP_PKEY_free(key);
}

Test(certificate, refuses_a_key_of_another_kind)
{
    struct bytes rsa = {.max = CERTIFICATE_REQUEST_BYTES};
    struct digest key;
    make_rsa_request(&rsa);
    refused(certificate_request_key(&key, rsa.data, rsa.size), ERR_INPUT, "P-256");
    bytes_close(&rsa);
}

Test(certificate, reads_a_request_in_both_forms)
{
    struct bytes pem = {.max = CERTIFICATE_REQUEST_BYTES};
    struct digest a, b;
    ok(certificate_request_pem(&pem, request.data, request.size));
    ok(certificate_request_key(&a, request.data, request.size));
    ok(certificate_request_key(&b, pem.data, pem.size));
    cr_expect(digest_equal(&a, &b));
    bytes_close(&pem);
}

Test(certificate, names_what_is_wrong_with_the_work_of_another_signer)
{
    struct certificate_order order = order_of("clinics", "north"), other = order;
    struct certificate_issued issued;
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES}, key = {.max = CERTIFICATE_PEM_BYTES};
    struct bytes csr = {.max = CERTIFICATE_PEM_BYTES};
    const char *ca = (const char *)root.data;
    ok(certificate_sign(&chain, &issued, &issuer, &order));
    other.id = "south";
    refused(certificate_check(&issued, (const char *)chain.data, ca, &other), ERR_MACHINE,
            "its identity is fl://clinics/client/north, expected fl://clinics/client/south");
    other.id = "north";
    other.role = RPC_ADMIN;
    refused(certificate_check(&issued, (const char *)chain.data, ca, &other), ERR_MACHINE,
            "expected fl://clinics/admin/north");
    ok(certificate_make_key(&key));
    ok(certificate_make_request(&csr, (const char *)key.data));
    other = order;
    other.request = csr.data;
    other.request_size = csr.size;
    refused(certificate_check(&issued, (const char *)chain.data, ca, &other), ERR_MACHINE,
            "another key");
    refused(certificate_check(&issued, (const char *)chain.data, issuer.cert, &order), ERR_MACHINE,
            "cannot be verified");
    refused(certificate_check(&issued, "nothing", ca, &order), ERR_MACHINE, "PEM form");
    bytes_close(&chain);
    bytes_close(&key);
    bytes_close(&csr);
}

Test(certificate, refuses_an_authority_that_cannot_sign)
{
    struct certificate_order order = order_of("clinics", "north");
    struct certificate_issued issued;
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES}, leaf = {.max = CERTIFICATE_PEM_BYTES};
    const struct certificate_authority mixed = {issuer.cert, (const char *)root_key.data};
    refused(certificate_sign(&chain, &issued, &mixed, &order), ERR_MACHINE, "not that of its");
    ok(certificate_sign(&leaf, &issued, &issuer, &order));
    const struct certificate_authority none = {(const char *)leaf.data,
                                               (const char *)member_key.data};
    refused(certificate_sign(&chain, &issued, &none, &order), ERR_MACHINE, "not one of an author");
    cr_expect_eq(chain.size, 0);
    bytes_close(&chain);
    bytes_close(&leaf);
}

Test(certificate, refuses_a_host_that_cannot_be_in_a_certificate)
{
    const char *bad[] = {"a,b", "", "a b", "x\ny"};
    struct bytes chain = {.max = CERTIFICATE_PEM_BYTES};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const struct certificate_server server = {
            .federation = "clinics", .host = &bad[i], .hosts = 1, .life_s = LIFE_S};
        refused(certificate_make_server(&chain, (const char *)member_key.data, &issuer, &server),
                ERR_INPUT, "expected a host name");
    }
}
