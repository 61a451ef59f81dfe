#include "proto/rpc_root.h"

#include "proto/rpc_internal.h"
#include "proto/rpc_probe.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

/* State of one handshake, for the function that checks the server's chain. */
struct looking {
    const char *server;
    const struct enroll_hash *hash;
    struct bytes *pem; /* gets the root */
    err e;             /* the reason why the chain is refused */
};

static err append_pem(struct bytes *pem, X509 *cert)
{
    char *text = NULL;
    BIO *bio = BIO_new(BIO_s_mem());
    err e = err_make(ERR_MACHINE, "out of memory");
    if (bio != NULL && PEM_write_bio_X509(bio, cert) == 1) {
        long size = BIO_get_mem_data(bio, &text);
        e = bytes_append(pem, text, (size_t)size);
    }
    BIO_free(bio);
    return e;
}

/* Borrowed from the list; NULL: no certificate has this hash. */
static X509 *find(STACK_OF(X509) * certs, const struct enroll_hash *hash)
{
    for (int i = 0; i < sk_X509_num(certs); i++) {
        unsigned char *der = NULL;
        int size = i2d_X509(sk_X509_value(certs, i), &der);
        if (size <= 0) continue;
        struct enroll_hash is = enroll_token_hash_of(der, (size_t)size);
        OPENSSL_free(der);
        if (memcmp(is.byte, hash->byte, sizeof is.byte) == 0) return sk_X509_value(certs, i);
    }
    return NULL;
}

err rpc_root_in(struct bytes *pem, const char *text, const struct enroll_hash *hash)
{
    char wanted[ENROLL_HASH_TEXT_BYTES];
    STACK_OF(X509) *certs = rpc_tls_certs(text);
    X509 *root = find(certs, hash);
    enroll_token_hash_text(wanted, hash);
    err e =
        root ? append_pem(pem, root)
             : err_make(ERR_INPUT, "none of the %d certificates is the authority with the hash %s",
                        sk_X509_num(certs), wanted);
    sk_X509_pop_free(certs, X509_free);
    return e;
}

static err explain_chain(const struct looking *l, long code)
{
    if (code == X509_V_ERR_HOSTNAME_MISMATCH || code == X509_V_ERR_IP_ADDRESS_MISMATCH)
        return err_make(ERR_INPUT, "%s: the server's certificate is for another name", l->server);
    return err_make(ERR_INPUT, "%s: the server's certificate cannot be trusted: %s%s", l->server,
                    X509_verify_cert_error_string(code),
                    code == X509_V_ERR_CERT_HAS_EXPIRED || code == X509_V_ERR_CERT_NOT_YET_VALID
                        ? "; check this machine's clock too"
                        : "");
}

/* Anybody can send the root, which is public, so the chain is verified from it as usual: the sender
 * must have the key of a certificate that the root's authority has signed. Only the choice of the
 * root is new. */
static int check_chain(X509_STORE_CTX *context, void *user)
{
    struct looking *l = user;
    char wanted[ENROLL_HASH_TEXT_BYTES];
    X509 *root = find(X509_STORE_CTX_get0_untrusted(context), l->hash);
    if (root == NULL) {
        enroll_token_hash_text(wanted, l->hash);
        l->e = err_make(ERR_INPUT,
                        "%s: this server is not of the authority that the token names: none of its "
                        "certificates has the hash %s; nothing was sent to it",
                        l->server, wanted);
        X509_STORE_CTX_set_error(context, X509_V_ERR_CERT_UNTRUSTED);
        return 0;
    }
    STACK_OF(X509) *trusted = sk_X509_new_null();
    if (trusted == NULL || sk_X509_push(trusted, root) <= 0) {
        sk_X509_free(trusted);
        l->e = err_make(ERR_MACHINE, "out of memory");
        return 0;
    }
    X509_STORE_CTX_set0_trusted_stack(context, trusted);
    int good = X509_verify_cert(context) == 1;
    l->e = good ? append_pem(l->pem, root) : explain_chain(l, X509_STORE_CTX_get_error(context));
    sk_X509_free(trusted);
    return good && !err_is(l->e);
}

/* The first bytes of the server, or its alert, show whether it wants a certificate of ours: then
 * the address is the one of the main service. */
static err handshake(SSL *ssl, struct looking *l)
{
    const struct rpc_client_options options = {.server = l->server, .cert = "of this machine"};
    char byte = 0;
    ERR_clear_error();
    errno = 0;
    int code = SSL_connect(ssl);
    if (code == 1) code = SSL_read(ssl, &byte, 1);
    if (code == 1) return ERR_NONE;
    if (err_is(l->e)) return l->e;
    err e = rpc_probe_explain(&options, SSL_get_error(ssl, code));
    if (e.kind != ERR_REFUSED) return e;
    return err_make(ERR_INPUT,
                    "%s: this server asks for a certificate: it is no address of enrolment",
                    l->server);
}

static err prepare(SSL_CTX **out, struct looking *l)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (context == NULL || SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\x02h2", 3) != 0) {
        SSL_CTX_free(context);
        return err_make(ERR_MACHINE, "out of memory");
    }
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
    SSL_CTX_set_cert_verify_callback(context, check_chain, l);
    *out = context;
    return ERR_NONE;
}

static err find_root(struct looking *l)
{
    char host[RPC_PROBE_HOST];
    struct rpc_proxy proxy;
    SSL_CTX *context = NULL;
    SSL *ssl = NULL;
    int fd = -1;
    err e;
    TRY_OUT(e, prepare(&context, l));
    TRY_OUT(e, rpc_probe_connect(&fd, &proxy, host, l->server));
    ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1) {
        e = err_make(ERR_MACHINE, "out of memory");
        goto out;
    }
    TRY_OUT(e, rpc_probe_expect(ssl, host));
    e = rpc_probe_through(handshake(ssl, l), &proxy);
out:
    SSL_free(ssl);
    SSL_CTX_free(context);
    if (fd >= 0) close(fd);
    ERR_clear_error();
    return e;
}

err rpc_root_find(struct bytes *pem, const char *server, const struct enroll_hash *hash)
{
    struct bytes found = {.max = pem->max};
    struct looking l = {.server = server, .hash = hash, .pem = &found, .e = ERR_NONE};
    TRY(rpc_init());
    sigset_t old = rpc_probe_hold_sigpipe();
    err e = find_root(&l);
    rpc_probe_release_sigpipe(&old);
    if (!err_is(e)) e = bytes_append(pem, found.data, found.size);
    bytes_close(&found);
    return e;
}
