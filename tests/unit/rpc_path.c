#include "proto/rpc_path.h"

#include <criterion/criterion.h>
#include <string.h>

static const char *const static_path = RPC_PATH_ADMIN(watch_run);

Test(rpc_path, is_package_service_and_method_as_the_wire_has_them)
{
    cr_assert_str_eq(RPC_PATH_FEDERATION(hello), "/fedlora.v1.Federation/Hello");
    cr_assert_str_eq(RPC_PATH_FEDERATION(submit_offset), "/fedlora.v1.Federation/SubmitOffset");
    cr_assert_str_eq(RPC_PATH_ADMIN(create_run), "/fedlora.v1.Admin/CreateRun");
    cr_assert_str_eq(static_path, "/fedlora.v1.Admin/WatchRun");
}

Test(rpc_path, every_procedure_has_a_path_of_its_own)
{
    for (size_t i = 0; i < RPC_PATHS_ADMIN; i++) {
        cr_assert(rpc_path_admin[i].text[0] == '/');
        for (size_t k = 0; k < i; k++)
            cr_assert(strcmp(rpc_path_admin[i].text, rpc_path_admin[k].text) != 0);
    }
}
