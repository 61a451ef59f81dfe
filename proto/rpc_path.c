#include "proto/rpc_path.h"

#include "base/err.h"

#include <stdio.h>

struct rpc_path rpc_path_federation[RPC_PATHS_FEDERATION], rpc_path_admin[RPC_PATHS_ADMIN],
    rpc_path_enrolment[RPC_PATHS_ENROLMENT];

static void fill(struct rpc_path *out, size_t count, const ProtobufCServiceDescriptor *service)
{
    REQUIRE(service->n_methods == count); /* the layout that RPC_PATH_INDEX assumes */
    for (size_t i = 0; i < count; i++) {
        int n = snprintf(out[i].text, RPC_PATH_BYTES, "/%s/%s", service->name,
                         service->methods[i].name);
        REQUIRE(n > 0 && n < RPC_PATH_BYTES);
    }
}

/* A constructor, because static tables of handlers and of calls hold addresses of these texts and
 * no program should have to remember a call at its start. It runs before any thread exists. */
__attribute__((constructor)) static void fill_all(void)
{
    fill(rpc_path_federation, RPC_PATHS_FEDERATION, &fedlora__v1__federation__descriptor);
    fill(rpc_path_admin, RPC_PATHS_ADMIN, &fedlora__v1__admin__descriptor);
    fill(rpc_path_enrolment, RPC_PATHS_ENROLMENT, &fedlora__v1__enrolment__descriptor);
}
