/* One TLS handshake by OpenSSL alone. gRPC reports most failures as "failed to connect"; this
 * finds out which side refused and why. */
#include "proto/rpc_probe.h"

#include "proto/rpc_internal.h"

#include "base/text.h"

#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

enum { PROBE_MS = 5000, PROBE_NAMES = 512, PROBE_TRIES = 3, PROBE_AGAIN_MS = 400 };

static err connect_one(int *out, const struct addrinfo *address, const char *server,
                       uint64_t timeout_ms)
{
    int fd = socket(address->ai_family, address->ai_socktype | SOCK_CLOEXEC | SOCK_NONBLOCK,
                    address->ai_protocol);
    if (fd < 0) return err_sys(errno, "%s: no socket", server);
    int code = 0;
    if (connect(fd, address->ai_addr, address->ai_addrlen) != 0) code = errno;
    if (code == EINPROGRESS) {
        struct pollfd wait = {.fd = fd, .events = POLLOUT};
        socklen_t size = sizeof code;
        if (poll(&wait, 1, (int)timeout_ms) != 1)
            code = ETIMEDOUT;
        else
            (void)getsockopt(fd, SOL_SOCKET, SO_ERROR, &code, &size);
    }
    if (code != 0) {
        close(fd);
        return err_sys(code, "cannot connect to %s", server);
    }
    /* From here on the socket blocks, with a limit on every wait. */
    struct timeval limit = {.tv_sec = (time_t)(timeout_ms / 1000),
                            .tv_usec = (suseconds_t)(timeout_ms % 1000 * 1000)};
    (void)fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
    (void)setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    (void)setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
    *out = fd;
    return ERR_NONE;
}

static err connect_to(int *out, const char *host, const char *port, uint64_t timeout_ms)
{
    struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
    char server[320];
    snprintf(server, sizeof server, "%s:%s", host, port);
    int code = getaddrinfo(host, port, &hints, &found);
    if (code != 0)
        return err_make(ERR_MACHINE, "%s: the name cannot be looked up: %s", server,
                        gai_strerror(code));
    err e = err_make(ERR_MACHINE, "%s: no address", server);
    for (const struct addrinfo *a = found; a != NULL && err_is(e); a = a->ai_next)
        e = connect_one(out, a, server, timeout_ms);
    freeaddrinfo(found);
    return e;
}

/* A peer that leaves in the middle must not kill the program, so the signal is blocked, and
 * discarded afterwards. */
sigset_t rpc_probe_hold_sigpipe(void)
{
    sigset_t pipe, old;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    pthread_sigmask(SIG_BLOCK, &pipe, &old);
    return old;
}

void rpc_probe_release_sigpipe(const sigset_t *old)
{
    sigset_t pipe;
    sigemptyset(&pipe);
    sigaddset(&pipe, SIGPIPE);
    if (sigismember(old, SIGPIPE) == 0) {
        const struct timespec now = {0};
        while (sigtimedwait(&pipe, NULL, &now) > 0) {
        }
    }
    pthread_sigmask(SIG_SETMASK, old, NULL);
}

/* ---------------------------------------------------------------- the client's probe */

static void list_names(char *out, size_t bytes, X509 *cert)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(cert, NID_subject_alt_name, NULL, NULL);
    size_t used = 0;
    out[0] = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names) && used < bytes; i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        const char *between = used == 0 ? "" : ", ";
        const unsigned char *ip =
            name->type == GEN_IPADD ? ASN1_STRING_get0_data(name->d.iPAddress) : NULL;
        if (name->type == GEN_DNS)
            used += (size_t)snprintf(out + used, bytes - used, "%s%s", between,
                                     (const char *)ASN1_STRING_get0_data(name->d.dNSName));
        else if (ip != NULL && ASN1_STRING_length(name->d.iPAddress) == 4)
            used += (size_t)snprintf(out + used, bytes - used, "%s%d.%d.%d.%d", between, ip[0],
                                     ip[1], ip[2], ip[3]);
    }
    GENERAL_NAMES_free(names);
}

/* OpenSSL drops a certificate that it does not accept, so its names are stored while they are
 * known. The connection's app data is a text of PROBE_NAMES bytes. */
static int note_names(int ok, X509_STORE_CTX *context)
{
    SSL *ssl = X509_STORE_CTX_get_ex_data(context, SSL_get_ex_data_X509_STORE_CTX_idx());
    if (!ok && X509_STORE_CTX_get_error_depth(context) == 0)
        list_names(SSL_get_app_data(ssl), PROBE_NAMES, X509_STORE_CTX_get_current_cert(context));
    return ok;
}

static err explain_server(const struct rpc_client_options *o, SSL *ssl, long verify)
{
    const char *names = SSL_get_app_data(ssl);
    if (verify == X509_V_ERR_HOSTNAME_MISMATCH || verify == X509_V_ERR_IP_ADDRESS_MISMATCH)
        return err_make(ERR_INPUT,
                        "%s: the server's certificate is for %s; connect by one of these names",
                        o->server, names);
    return err_make(ERR_INPUT,
                    "%s: the server's certificate cannot be trusted: %s (checked against %s)",
                    o->server, X509_verify_cert_error_string(verify), o->ca);
}

/* Alerts that are about the client's certificate. */
static bool is_about_certificate(int alert)
{
    return (alert >= SSL_AD_BAD_CERTIFICATE && alert <= SSL_AD_CERTIFICATE_UNKNOWN) ||
           alert == SSL_AD_UNKNOWN_CA || alert == SSL_AD_ACCESS_DENIED ||
           alert == TLS13_AD_CERTIFICATE_REQUIRED;
}

/* The reason why a handshake ended, as far as the server or OpenSSL gives one. */
err rpc_probe_explain(const struct rpc_client_options *o, int ssl_error)
{
    unsigned long code = ERR_peek_error();
    int reason = ERR_GET_REASON(code);
    bool is_ssl = ERR_GET_LIB(code) == ERR_LIB_SSL;
    int alert = is_ssl && reason > SSL_AD_REASON_OFFSET ? reason - SSL_AD_REASON_OFFSET : 0;
    const char *words = ERR_reason_error_string(code);
    if (is_ssl && (reason == SSL_R_WRONG_VERSION_NUMBER || reason == SSL_R_PACKET_LENGTH_TOO_LONG))
        return err_make(ERR_INPUT, "%s: the peer at this address does not use TLS", o->server);
    if (alert == SSL_AD_PROTOCOL_VERSION)
        return err_make(ERR_INPUT, "%s: the server does not speak TLS 1.3", o->server);
    if (is_about_certificate(alert))
        return err_make(ERR_REFUSED, "%s: the server refuses the certificate %s: %s", o->server,
                        o->cert, words == NULL ? "an alert" : words);
    if (ssl_error == SSL_ERROR_WANT_READ || errno == EAGAIN)
        return err_make(ERR_MACHINE, "%s: no answer to the TLS handshake within %d s", o->server,
                        PROBE_MS / 1000);
    return err_make(ERR_MACHINE, "%s: the TLS handshake broke off%s%s", o->server,
                    alert != 0 && words != NULL ? ": " : "",
                    alert != 0 && words != NULL ? words : "");
}

static err prepare(SSL_CTX **out, const struct rpc_client_options *o)
{
    SSL_CTX *context = SSL_CTX_new(TLS_client_method());
    if (context == NULL) return err_make(ERR_MACHINE, "out of memory");
    SSL_CTX_set_verify(context, SSL_VERIFY_PEER, note_names);
    if (SSL_CTX_set_min_proto_version(context, TLS1_3_VERSION) != 1 ||
        SSL_CTX_load_verify_locations(context, o->ca, NULL) != 1 ||
        SSL_CTX_use_certificate_chain_file(context, o->cert) != 1 ||
        SSL_CTX_use_PrivateKey_file(context, o->key, SSL_FILETYPE_PEM) != 1 ||
        SSL_CTX_set_alpn_protos(context, (const unsigned char *)"\x02h2", 3) != 0) {
        SSL_CTX_free(context);
        ERR_clear_error();
        return err_make(ERR_INPUT, "%s, %s, %s: cannot be used for TLS", o->ca, o->cert, o->key);
    }
    *out = context;
    return ERR_NONE;
}

err rpc_probe_expect(SSL *ssl, const char *host)
{
    X509_VERIFY_PARAM *verify = SSL_get0_param(ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(verify, host) != 1 &&
        (X509_VERIFY_PARAM_set1_host(verify, host, 0) != 1 ||
         SSL_set_tlsext_host_name(ssl, host) != 1))
        return err_make(ERR_INPUT, "%s: not a host name", host);
    return ERR_NONE;
}

/* *hung_up: the server had shown its certificate and finished its part, and then closed the
 * connection without an alert. */
static err handshake(struct rpc_tls_report *out, bool *hung_up, SSL *ssl, const char *host,
                     const struct rpc_client_options *o)
{
    char names[PROBE_NAMES] = "";
    TRY(rpc_probe_expect(ssl, host));
    SSL_set_app_data(ssl, names);
    ERR_clear_error();
    errno = 0;
    int code = SSL_connect(ssl);
    if (code != 1) {
        long result = SSL_get_verify_result(ssl);
        if (result != X509_V_OK) return explain_server(o, ssl, result);
        return rpc_probe_explain(o, SSL_get_error(ssl, code));
    }
    /* In TLS 1.3 the server checks our certificate after our side has finished. Its first bytes
     * (gRPC's settings) or its alert show the result. gRPC 1.51 sends no alert. */
    char byte = 0;
    code = SSL_read(ssl, &byte, 1);
    if (code != 1) {
        err e = rpc_probe_explain(o, SSL_get_error(ssl, code));
        *hung_up = e.kind == ERR_MACHINE && errno != EAGAIN;
        return e;
    }
    X509 *cert = SSL_get0_peer_certificate(ssl);
    int days = 0, seconds = 0;
    (void)ASN1_TIME_diff(&days, &seconds, NULL, X509_get0_notAfter(cert));
    out->server_days_left = days;
    list_names(out->server_names, sizeof out->server_names, cert);
    snprintf(out->version, sizeof out->version, "%s", SSL_get_version(ssl));
    snprintf(out->cipher, sizeof out->cipher, "%s", SSL_get_cipher_name(ssl));
    return ERR_NONE;
}

err rpc_probe_connect(int *out, struct rpc_proxy *proxy, char host[RPC_PROBE_HOST],
                      const char *server)
{
    char port[6];
    TRY(rpc_wire_split(host, RPC_PROBE_HOST, port, server, "server"));
    TRY(rpc_proxy_find(proxy, host, port));
    if (!proxy->variable) return connect_to(out, host, port, PROBE_MS);
    err e = connect_to(out, proxy->host, proxy->port, PROBE_MS);
    if (err_is(e)) return err_make(e.kind, "%s (the proxy that %s names)", e.text, proxy->variable);
    return rpc_proxy_tunnel(*out, proxy, server, PROBE_MS);
}

err rpc_probe_through(err e, const struct rpc_proxy *proxy)
{
    if (!err_is(e) || !proxy->variable) return e;
    return err_make(e.kind, "%s (through the proxy %s, from %s)", e.text, proxy->name,
                    proxy->variable);
}

static err probe_once(struct rpc_tls_report *out, bool *hung_up, const struct rpc_client_options *o)
{
    char host[RPC_PROBE_HOST];
    struct rpc_proxy proxy;
    SSL_CTX *context = NULL;
    SSL *ssl = NULL;
    int fd = -1;
    uint64_t start = text_now_ms();
    err e;
    *hung_up = false;
    TRY_OUT(e, prepare(&context, o));
    TRY_OUT(e, rpc_probe_connect(&fd, &proxy, host, o->server));
    ssl = SSL_new(context);
    if (ssl == NULL || SSL_set_fd(ssl, fd) != 1) {
        e = err_make(ERR_MACHINE, "out of memory");
        goto out;
    }
    TRY_OUT(e, rpc_probe_through(handshake(out, hung_up, ssl, host, o), &proxy));
    out->connect_ms = (int64_t)(text_now_ms() - start);
out:
    SSL_free(ssl);
    SSL_CTX_free(context);
    if (fd >= 0) close(fd);
    ERR_clear_error();
    return e;
}

/* A server that dies or stops at this moment hangs up too, but a server that refuses the
 * certificate does so every time. So the handshake is tried several times. */
static err probe(struct rpc_tls_report *out, const struct rpc_client_options *o)
{
    bool hung_up = false;
    err e = ERR_NONE;
    for (int i = 0; i < PROBE_TRIES; i++) {
        if (i > 0) usleep(PROBE_AGAIN_MS * 1000);
        e = probe_once(out, &hung_up, o);
        if (!hung_up) return e;
    }
    return err_make(ERR_REFUSED,
                    "%s: the server hangs up when it sees the certificate %s: most likely it does "
                    "not accept it (another authority, expired, revoked, or not for clients)",
                    o->server, o->cert);
}

err rpc_tls_probe(struct rpc_tls_report *out, const struct rpc_client_options *o)
{
    struct rpc_tls_report report = {0};
    struct rpc_tls_pem pem = {0};
    TRY(rpc_init());
    TRY(rpc_tls_check(o->ca, o->cert, o->key, /*server*/ false, &report.client_days_left));
    TRY(rpc_tls_pem_read(&pem, o->ca, o->cert, o->key));
    err e = rpc_tls_identity(&report.self, pem.cert, strlen(pem.cert));
    rpc_tls_pem_close(&pem);
    if (err_is(e)) return err_in(e, "%s", o->cert);
    sigset_t old = rpc_probe_hold_sigpipe();
    e = probe(&report, o);
    rpc_probe_release_sigpipe(&old);
    if (!err_is(e)) *out = report;
    return e;
}
