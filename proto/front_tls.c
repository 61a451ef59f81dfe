#include "proto/front_tls.h"

#include "base/text.h"

#include <stdio.h>
#include <string.h>

/* A chain from a stranger is held in memory and verified before it is known to be of our authority,
 * so it must be short: one certificate has about 700 bytes. */
enum { TLS_DEPTH = 4, TLS_CHAIN_BYTES = 32768 };

/* Writes the reason of the first certificate that does not verify. A certificate that verifies
 * needs an identity too, so that its owner learns of it by an alert in the handshake. */
static int on_certificate(int ok, X509_STORE_CTX *store)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct front_tls_notes *notes = SSL_get_app_data(ssl);
    X509 *cert = X509_STORE_CTX_get_current_cert(store);
    struct rpc_peer peer;
    int code = X509_STORE_CTX_get_error(store);
    if (!ok) notes->refusal = RPC_REFUSAL_CERTIFICATE;
    if (!ok && code == X509_V_ERR_INVALID_PURPOSE) {
        snprintf(notes->reason, sizeof notes->reason, "its certificate is not for clients");
    } else if (!ok && (code == X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY ||
                       code == X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN ||
                       code == X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT ||
                       code == X509_V_ERR_CERT_SIGNATURE_FAILURE)) {
        notes->refusal = RPC_REFUSAL_AUTHORITY;
        snprintf(notes->reason, sizeof notes->reason,
                 "its certificate is from another authority: %s",
                 X509_verify_cert_error_string(code));
    } else if (!ok) {
        if (code == X509_V_ERR_CERT_HAS_EXPIRED) notes->refusal = RPC_REFUSAL_EXPIRED;
        snprintf(notes->reason, sizeof notes->reason, "its certificate cannot be accepted: %s",
                 X509_verify_cert_error_string(code));
    } else if (X509_STORE_CTX_get_error_depth(store) == 0) {
        err e = rpc_tls_identity_of(&peer, cert);
        if (!err_is(e)) return 1;
        notes->refusal = RPC_REFUSAL_CERTIFICATE;
        snprintf(notes->reason, sizeof notes->reason, "%.*s", FRONT_TLS_REASON - 1, e.text);
        X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
        return 0;
    }
    return ok;
}

static int choose_h2(SSL *ssl, const unsigned char **out, unsigned char *size,
                     const unsigned char *offered, unsigned int offered_size, void *user)
{
    (void)user;
    for (unsigned int i = 0; i < offered_size; i += offered[i] + 1u)
        if (offered[i] == 2 && i + 2 < offered_size && memcmp(offered + i + 1, "h2", 2) == 0) {
            *out = offered + i + 1;
            *size = 2;
            return SSL_TLSEXT_ERR_OK;
        }
    struct front_tls_notes *notes = SSL_get_app_data(ssl);
    notes->refusal = RPC_REFUSAL_PROTOCOL;
    snprintf(notes->reason, sizeof notes->reason, "it does not offer HTTP/2");
    return SSL_TLSEXT_ERR_ALERT_FATAL;
}

/* An attacker may send key updates without end; the owner of the notes counts them. */
static void on_message(int writing, int version, int type, const void *data, size_t size, SSL *ssl,
                       void *user)
{
    (void)version, (void)user;
    struct front_tls_notes *notes = SSL_get_app_data(ssl);
    if (!writing && type == SSL3_RT_HANDSHAKE && size > 0 &&
        *(const uint8_t *)data == SSL3_MT_KEY_UPDATE)
        notes->updates++;
}

/* All roots are sent while an authority is being replaced, because a token may name either one. */
static bool use_roots(SSL_CTX *context, STACK_OF(X509) * roots, bool open)
{
    X509_STORE *store = SSL_CTX_get_cert_store(context);
    bool fits = sk_X509_num(roots) > 0;
    for (int i = 0; fits && i < sk_X509_num(roots); i++) {
        X509 *root = sk_X509_value(roots, i);
        fits = open ? SSL_CTX_add1_chain_cert(context, root) == 1
                    : X509_STORE_add_cert(store, root) == 1 &&
                          SSL_CTX_add_client_CA(context, root) == 1;
    }
    return fits;
}

static bool use_certificates(SSL_CTX *context, const struct rpc_tls_pem *pem, bool open)
{
    STACK_OF(X509) *roots = rpc_tls_certs(pem->ca), *chain = rpc_tls_certs(pem->cert);
    BIO *bio = BIO_new_mem_buf(pem->key, -1);
    EVP_PKEY *key = bio == NULL ? NULL : PEM_read_bio_PrivateKey(bio, NULL, NULL, (void *)"");
    bool fits = key != NULL && sk_X509_num(chain) > 0 &&
                SSL_CTX_use_certificate(context, sk_X509_value(chain, 0)) == 1 &&
                SSL_CTX_use_PrivateKey(context, key) == 1;
    for (int i = 1; fits && i < sk_X509_num(chain); i++)
        fits = SSL_CTX_add1_chain_cert(context, sk_X509_value(chain, i)) == 1;
    fits = fits && use_roots(context, roots, open);
    EVP_PKEY_free(key);
    BIO_free(bio);
    sk_X509_pop_free(roots, X509_free);
    sk_X509_pop_free(chain, X509_free);
    return fits;
}

/* AUTO_RETRY is off so that one SSL_read() handles at most one record: a client that sends only key
 * updates cannot keep the thread inside it. Without tickets every handshake checks the
 * certificate. */
static bool set_rules(SSL_CTX *context, bool open)
{
    if (open)
        SSL_CTX_set_verify(context, SSL_VERIFY_NONE, NULL);
    else
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
                           on_certificate);
    SSL_CTX_set_alpn_select_cb(context, choose_h2, NULL);
    SSL_CTX_set_msg_callback(context, on_message);
    SSL_CTX_set_verify_depth(context, TLS_DEPTH);
    SSL_CTX_set_max_cert_list(context, TLS_CHAIN_BYTES);
    SSL_CTX_set_session_cache_mode(context, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(context, SSL_OP_NO_TICKET | SSL_OP_CIPHER_SERVER_PREFERENCE);
    SSL_CTX_clear_mode(context, SSL_MODE_AUTO_RETRY);
    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    return SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_num_tickets(context, 0) == 1;
}

err front_tls_open(SSL_CTX **out, const struct front_tls_files *f)
{
    struct rpc_tls_pem pem = {0};
    TRY(rpc_tls_check(f->ca, f->cert, f->key, /*server*/ true, NULL));
    TRY(rpc_tls_pem_read(&pem, f->ca, f->cert, f->key));
    SSL_CTX *context = SSL_CTX_new(TLS_server_method());
    err e = ERR_NONE;
    if (context == NULL || !set_rules(context, f->open) ||
        !use_certificates(context, &pem, f->open))
        e = err_make(ERR_INPUT, "%s, %s, %s: cannot be used for TLS 1.3", f->ca, f->cert, f->key);
    if (err_is(e))
        SSL_CTX_free(context);
    else
        *out = context;
    rpc_tls_pem_close(&pem);
    ERR_clear_error();
    return e;
}

err front_tls_accept(SSL **out, SSL_CTX *context, int fd, struct front_tls_notes *notes)
{
    SSL *ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1) {
        SSL_free(ssl);
        ERR_clear_error();
        return err_make(ERR_MACHINE, "out of memory");
    }
    SSL_set_app_data(ssl, notes);
    SSL_set_accept_state(ssl);
    *out = ssl;
    return ERR_NONE;
}

enum rpc_refusal front_tls_explain(char out[FRONT_TLS_REASON], const struct front_tls_notes *notes)
{
    unsigned long code = ERR_peek_error();
    int reason = ERR_GET_REASON(code);
    bool is_ssl = ERR_GET_LIB(code) == ERR_LIB_SSL;
    const char *words = is_ssl ? ERR_reason_error_string(code) : NULL, *text = NULL;
    enum rpc_refusal refusal = RPC_REFUSAL_PROTOCOL;
    if (notes->reason[0] != 0) {
        text = notes->reason;
        refusal = notes->refusal;
    } else if (is_ssl && reason == SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE) {
        text = "it has no certificate";
        refusal = RPC_REFUSAL_ABSENT;
    } else if (is_ssl &&
               (reason == SSL_R_UNSUPPORTED_PROTOCOL || reason == SSL_R_VERSION_TOO_LOW)) {
        text = "it does not speak TLS 1.3";
    } else if (is_ssl && (reason == SSL_R_HTTP_REQUEST || reason == SSL_R_WRONG_VERSION_NUMBER ||
                          reason == SSL_R_PACKET_LENGTH_TOO_LONG)) {
        text = "it does not speak TLS";
    } else if (words == NULL || reason == SSL_R_UNEXPECTED_EOF_WHILE_READING) {
        text = "it hung up in the handshake";
        refusal = RPC_REFUSAL_BROKEN;
    } else {
        text = words;
        refusal = RPC_REFUSAL_OTHER;
    }
    snprintf(out, FRONT_TLS_REASON, "%.*s", FRONT_TLS_REASON - 1, text);
    text_tame(out);
    ERR_clear_error();
    return refusal;
}
