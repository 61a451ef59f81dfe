/* Reading requests and certificates, and checking those that another program has signed. */
#include "proto/certificate.h"

#include "proto/certificate_internal.h"

#include <string.h>

int64_t certificate_time(const ASN1_TIME *time)
{
    struct tm tm;
    return ASN1_TIME_to_tm(time, &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

/* ---- requests ---- */

/* RSA is left out: members make their keys by `fedlora enroll`, and a machine that keeps keys in
 * hardware has P-256. A curve of fewer bits would be the weakest link of the federation. */
static bool is_known_key(EVP_PKEY *key)
{
    char group[32] = "";
    if (EVP_PKEY_is_a(key, "ED25519") == 1) return true;
    if (EVP_PKEY_is_a(key, "EC") != 1 ||
        EVP_PKEY_get_group_name(key, group, sizeof group, NULL) != 1)
        return false;
    return strcmp(group, "prime256v1") == 0 || strcmp(group, "secp384r1") == 0 ||
           strcmp(group, "P-256") == 0 || strcmp(group, "P-384") == 0;
}

static X509_REQ *parse_request(const void *data, size_t size)
{
    const unsigned char *der = data;
    X509_REQ *request = NULL;
    if (size > 0 && *der == 0x30) { /* a SEQUENCE; PEM begins with dashes or a comment */
        request = d2i_X509_REQ(NULL, &der, (long)size);
        if (request != NULL && der != (const unsigned char *)data + size) {
            X509_REQ_free(request);
            request = NULL;
        }
    } else {
        BIO *bio = BIO_new_mem_buf(data, (int)size);
        request = bio == NULL ? NULL : PEM_read_bio_X509_REQ(bio, NULL, NULL, NULL);
        BIO_free(bio);
    }
    return request;
}

err certificate_open_request(X509_REQ **out, const void *data, size_t size)
{
    if (size == 0 || size > CERTIFICATE_REQUEST_BYTES)
        return err_make(ERR_INPUT, "certificate request: %zu bytes, expected 1 to %d", size,
                        CERTIFICATE_REQUEST_BYTES);
    X509_REQ *request = parse_request(data, size);
    EVP_PKEY *key = request == NULL ? NULL : X509_REQ_get0_pubkey(request);
    err e = ERR_NONE;
    if (key == NULL)
        e = err_make(ERR_INPUT, "not a certificate request: expected PKCS #10, in DER or PEM");
    else if (!is_known_key(key))
        e = err_make(ERR_INPUT, "certificate request: the key is of another kind; expected P-256, "
                                "P-384 or Ed25519");
    else if (X509_REQ_verify(request, key) != 1)
        e = err_make(ERR_INPUT,
                     "certificate request: its signature is not of the key that it holds");
    ERR_clear_error();
    if (err_is(e))
        X509_REQ_free(request);
    else
        *out = request;
    return e;
}

static err digest_of_key(struct digest *out, EVP_PKEY *key)
{
    unsigned char *der = NULL;
    int size = i2d_PUBKEY(key, &der);
    if (size <= 0) return certificate_failed("reading a public key");
    *out = digest_of(der, (size_t)size);
    OPENSSL_free(der);
    return ERR_NONE;
}

err certificate_request_key(struct digest *key, const void *data, size_t size)
{
    X509_REQ *request = NULL;
    TRY(certificate_open_request(&request, data, size));
    err e = digest_of_key(key, X509_REQ_get0_pubkey(request));
    X509_REQ_free(request);
    return e;
}

err certificate_request_pem(struct bytes *pem, const void *data, size_t size)
{
    X509_REQ *request = NULL;
    char *text = NULL;
    TRY(certificate_open_request(&request, data, size));
    BIO *bio = BIO_new(BIO_s_mem());
    err e = ERR_NONE;
    if (bio == NULL || PEM_write_bio_X509_REQ(bio, request) != 1)
        e = certificate_failed("writing a certificate request");
    long n = err_is(e) ? 0 : BIO_get_mem_data(bio, &text);
    if (!err_is(e)) e = bytes_append(pem, text, (size_t)n);
    BIO_free(bio);
    X509_REQ_free(request);
    return e;
}

/* ---- certificates ---- */

err certificate_describe(struct certificate_issued *out, X509 *cert)
{
    struct certificate_issued is = {.begins_s = certificate_time(X509_get0_notBefore(cert)),
                                    .ends_s = certificate_time(X509_get0_notAfter(cert))};
    EVP_PKEY *key = X509_get0_pubkey(cert);
    if (key == NULL) return certificate_failed("a certificate's key");
    TRY(digest_of_key(&is.key, key));
    rpc_tls_serial(is.serial, cert);
    *out = is;
    return ERR_NONE;
}

err certificate_read(struct certificate_issued *issued, const char *pem)
{
    STACK_OF(X509) *certs = rpc_tls_certs(pem);
    err e = sk_X509_num(certs) < 1 ? err_make(ERR_INPUT, "not a certificate in PEM form")
                                   : certificate_describe(issued, sk_X509_value(certs, 0));
    sk_X509_pop_free(certs, X509_free);
    return e;
}

err certificate_identity(struct rpc_peer *out, const char *pem)
{
    return rpc_tls_identity(out, pem, strlen(pem));
}

err certificate_hash(struct enroll_hash *out, const char *ca)
{
    STACK_OF(X509) *roots = rpc_tls_certs(ca);
    int count = sk_X509_num(roots);
    unsigned char *der = NULL;
    int size = count < 1 ? 0 : i2d_X509(sk_X509_value(roots, count - 1), &der);
    err e = size > 0 ? ERR_NONE : err_make(ERR_INPUT, "no root certificate in PEM form");
    if (!err_is(e)) *out = enroll_token_hash_of(der, (size_t)size);
    OPENSSL_free(der);
    sk_X509_pop_free(roots, X509_free);
    return e;
}

/* ---- the work of another program ---- */

static bool leads_to_root(STACK_OF(X509) * certs, STACK_OF(X509) * roots, const char **why)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    bool good = false;
    *why = "out of memory";
    if (store == NULL || context == NULL) goto out;
    for (int i = 0; i < sk_X509_num(roots); i++)
        X509_STORE_add_cert(store, sk_X509_value(roots, i));
    if (X509_STORE_CTX_init(context, store, sk_X509_value(certs, 0), certs) != 1) goto out;
    X509_STORE_CTX_set_purpose(context, X509_PURPOSE_SSL_CLIENT);
    good = X509_verify_cert(context) == 1;
    *why = X509_verify_cert_error_string(X509_STORE_CTX_get_error(context));
out:
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    ERR_clear_error();
    return good;
}

static err check_identity(X509 *cert, const struct certificate_order *order)
{
    struct rpc_peer peer;
    TRY(rpc_tls_identity_of(&peer, cert));
    if (peer.role == order->role && strcmp(peer.federation, order->federation) == 0 &&
        strcmp(peer.id, order->id) == 0)
        return ERR_NONE;
    return err_make(ERR_MACHINE, "its identity is fl://%s/%s/%s, expected fl://%s/%s/%s",
                    peer.federation, rpc_role_name(peer.role), peer.id, order->federation,
                    rpc_role_name(order->role), order->id);
}

err certificate_check(struct certificate_issued *issued, const char *chain, const char *ca,
                      const struct certificate_order *order)
{
    STACK_OF(X509) *certs = rpc_tls_certs(chain), *roots = rpc_tls_certs(ca);
    struct certificate_issued is = {0};
    struct digest key;
    const char *why = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, certificate_request_key(&key, order->request, order->request_size));
    if (sk_X509_num(certs) < 1) {
        e = err_make(ERR_MACHINE, "it is no certificate in PEM form");
        goto out;
    }
    TRY_OUT(e, certificate_describe(&is, sk_X509_value(certs, 0)));
    if (!digest_equal(&is.key, &key))
        e = err_make(ERR_MACHINE, "it is for another key than the request");
    else if (!leads_to_root(certs, roots, &why))
        e = err_make(ERR_MACHINE, "it cannot be verified: %s", why);
    else
        e = check_identity(sk_X509_value(certs, 0), order);
    if (!err_is(e)) *issued = is;
out:
    sk_X509_pop_free(certs, X509_free);
    sk_X509_pop_free(roots, X509_free);
    return err_is(e) && e.kind != ERR_MACHINE ? err_make(ERR_MACHINE, "%s", e.text) : e;
}
