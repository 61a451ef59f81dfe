/* The route to a server: direct, or through an HTTP proxy that the environment names. gRPC has
 * rules of its own for this, which a probe beside it cannot ask for, so the rules are here, and
 * calls and probes both follow them:
 *
 *   proxy         the first variable that is set of grpc_proxy, https_proxy and http_proxy:
 *                 [http://][USER:PASSWORD@]HOST[:PORT][/]; "" means none; the port is 80 if it is
 *                 missing; % escapes are decoded in USER and PASSWORD
 *   direct        localhost, 127.*, ::1, and hosts that no_grpc_proxy or, if that is not set,
 *                 no_proxy lists. Entries are separated by commas or spaces:
 *                   *                          every host
 *                   NAME .NAME *.NAME          the host NAME and hosts that end with .NAME
 *                   10.1.2.3  fd00::1          an address
 *                   10.0.0.0/8  fd00::/8       a network, for a host that is given by its address
 *                 each but the last optionally with :PORT
 *
 * For proto/rpc*.c only; rpc_client_route() is in rpc.h. Errors and logs name HOST:PORT of the
 * proxy and the variable, never USER and PASSWORD. */
#ifndef PROTO_RPC_PROXY_H
#define PROTO_RPC_PROXY_H

#include "base/err.h"

#include <stdint.h>

struct rpc_proxy {
    const char *variable; /* that names the proxy; NULL: the route is direct */
    const char *excluded; /* the variable that excludes this host; NULL: none does */
    char host[256], port[6];
    char name[272];         /* HOST:PORT, for messages */
    char credentials[1024]; /* USER:PASSWORD in base64; "": none */
};

/* ERR_INPUT: the value of a variable cannot be used. `host` without brackets. */
err rpc_proxy_find(struct rpc_proxy *out, const char *host, const char *port);
/* Asks the proxy at the other end of the socket for a tunnel to `server` (HOST:PORT). ERR_MACHINE
 * with its answer if it refuses. The socket must have a limit on every wait. */
err rpc_proxy_tunnel(int fd, const struct rpc_proxy *proxy, const char *server,
                     uint64_t timeout_ms);

#endif
