#include "agg/round/method_round.h"

#include <stdlib.h>
#include <string.h>

err method_result_take(float **values, struct method_result *out, enum adapter_file_role role,
                       uint32_t rows, uint32_t cols)
{
    float *x;
    TRY(arena_take(&x, &out->arena, (size_t)rows * cols, sizeof *x));
    out->module.factor[role] = (struct adapter_file_factor){.f32 = x, .rows = rows, .cols = cols};
    *values = x;
    return ERR_NONE;
}

void method_result_keep(struct method_result *out, const struct adapter_file_module *from,
                        enum adapter_file_role role)
{
    out->module.factor[role] = from->factor[role];
}

err method_result_carry(struct method_result *out, const struct lowrank_svd *svd, uint32_t q)
{
    float *B, *A;
    out->module.carry_rank = q;
    if (q == 0) return ERR_NONE;
    TRY(method_result_take(&B, out, ADAPTER_FILE_CARRY_B, svd->m, q));
    TRY(method_result_take(&A, out, ADAPTER_FILE_CARRY_A, q, svd->n));
    return lowrank_split(B, A, /*rounding*/ NULL, svd, q, LOWRANK_BALANCED);
}

void method_stack_done(void *context, size_t term)
{
    const struct method_stack *s = context;
    if (s->round->done && s->member[term] != SIZE_MAX) s->round->done(s->round, s->member[term]);
}
