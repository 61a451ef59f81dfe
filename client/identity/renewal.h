/* The renewal of this machine's certificate, by the coordinator, with the certificate that is about
 * to end. Each time a new key is made. Certificate and key are in one file (identity.h), which one
 * rename replaces; a certificate in two files cannot be renewed this way and is left alone. */
#ifndef CLIENT_RENEWAL_H
#define CLIENT_RENEWAL_H

#include "proto/rpc.h"

enum { RENEWAL_CALL_MS = 30 * 1000 };

struct renewal {
    struct rpc_peer self;
    int64_t begins_s, ends_s, at_s; /* since 1970; at_s: when to renew */
    bool renewable;                 /* certificate and key are in one file */
};
/* Reads the certificate in use. ERR_INPUT: there is none, or it cannot be read. */
err renewal_read(struct renewal *out, const struct rpc_client_options *files);
/* Asks for a new certificate and writes it; `client` was opened with these files and is still
 * connected with the old one afterwards. *out describes the new one. */
err renewal_now(struct renewal *out, struct rpc_client *client,
                const struct rpc_client_options *files);
/* Renews if it is time, and reloads the client. Silent: the old certificate still works, and a
 * coordinator may not renew at all. */
void renewal_if_due(struct rpc_client *client, const struct rpc_client_options *files);

#endif
