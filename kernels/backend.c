#include "kernels/backend.h"

#include <string.h>

const char *backend_op_name(enum backend_op op)
{
    static const char *const name[OP_COUNT] = {"linear",    "linear.back",    "head", "low-rank",
                                               "attention", "attention.back", "norm", "rope",
                                               "gate",      "copy",           "adamw"};
    return op < OP_COUNT ? name[op] : "?";
}

err backend_find(const struct backend **out, const char *device)
{
    if (!device || !strcmp(device, "auto") || !strcmp(device, "cpu")) {
        *out = &backend_cpu;
        return ERR_NONE;
    }
    if (!strncmp(device, "cuda", 4) && (device[4] == 0 || device[4] == ':'))
        return err_make(ERR_INPUT, "device %s: this build has no CUDA; use cpu or auto", device);
    return err_make(ERR_INPUT, "device %s: expected cpu, cuda, cuda:N or auto", device);
}
