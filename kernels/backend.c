#include "kernels/backend.h"

#include <stdlib.h>
#include <string.h>

const char *backend_op_name(enum backend_op op)
{
    static const char *const name[OP_COUNT] = {"linear",    "linear.back",    "head", "low-rank",
                                               "attention", "attention.back", "norm", "rope",
                                               "gate",      "copy",           "adamw"};
    return op < OP_COUNT ? name[op] : "?";
}

/* N of "cuda:N", or 0 for "cuda". */
static bool device_number(int *out, const char *name)
{
    char *end = NULL;
    if (strncmp(name, "cuda", 4) != 0) return false;
    *out = 0;
    if (!name[4]) return true;
    if (name[4] != ':' || name[5] < '0' || name[5] > '9' || strlen(name) > 8) return false;
    *out = (int)strtol(name + 5, &end, 10);
    return *end == 0;
}

err backend_find(const struct backend **out, int *device, const char *name)
{
    *device = 0;
    if (!name || !strcmp(name, "auto") || !strcmp(name, "cpu")) {
        *out = &backend_cpu;
        return ERR_NONE;
    }
    if (device_number(device, name))
        return err_make(ERR_INPUT, "device %s: this build has no CUDA; use cpu or auto", name);
    return err_make(ERR_INPUT, "device %s: expected cpu, cuda, cuda:N or auto", name);
}
