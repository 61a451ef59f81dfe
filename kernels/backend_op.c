/* Apart from backend.c, because the library of CUDA kernels needs it too. */
#include "kernels/backend.h"

const char *backend_op_name(enum backend_op op)
{
    static const char *const name[OP_COUNT] = {"linear",    "linear.back",    "head", "low-rank",
                                               "attention", "attention.back", "norm", "rope",
                                               "gate",      "copy",           "adamw"};
    return op < OP_COUNT ? name[op] : "?";
}
