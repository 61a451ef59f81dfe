/* The TLS side of the server: TLS 1.3 only, a client certificate of the given authority that is
 * made for clients and has one identity, HTTP/2 by ALPN, no resumption. Where institutions enrol,
 * no client certificate is asked for. */
#ifndef PROTO_FRONT_TLS_H
#define PROTO_FRONT_TLS_H

#include "proto/rpc_tls.h"

enum { FRONT_TLS_REASON = 200 };

struct front_tls_files {
    const char *ca, *cert, *key;
    bool open; /* ask clients for no certificate, and send the root behind the chain */
};
/* ERR_INPUT naming the file that cannot be used. */
err front_tls_open(SSL_CTX **out, const struct front_tls_files *files);
struct front_tls_notes {
    char reason[FRONT_TLS_REASON]; /* why the certificate was refused; "": it was not */
    enum rpc_refusal refusal;      /* with a reason: its kind */
    unsigned updates;              /* key updates that the client has sent */
};
/* A connection's server side. The notes are written to until it is freed. */
err front_tls_accept(SSL **out, SSL_CTX *context, int fd, struct front_tls_notes *notes);
/* After a failed SSL_accept(): why it failed, in words, from OpenSSL's queue of errors, and the
 * kind of reason. */
enum rpc_refusal front_tls_explain(char out[FRONT_TLS_REASON], const struct front_tls_notes *notes);

#endif
