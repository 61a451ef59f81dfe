/* Certificates: reads and checks the files, extracts identities, and limits the process to TLS
 * 1.3. */
#include "proto/rpc_tls.h"
#include "proto/rpc_openssl.h"

#include "base/file.h"
#include "base/text.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TLS_FILE_BYTES = 1 << 20, TLS_DAY_SECONDS = 24 * 60 * 60 };

/* gRPC 1.51 sets its own lowest version, 1.2, on every context. An option that OpenSSL applies to
 * every new context is not overridden by that. It is given in memory, so that no file and no
 * environment variable can change it. */
static const char tls_only_13[] = "openssl_conf = init\n"
                                  "[init]\nssl_conf = ssl\n"
                                  "[ssl]\nsystem_default = all\n"
                                  "[all]\nProtocol = -TLSv1.2, -TLSv1.1, -TLSv1\n"
                                  "CipherString = DEFAULT@SECLEVEL=2\n";
static pthread_once_t tls_once = PTHREAD_ONCE_INIT;
static bool tls_ready;

static void limit_to_13(void)
{
    /* The system's resolver uses /etc/hosts and the other sources this machine is set up with. */
    (void)setenv("GRPC_DNS_RESOLVER", "native", /*overwrite*/ 0);
    if (OPENSSL_init_ssl(OPENSSL_INIT_LOAD_CONFIG, NULL) != 1) return;
    CONF *conf = NCONF_new(NULL);
    BIO *text = BIO_new_mem_buf(tls_only_13, -1);
    long line = 0;
    if (conf != NULL && text != NULL && NCONF_load_bio(conf, text, &line) > 0)
        tls_ready = CONF_modules_load(conf, NULL, 0) > 0;
    BIO_free(text);
    NCONF_free(conf);
}

err rpc_init(void)
{
    pthread_once(&tls_once, limit_to_13);
    if (!tls_ready) return err_make(ERR_MACHINE, "this OpenSSL cannot be limited to TLS 1.3");
    return ERR_NONE;
}

/* ---------------------------------------------------------------- files */

void rpc_tls_pem_close(struct rpc_tls_pem *pem)
{
    if (pem->key != NULL) OPENSSL_cleanse(pem->key, strlen(pem->key));
    free(pem->ca);
    free(pem->cert);
    free(pem->key);
    *pem = (struct rpc_tls_pem){0};
}

static err read_pem(char **out, const char *path, const char *what)
{
    char *text = NULL;
    size_t size = 0;
    if (path == NULL) return err_make(ERR_INPUT, "%s: no file was given", what);
    TRY(file_read_all(&text, &size, path, TLS_FILE_BYTES));
    if (strstr(text, "-----BEGIN ") == NULL) {
        free(text);
        return err_make(ERR_INPUT, "%s: not a PEM file; expected %s", path, what);
    }
    *out = text;
    return ERR_NONE;
}

err rpc_tls_pem_read(struct rpc_tls_pem *out, const char *ca, const char *cert, const char *key)
{
    struct rpc_tls_pem pem = {0};
    err e;
    TRY_OUT(e, read_pem(&pem.ca, ca, "the authority's certificate"));
    TRY_OUT(e, read_pem(&pem.cert, cert, "a certificate"));
    TRY_OUT(e, read_pem(&pem.key, key, "a private key"));
    TRY_OUT(e, file_check_secret(key));
    *out = pem;
    return ERR_NONE;
out:
    rpc_tls_pem_close(&pem);
    return e;
}

static X509 *parse_cert(const char *pem, size_t size)
{
    BIO *bio = BIO_new_mem_buf(pem, (int)size);
    X509 *cert = bio == NULL ? NULL : PEM_read_bio_X509(bio, NULL, NULL, NULL);
    BIO_free(bio);
    ERR_clear_error();
    return cert;
}

STACK_OF(X509) * rpc_tls_certs(const char *pem)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    STACK_OF(X509) *list = sk_X509_new_null();
    X509 *cert = NULL;
    while (bio != NULL && list != NULL && (cert = PEM_read_bio_X509(bio, NULL, NULL, NULL)) != NULL)
        if (sk_X509_push(list, cert) <= 0) X509_free(cert);
    BIO_free(bio);
    ERR_clear_error();
    return list;
}

static int no_passphrase(char *buffer, int size, int writing, void *user)
{
    (void)buffer, (void)size, (void)writing, (void)user;
    return 0; /* a service cannot ask for a passphrase */
}

static err check_key(const char *key_path, const char *pem, const char *cert_path, X509 *cert)
{
    BIO *bio = BIO_new_mem_buf(pem, -1);
    EVP_PKEY *key = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, no_passphrase, NULL);
    BIO_free(bio);
    err e = ERR_NONE;
    if (key == NULL)
        e = err_make(ERR_INPUT, "%s: not a private key (without passphrase) in PEM form", key_path);
    else if (X509_check_private_key(cert, key) != 1)
        e = err_make(ERR_INPUT, "%s is not the key of the certificate %s", key_path, cert_path);
    EVP_PKEY_free(key);
    ERR_clear_error();
    return e;
}

struct chain_check {
    const char *ca_path, *cert_path;
    STACK_OF(X509) * roots, *certs;
    bool server;
};

static err check_chain(const struct chain_check *check)
{
    X509_STORE *store = X509_STORE_new();
    X509_STORE_CTX *context = X509_STORE_CTX_new();
    err e = err_make(ERR_MACHINE, "out of memory");
    if (store == NULL || context == NULL) goto out;
    for (int i = 0; i < sk_X509_num(check->roots); i++)
        X509_STORE_add_cert(store, sk_X509_value(check->roots, i));
    if (X509_STORE_CTX_init(context, store, sk_X509_value(check->certs, 0), check->certs) != 1)
        goto out;
    X509_STORE_CTX_set_purpose(context,
                               check->server ? X509_PURPOSE_SSL_SERVER : X509_PURPOSE_SSL_CLIENT);
    e = ERR_NONE;
    if (X509_verify_cert(context) == 1) goto out;
    int code = X509_STORE_CTX_get_error(context);
    const char *why = X509_verify_cert_error_string(code);
    if (code == X509_V_ERR_INVALID_PURPOSE)
        e = err_make(ERR_INPUT, "%s: this certificate is not for a %s", check->cert_path,
                     check->server ? "server (serverAuth)" : "client (clientAuth)");
    else if (code == X509_V_ERR_CERT_HAS_EXPIRED || code == X509_V_ERR_CERT_NOT_YET_VALID)
        e = err_make(ERR_INPUT, "%s: %s; check this machine's clock too", check->cert_path, why);
    else
        e = err_make(ERR_INPUT, "%s: not signed by the authority in %s: %s", check->cert_path,
                     check->ca_path, why);
out:
    X509_STORE_CTX_free(context);
    X509_STORE_free(store);
    ERR_clear_error();
    return e;
}

static int64_t days_until_end(X509 *cert)
{
    int days = 0, seconds = 0;
    if (ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(cert)) != 1) return 0;
    return days;
}

err rpc_tls_check(const char *ca, const char *cert, const char *key, bool server,
                  int64_t *days_left)
{
    struct rpc_tls_pem pem = {0};
    TRY(rpc_tls_pem_read(&pem, ca, cert, key));
    struct chain_check check = {.ca_path = ca, .cert_path = cert, .server = server};
    check.roots = rpc_tls_certs(pem.ca);
    check.certs = rpc_tls_certs(pem.cert);
    err e = ERR_NONE;
    if (sk_X509_num(check.roots) < 1)
        e = err_make(ERR_INPUT, "%s: holds no certificate; expected the authority's", ca);
    else if (sk_X509_num(check.certs) < 1)
        e = err_make(ERR_INPUT, "%s: holds no certificate", cert);
    if (!err_is(e)) e = check_key(key, pem.key, cert, sk_X509_value(check.certs, 0));
    if (!err_is(e)) e = check_chain(&check);
    if (!err_is(e) && days_left != NULL) *days_left = days_until_end(sk_X509_value(check.certs, 0));
    sk_X509_pop_free(check.roots, X509_free);
    sk_X509_pop_free(check.certs, X509_free);
    rpc_tls_pem_close(&pem);
    return e;
}

/* ---------------------------------------------------------------- identity */

/* Takes the text before `end` (NULL: all of it) as a name. */
static bool take_name(char out[LIMIT_NAME_BYTES], const char *text, const char *end)
{
    size_t size = end == NULL ? strlen(text) : (size_t)(end - text);
    if (size == 0 || size >= LIMIT_NAME_BYTES) return false;
    memcpy(out, text, size);
    out[size] = 0;
    return text_is_name(out, LIMIT_NAME_BYTES - 1);
}

const char *rpc_role_name(enum rpc_role role)
{
    return role == RPC_ADMIN ? "admin" : role == RPC_NONE ? "none" : "client";
}

err rpc_peer_parse(struct rpc_peer *out, const char *uri)
{
    struct rpc_peer peer = {0};
    const char *federation = uri + 5, *role = NULL, *id = NULL;
    bool fits = strncmp(uri, "fl://", 5) == 0 && (role = strchr(federation, '/')) != NULL &&
                (id = strchr(role + 1, '/')) != NULL;
    if (fits && strncmp(role, "/client/", 8) == 0)
        peer.role = RPC_CLIENT;
    else if (fits && strncmp(role, "/admin/", 7) == 0)
        peer.role = RPC_ADMIN;
    else
        fits = false;
    if (!fits || !take_name(peer.federation, federation, role) || !take_name(peer.id, id + 1, NULL))
        return err_make(ERR_INPUT,
                        "\"%s\" is no identity: expected fl://FEDERATION/client/ID or "
                        "fl://FEDERATION/admin/ID",
                        uri);
    *out = peer;
    return ERR_NONE;
}

/* The certificate has passed the handshake, so its date is well-formed; 0 otherwise. */
static int64_t end_of(X509 *cert)
{
    struct tm tm;
    return ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) == 1 ? (int64_t)timegm(&tm) : 0;
}

void rpc_tls_serial(char out[RPC_SERIAL_BYTES], X509 *cert)
{
    BIGNUM *number = ASN1_INTEGER_to_BN(X509_get0_serialNumber(cert), NULL);
    char *hex = number == NULL ? NULL : BN_bn2hex(number);
    snprintf(out, RPC_SERIAL_BYTES, "%s", hex == NULL ? "" : hex);
    for (char *c = out; *c != 0; c++)
        if (*c >= 'A' && *c <= 'F') *c = (char)(*c - 'A' + 'a');
    OPENSSL_free(hex);
    BN_free(number);
}

err rpc_tls_identity_of(struct rpc_peer *out, X509 *cert)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    struct rpc_peer peer = {0};
    int found = 0;
    err e = err_make(ERR_INPUT,
                     "the certificate has no identity: one URI name fl://FEDERATION/client/ID "
                     "or fl://FEDERATION/admin/ID was expected");
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_URI) continue;
        const char *uri = (const char *)ASN1_STRING_get0_data(name->d.uniformResourceIdentifier);
        bool whole = strlen(uri) == (size_t)ASN1_STRING_length(name->d.uniformResourceIdentifier);
        found++;
        if (whole) e = rpc_peer_parse(&peer, uri);
    }
    if (found > 1) e = err_make(ERR_INPUT, "the certificate has %d URI names; expected one", found);
    if (!err_is(e)) {
        rpc_tls_serial(peer.serial, cert);
        peer.ends_s = end_of(cert);
        *out = peer;
    }
    GENERAL_NAMES_free(names);
    return e;
}

err rpc_tls_identity(struct rpc_peer *out, const char *pem, size_t size)
{
    X509 *cert = parse_cert(pem, size);
    if (cert == NULL) return err_make(ERR_INPUT, "not a certificate in PEM form");
    err e = rpc_tls_identity_of(out, cert);
    X509_free(cert);
    return e;
}

err rpc_tls_ends(int64_t *ends_s, const char *path)
{
    char *text = NULL;
    int64_t first = INT64_MAX;
    TRY(read_pem(&text, path, "a certificate"));
    STACK_OF(X509) *certs = rpc_tls_certs(text);
    for (int i = 0; i < sk_X509_num(certs); i++) {
        int64_t ends = end_of(sk_X509_value(certs, i));
        if (ends < first) first = ends;
    }
    bool any = sk_X509_num(certs) > 0;
    sk_X509_pop_free(certs, X509_free);
    ERR_clear_error();
    OPENSSL_cleanse(text, strlen(text)); /* a key may stand beside the certificate */
    free(text);
    if (!any) return err_make(ERR_INPUT, "%s: holds no certificate", path);
    *ends_s = first;
    return ERR_NONE;
}
