/* Certificate files and the identities in them, for the server, its front and the client. */
#ifndef PROTO_RPC_TLS_H
#define PROTO_RPC_TLS_H

#include "proto/rpc.h"
#include "proto/rpc_openssl.h"

struct rpc_tls_pem {
    char *ca, *cert, *key; /* file contents */
};
err rpc_tls_pem_read(struct rpc_tls_pem *out, const char *ca, const char *cert, const char *key);
void rpc_tls_pem_close(struct rpc_tls_pem *pem);
/* All certificates of a PEM text, in their order; the caller frees the list. */
STACK_OF(X509) * rpc_tls_certs(const char *pem);
void rpc_tls_serial(char out[RPC_SERIAL_BYTES], X509 *cert); /* lower-case hex */
/* Identity and serial from a certificate, or from one in PEM form. */
err rpc_tls_identity_of(struct rpc_peer *out, X509 *cert);
err rpc_tls_identity(struct rpc_peer *out, const char *pem, size_t size);

#endif
