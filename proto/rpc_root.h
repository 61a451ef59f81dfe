/* The first contact with a server of which only the hash of its root is known, as a token of
 * enrolment has it. One TLS handshake by the route of the calls: the server must send a chain that
 * ends in the root with this hash, with a certificate for the name in `server`. Nothing is sent to
 * it before that. Afterwards a client can be opened with rpc_client_options.root. Any thread. */
#ifndef PROTO_RPC_ROOT_H
#define PROTO_RPC_ROOT_H

#include "base/bytes.h"
#include "proto/enroll_token.h"

/* Appends the root in PEM form. ERR_INPUT: another root, a chain that does not lead to it, or
 * another name. ERR_MACHINE: no connection. */
err rpc_root_find(struct bytes *pem, const char *server, const struct enroll_hash *hash);
/* The certificate with this hash in a PEM text, appended in PEM form; ERR_INPUT: none. */
err rpc_root_in(struct bytes *pem, const char *text, const struct enroll_hash *hash);

#endif
