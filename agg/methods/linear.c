#include "agg/methods/linear.h"

err linear_next(float **mean, struct method_result *out, const struct method_round *round,
                enum adapter_file_role role)
{
    const struct adapter_file_module *old = round->module;
    bool a = role == ADAPTER_FILE_A;
    uint32_t rows = a ? old->rank : old->d_out, cols = a ? old->d_in : old->rank;
    if (!old->factor[role].f32)
        return err_make(ERR_INPUT, "the state has no adapter for module %s", old->name);
    for (size_t k = 0; k < round->count; k++) {
        const struct adapter_file_module *u = round->update[k];
        if (u && (u->rank > old->rank || !u->factor[role].f32))
            return err_make(ERR_INPUT, "module %s: expected lora_%c of rank at most %u", u->name,
                            a ? 'A' : 'B', old->rank);
    }
    out->module.rank = out->row.rank = old->rank;
    TRY(method_result_take(mean, out, role, rows, cols));
    return method_mean(*mean, round, role, (size_t)rows * cols);
}
