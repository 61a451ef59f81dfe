#include "coordinator/serve/serve.h"

#include <criterion/criterion.h>

/* serve_methods() ends the process if a procedure of fedlora.proto has no handler, or has two. */
Test(serve_methods, every_procedure_has_one_handler)
{
    struct rpc_method method[SERVE_METHODS];
    serve_methods(method);
    for (size_t i = 0; i < SERVE_METHODS; i++)
        cr_assert(method[i].begin, "%s", method[i].path);
}
