/* A thread that renews this machine's certificate while another one works: a round may train for
 * longer than a certificate has left. It makes connections of its own. The file is replaced by one
 * rename, and whoever reads it next uses the new certificate.
 *
 * One line on standard error for a renewal, and one an hour while renewals fail. */
#ifndef CLIENT_RENEWER_H
#define CLIENT_RENEWER_H

#include "proto/rpc.h"

struct renewer;
struct renewer_options {
    struct rpc_client_options files; /* `stop` is not used; the strings are copied */
    bool quiet;
};

err renewer_open(struct renewer **out, const struct renewer_options *options);
/* Ends a call that is under way. NULL is fine. */
void renewer_close(struct renewer *renewer);

/* The pause after a failed renewal: a tenth of the time that is left, from 1 s to 1 h. */
uint64_t renewer_pause_ms(int64_t left_s);

#endif
