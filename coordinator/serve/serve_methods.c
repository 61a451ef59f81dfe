/* All handlers in one list, and the proof that it is complete. */
#include "coordinator/serve/serve.h"

#include <string.h>

static void add(struct rpc_method *all, size_t *n, const struct rpc_method *some, size_t count)
{
    REQUIRE(*n + count <= SERVE_METHODS);
    memcpy(all + *n, some, count * sizeof *some);
    *n += count;
}

/* The paths are all different, so a list of the right length in which every path is found has one
 * handler for each procedure. role 0: each procedure of this service names its own. */
static void require_handlers(const struct rpc_method *all, size_t n, const struct rpc_path *path,
                             size_t paths, unsigned role)
{
    for (size_t i = 0; i < paths; i++) {
        size_t found = 0;
        for (size_t k = 0; k < n; k++)
            found += all[k].path == path[i].text && (!role || all[k].roles == role);
        REQUIRE(found == 1); /* a procedure of fedlora.proto has no handler, or has two */
    }
}

void serve_methods(struct rpc_method out[SERVE_METHODS])
{
    size_t n = 0;
    add(out, &n, serve_member_method, serve_member_methods);
    add(out, &n, serve_fetch_method, serve_fetch_methods);
    add(out, &n, serve_submit_method, serve_submit_methods);
    add(out, &n, serve_admin_method, serve_admin_methods);
    add(out, &n, serve_ledger_method, serve_ledger_methods);
    add(out, &n, serve_enroll_method, serve_enroll_methods);
    add(out, &n, serve_roster_method, serve_roster_methods);
    add(out, &n, serve_token_method, serve_token_methods);
    add(out, &n, serve_audit_method, serve_audit_methods);
    add(out, &n, serve_manifest_method, serve_manifest_methods);
    add(out, &n, serve_list_method, serve_list_methods);
    add(out, &n, serve_retain_method, serve_retain_methods);
    require_handlers(out, n, rpc_path_federation, RPC_PATHS_FEDERATION, RPC_CLIENT);
    require_handlers(out, n, rpc_path_admin, RPC_PATHS_ADMIN, RPC_ADMIN);
    require_handlers(out, n, rpc_path_enrolment, RPC_PATHS_ENROLMENT, 0);
    REQUIRE(n == SERVE_METHODS);
}
