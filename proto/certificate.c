/* Making and signing. Reading and checking: certificate_read.c. */
#include "proto/certificate.h"

#include "proto/certificate_internal.h"

#include "base/text.h"

#include <string.h>

/* X.509 versions and serial numbers: version 3 is written as 2; 127 random bits are positive. */
enum { X509_V3 = 2, SERIAL_BITS = 127, NAMES_BYTES = 8192 };

err certificate_failed(const char *what)
{
    const char *why = ERR_reason_error_string(ERR_peek_last_error());
    err e = err_make(ERR_MACHINE, "%s: %s", what, why ? why : "OpenSSL has failed");
    ERR_clear_error();
    return e;
}

/* Appends what OpenSSL has written to the memory `bio`, and frees it. */
static err take_bio(struct bytes *out, BIO *bio, bool written, const char *what)
{
    char *data = NULL;
    long size = bio != NULL ? BIO_get_mem_data(bio, &data) : 0;
    err e = written && size > 0 ? bytes_append(out, data, (size_t)size) : certificate_failed(what);
    BIO_free(bio);
    return e;
}

/* Without the text form that openssl prints in front, because some readers take the first line. */
static err append_cert(struct bytes *out, X509 *cert)
{
    BIO *bio = BIO_new(BIO_s_mem());
    return take_bio(out, bio, bio != NULL && PEM_write_bio_X509(bio, cert) == 1, "a certificate");
}

err certificate_make_key(struct bytes *out)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    BIO *bio = BIO_new(BIO_s_secmem());
    bool written = key != NULL && bio != NULL &&
                   PEM_write_bio_PKCS8PrivateKey(bio, key, NULL, NULL, 0, NULL, NULL) == 1;
    err e = take_bio(out, bio, written, "making a key");
    EVP_PKEY_free(key);
    return e;
}

/* ---- one certificate ---- */

/* The parts in which certificates differ; extensions are in the form of openssl.cnf. */
struct form {
    const char *organization, *name;                               /* of the subject: O and CN */
    const char *constraints, *usage, *purpose, *names, *permitted; /* NULL: without */
    int64_t ends_s;
};

/* NULL leaves the extension out. */
static bool add_extension(X509 *cert, X509V3_CTX *context, int nid, const char *value)
{
    if (value == NULL) return true;
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, context, nid, value);
    bool added = extension != NULL && X509_add_ext(cert, extension, -1) == 1;
    X509_EXTENSION_free(extension);
    return added;
}

static bool add_extensions(X509 *cert, X509 *issuer, const struct form *form)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    return add_extension(cert, &context, NID_basic_constraints, form->constraints) &&
           add_extension(cert, &context, NID_key_usage, form->usage) &&
           add_extension(cert, &context, NID_ext_key_usage, form->purpose) &&
           add_extension(cert, &context, NID_subject_key_identifier, "hash") &&
           add_extension(cert, &context, NID_authority_key_identifier,
                         issuer == cert ? NULL : "keyid:always") &&
           add_extension(cert, &context, NID_name_constraints, form->permitted) &&
           add_extension(cert, &context, NID_subject_alt_name, form->names);
}

static bool add_name(X509_NAME *name, const char *field, const char *value, int bytes_max)
{
    int size = (int)strlen(value);
    return X509_NAME_add_entry_by_txt(name, field, MBSTRING_ASC, (const unsigned char *)value,
                                      size < bytes_max ? size : bytes_max, -1, 0) == 1;
}

/* X.520 allows 64 letters of either. A longer identity is complete in the URI name. */
static bool set_subject(X509 *cert, const struct form *form)
{
    X509_NAME *name = X509_get_subject_name(cert);
    return add_name(name, "O", form->organization, 64) && add_name(name, "CN", form->name, 64);
}

/* Random, so that a serial number says nothing about how many certificates there are, and no state
 * is needed. */
static bool set_serial(X509 *cert)
{
    BIGNUM *number = BN_new();
    bool set = number != NULL && BN_rand(number, SERIAL_BITS, BN_RAND_TOP_ONE, 0) == 1 &&
               BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) != NULL;
    BN_free(number);
    return set;
}

static bool set_dates(X509 *cert, int64_t ends_s)
{
    time_t begins = (time_t)(text_wall_ms() / 1000) - CERTIFICATE_EARLY_S;
    return ASN1_TIME_set(X509_getm_notBefore(cert), begins) != NULL &&
           ASN1_TIME_set(X509_getm_notAfter(cert), (time_t)ends_s) != NULL;
}

/* Ed25519 has its own hash, and OpenSSL wants none to be named. */
static bool sign_with(X509 *cert, EVP_PKEY *key)
{
    bool own_hash = EVP_PKEY_is_a(key, "ED25519") == 1;
    return X509_sign(cert, key, own_hash ? NULL : EVP_sha256()) > 0;
}

struct signer { /* issuer NULL: the certificate signs itself */
    X509 *issuer;
    EVP_PKEY *key;
};

static err make(X509 **out, EVP_PKEY *key, const struct signer *signer, const struct form *form)
{
    X509 *cert = X509_new(), *issuer = signer->issuer != NULL ? signer->issuer : cert;
    bool made = cert != NULL && X509_set_version(cert, X509_V3) == 1 && set_serial(cert) &&
                set_dates(cert, form->ends_s) && set_subject(cert, form) &&
                X509_set_issuer_name(cert, X509_get_subject_name(issuer)) == 1 &&
                X509_set_pubkey(cert, key) == 1 && add_extensions(cert, issuer, form) &&
                sign_with(cert, signer->key);
    if (!made) {
        X509_free(cert);
        return certificate_failed("making a certificate");
    }
    *out = cert;
    return ERR_NONE;
}

/* ---- keys ---- */

static err read_key(EVP_PKEY **out, const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, NULL, (void *)"");
    BIO_free(bio);
    ERR_clear_error();
    if (key == NULL) return err_make(ERR_MACHINE, "not a private key in PEM form");
    *out = key;
    return ERR_NONE;
}

err certificate_make_request(struct bytes *out, const char *key_pem)
{
    EVP_PKEY *key = NULL;
    unsigned char *der = NULL;
    TRY(read_key(&key, key_pem));
    X509_REQ *request = X509_REQ_new();
    bool made = request != NULL && X509_REQ_set_version(request, 0) == 1 &&
                X509_REQ_set_pubkey(request, key) == 1 &&
                X509_REQ_sign(request, key, EVP_sha256()) > 0;
    int size = made ? i2d_X509_REQ(request, &der) : 0;
    err e = size > 0 ? bytes_append(out, der, (size_t)size) : certificate_failed("a request");
    OPENSSL_free(der);
    X509_REQ_free(request);
    EVP_PKEY_free(key);
    return e;
}

/* ---- authorities and the server ---- */

struct opened { /* an authority's PEM texts */
    STACK_OF(X509) * certs;
    EVP_PKEY *key;
};

static void opened_close(struct opened *o)
{
    sk_X509_pop_free(o->certs, X509_free);
    EVP_PKEY_free(o->key);
}

static err open_authority(struct opened *out, const struct certificate_authority *authority)
{
    struct opened o = {.certs = rpc_tls_certs(authority->cert)};
    err e = ERR_NONE;
    if (sk_X509_num(o.certs) < 1)
        e = err_make(ERR_MACHINE, "the authority's file holds no certificate");
    if (!err_is(e)) e = read_key(&o.key, authority->key);
    X509 *cert = sk_X509_value(o.certs, 0);
    if (!err_is(e) && X509_check_private_key(cert, o.key) != 1)
        e = err_make(ERR_MACHINE, "the authority's key is not that of its certificate");
    else if (!err_is(e) && X509_check_ca(cert) != 1)
        e = err_make(ERR_MACHINE, "the authority's certificate is not one of an authority");
    else if (!err_is(e) && X509_cmp_current_time(X509_get0_notAfter(cert)) <= 0)
        e = err_make(ERR_MACHINE, "the authority's certificate has ended");
    ERR_clear_error();
    if (err_is(e))
        opened_close(&o);
    else
        *out = o;
    return e;
}

/* The chain behind a certificate of this authority. A root is left out, because peers have it. */
static err append_chain(struct bytes *out, const struct opened *authority)
{
    for (int i = 0; i < sk_X509_num(authority->certs); i++) {
        X509 *cert = sk_X509_value(authority->certs, i);
        if (X509_self_signed(cert, /*verify*/ 0) == 1) continue;
        TRY(append_cert(out, cert));
    }
    return ERR_NONE;
}

static int64_t ends_of_life(int64_t life_s)
{
    return (int64_t)(text_wall_ms() / 1000) + life_s;
}

err certificate_make_root(struct bytes *out, const char *key_pem, const char *federation,
                          int64_t life_s)
{
    char name[LIMIT_NAME_BYTES + 16];
    EVP_PKEY *key = NULL;
    X509 *cert = NULL;
    TRY(read_key(&key, key_pem));
    snprintf(name, sizeof name, "%s root", federation);
    const struct form form = {.organization = federation,
                              .name = name,
                              .constraints = "critical,CA:TRUE,pathlen:1",
                              .usage = "critical,keyCertSign,cRLSign",
                              .ends_s = ends_of_life(life_s)};
    err e = make(&cert, key, &(struct signer){.key = key}, &form);
    if (!err_is(e)) e = append_cert(out, cert);
    X509_free(cert);
    EVP_PKEY_free(key);
    return e;
}

/* The constraint is on the part of a URI that RFC 5280 calls the host, here the federation. */
err certificate_make_issuer(struct bytes *out, const char *key_pem,
                            const struct certificate_authority *root, const char *federation,
                            int64_t life_s)
{
    char name[LIMIT_NAME_BYTES + 16], permitted[LIMIT_NAME_BYTES + 32];
    struct opened authority = {0};
    EVP_PKEY *key = NULL;
    X509 *cert = NULL;
    err e = ERR_NONE;
    snprintf(name, sizeof name, "%s issuing", federation);
    snprintf(permitted, sizeof permitted, "critical,permitted;URI:%s", federation);
    TRY_OUT(e, open_authority(&authority, root));
    TRY_OUT(e, read_key(&key, key_pem));
    const struct form form = {.organization = federation,
                              .name = name,
                              .constraints = "critical,CA:TRUE,pathlen:0",
                              .usage = "critical,keyCertSign,cRLSign",
                              .permitted = permitted,
                              .ends_s = ends_of_life(life_s)};
    const struct signer signer = {sk_X509_value(authority.certs, 0), authority.key};
    TRY_OUT(e, make(&cert, key, &signer, &form));
    TRY_OUT(e, append_cert(out, cert));
out:
    X509_free(cert);
    EVP_PKEY_free(key);
    opened_close(&authority);
    return e;
}

/* Host names go into a text that OpenSSL parses, so they may have no comma and no line end. */
static err list_hosts(struct bytes *out, const struct certificate_server *server)
{
    static const char letters[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-:*";
    TRY(bytes_printf(out, "DNS:localhost,IP:127.0.0.1,IP:::1"));
    for (size_t i = 0; i < server->hosts; i++) {
        const char *host = server->host[i];
        size_t size = strlen(host);
        if (size == 0 || size > 253 || host[strspn(host, letters)] != 0)
            return err_make(ERR_INPUT, "\"%.80s\": expected a host name or an address", host);
        bool is_address = strchr(host, ':') != NULL || host[strspn(host, "0123456789.")] == 0;
        TRY(bytes_printf(out, ",%s:%s", is_address ? "IP" : "DNS", host));
    }
    return ERR_NONE;
}

/* Signs and appends the chain. */
static err sign_leaf(struct bytes *out, struct certificate_issued *issued, EVP_PKEY *key,
                     const struct certificate_authority *issuer, struct form *form)
{
    struct opened authority = {0};
    struct certificate_issued is = {0};
    X509 *cert = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, open_authority(&authority, issuer));
    X509 *parent = sk_X509_value(authority.certs, 0);
    int64_t most = certificate_time(X509_get0_notAfter(parent));
    if (form->ends_s > most) form->ends_s = most; /* it could not be verified afterwards */
    TRY_OUT(e, make(&cert, key, &(struct signer){parent, authority.key}, form));
    TRY_OUT(e, certificate_describe(&is, cert));
    TRY_OUT(e, append_cert(out, cert));
    TRY_OUT(e, append_chain(out, &authority));
    *issued = is;
out:
    X509_free(cert);
    opened_close(&authority);
    return e;
}

err certificate_make_server(struct bytes *chain, const char *key_pem,
                            const struct certificate_authority *issuer,
                            const struct certificate_server *server)
{
    struct bytes names = {.max = NAMES_BYTES};
    struct certificate_issued issued;
    EVP_PKEY *key = NULL;
    err e = ERR_NONE;
    TRY_OUT(e, list_hosts(&names, server));
    TRY_OUT(e, read_key(&key, key_pem));
    struct form form = {.organization = server->federation,
                        .name = "coordinator",
                        .constraints = "critical,CA:FALSE",
                        .usage = "critical,digitalSignature",
                        .purpose = "serverAuth",
                        .names = (const char *)names.data,
                        .ends_s = ends_of_life(server->life_s)};
    TRY_OUT(e, sign_leaf(chain, &issued, key, issuer, &form));
out:
    EVP_PKEY_free(key);
    bytes_close(&names);
    return e;
}

err certificate_sign(struct bytes *chain, struct certificate_issued *issued,
                     const struct certificate_authority *issuer,
                     const struct certificate_order *order)
{
    char uri[3 * LIMIT_NAME_BYTES];
    X509_REQ *request = NULL;
    REQUIRE(text_is_name(order->federation, LIMIT_NAME_BYTES - 1) &&
            text_is_name(order->id, LIMIT_NAME_BYTES - 1)); /* safe in OpenSSL's text form */
    TRY(certificate_open_request(&request, order->request, order->request_size));
    snprintf(uri, sizeof uri, "URI:fl://%s/%s/%s", order->federation, rpc_role_name(order->role),
             order->id);
    struct form form = {.organization = order->federation,
                        .name = order->id,
                        .constraints = "critical,CA:FALSE",
                        .usage = "critical,digitalSignature",
                        .purpose = "clientAuth",
                        .names = uri,
                        .ends_s = ends_of_life(order->life_s)};
    err e = sign_leaf(chain, issued, X509_REQ_get0_pubkey(request), issuer, &form);
    X509_REQ_free(request);
    return e;
}

/* Everything of the old certificate, but for what identifies its keys. */
static bool copy_extensions(X509 *cert, X509 *issuer, const X509 *old)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    for (int i = 0; i < X509_get_ext_count(old); i++) {
        X509_EXTENSION *extension = X509_get_ext(old, i);
        int nid = OBJ_obj2nid(X509_EXTENSION_get_object(extension));
        if (nid == NID_subject_key_identifier || nid == NID_authority_key_identifier) continue;
        if (X509_add_ext(cert, extension, -1) != 1) return false;
    }
    return add_extension(cert, &context, NID_subject_key_identifier, "hash") &&
           add_extension(cert, &context, NID_authority_key_identifier, "keyid:always");
}

static err make_like(X509 **out, EVP_PKEY *key, const struct signer *signer, const X509 *old,
                     int64_t ends_s)
{
    X509 *cert = X509_new();
    bool made = cert != NULL && X509_set_version(cert, X509_V3) == 1 && set_serial(cert) &&
                set_dates(cert, ends_s) &&
                X509_set_subject_name(cert, X509_get_subject_name(old)) == 1 &&
                X509_set_issuer_name(cert, X509_get_subject_name(signer->issuer)) == 1 &&
                X509_set_pubkey(cert, key) == 1 && copy_extensions(cert, signer->issuer, old) &&
                sign_with(cert, signer->key);
    if (!made) {
        X509_free(cert);
        return certificate_failed("making a certificate");
    }
    *out = cert;
    return ERR_NONE;
}

err certificate_renew(struct bytes *chain, const char *old_pem, const char *key_pem,
                      const struct certificate_authority *issuer, int64_t life_s)
{
    STACK_OF(X509) *old = rpc_tls_certs(old_pem);
    struct opened authority = {0};
    EVP_PKEY *key = NULL;
    X509 *cert = NULL;
    err e = ERR_NONE;
    if (sk_X509_num(old) < 1) {
        e = err_make(ERR_INPUT, "not a certificate in PEM form");
        goto out;
    }
    TRY_OUT(e, open_authority(&authority, issuer));
    TRY_OUT(e, read_key(&key, key_pem));
    X509 *parent = sk_X509_value(authority.certs, 0);
    int64_t ends_s = ends_of_life(life_s), most = certificate_time(X509_get0_notAfter(parent));
    const struct signer signer = {parent, authority.key};
    TRY_OUT(e,
            make_like(&cert, key, &signer, sk_X509_value(old, 0), ends_s < most ? ends_s : most));
    TRY_OUT(e, append_cert(chain, cert));
    TRY_OUT(e, append_chain(chain, &authority));
out:
    X509_free(cert);
    EVP_PKEY_free(key);
    opened_close(&authority);
    sk_X509_pop_free(old, X509_free);
    return e;
}
