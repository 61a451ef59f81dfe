/* Parts of a TLS handshake by OpenSSL alone, which rpc_probe.c makes for an explanation and
 * rpc_root.c for the root of a server. For proto/rpc*.c only; rpc_tls_probe() is in rpc.h. */
#ifndef PROTO_RPC_PROBE_H
#define PROTO_RPC_PROBE_H

#include "proto/rpc.h"
#include "proto/rpc_openssl.h"
#include "proto/rpc_proxy.h"

enum { RPC_PROBE_HOST = 256 };

/* A socket whose bytes reach the server, by the route of the calls, with a limit on every wait. It
 * may be open after an error too; -1 otherwise. */
err rpc_probe_connect(int *out, struct rpc_proxy *proxy, char host[RPC_PROBE_HOST],
                      const char *server);
/* The error with the proxy's name, if there is a proxy. */
err rpc_probe_through(err e, const struct rpc_proxy *proxy);
/* The handshake accepts only a certificate for this host. */
err rpc_probe_expect(SSL *ssl, const char *host);
/* The reason why a handshake or the first read ended, as far as the server or OpenSSL gives one. */
err rpc_probe_explain(const struct rpc_client_options *options, int ssl_error);
/* A peer that leaves in the middle must not kill the program, so SIGPIPE is blocked meanwhile. */
sigset_t rpc_probe_hold_sigpipe(void);
void rpc_probe_release_sigpipe(const sigset_t *old);

#endif
