#include "client/command/command_work.h"

#include "base/file.h"
#include "client/session/session_work.h"
#include "proto/rpc_tls.h"

#include <stdlib.h>

enum { CERT_BYTES = 1 << 20 };

static err identity_of(struct rpc_peer *out, const char *cert)
{
    char *pem = NULL;
    size_t size = 0;
    TRY(file_read_all(&pem, &size, cert, CERT_BYTES));
    err e = rpc_tls_identity(out, pem, size);
    free(pem);
    return err_is(e) ? err_in(e, "%s", cert) : e;
}

err command_work_find(char *out, size_t bytes, const struct command_work *o)
{
    struct rpc_peer self = {0};
    if (!o->work && !o->cert)
        return err_make(ERR_INPUT,
                        "expected --config FILE, --work DIR or --cert FILE of this member");
    if (!o->work) TRY(identity_of(&self, o->cert));
    TRY(session_work_find_dir(out, bytes, o->work, &self));
    if (file_is_dir(out)) return ERR_NONE;
    return err_make(ERR_INPUT, "%s: there is no such directory: fedlora join makes it", out);
}
