/* Takes the place of kernels/cpu in programs for machines with a GPU, which then need neither
 * oneDNN nor BLAS. The table has a name and an open() that fails. */
#include "kernels/backend.h"

static err no_open(struct backend_context **out, const struct backend_options *o)
{
    (void)out, (void)o;
    return err_make(ERR_INPUT, "this program runs on a GPU only: --device cuda");
}

const struct backend backend_cpu = {.name = "cpu", .open = no_open};

int backend_threads(int asked)
{
    return asked > 0 ? asked : 1;
}
