#include "sim/spectrum.h"

#include "agg/adapter/flatten.h"
#include "agg/algebra/lowrank.h"
#include "engine/member/member_adapter.h"
#include "engine/member/member_state.h"

/* A module whose change is zero has no spectrum. */
static err add_module(struct spectrum *s, const struct adapter_file_module *m)
{
    struct lowrank_term term[2];
    struct lowrank_stack stack = {.m = m->d_out, .n = m->d_in, .term = term};
    struct lowrank_svd svd;
    stack.count = flatten_terms(term, m);
    if (!stack.count) return ERR_NONE;
    TRY(lowrank_svd_open(&svd, &stack, 0));
    if (svd.k && svd.sigma[0] > 0) {
        for (uint32_t i = 0; i < svd.k && i < SPECTRUM_VALUES; i++)
            s->value[i] += svd.sigma[i] / svd.sigma[0];
        if (svd.k > s->values) s->values = svd.k < SPECTRUM_VALUES ? svd.k : SPECTRUM_VALUES;
        s->modules++;
    }
    lowrank_svd_close(&svd);
    return ERR_NONE;
}

err spectrum_measure(struct spectrum *out, const struct federation *f)
{
    struct federation_paths paths;
    struct member_round round;
    struct member_state state = {0};
    struct spectrum s = {0};
    federation_newest(&paths, &round, f);
    TRY(member_state_open(&state, &round));
    size_t all = state.file.count, count = all < SPECTRUM_MODULES ? all : SPECTRUM_MODULES;
    int before = lowrank_begin();
    err e = ERR_NONE;
    for (size_t i = 0; i < count && !err_is(e); i++)
        e = add_module(&s, &state.file.module[i * all / count]);
    lowrank_end(before);
    member_state_close(&state);
    for (size_t i = 0; i < s.values; i++)
        s.value[i] /= (double)s.modules;
    if (!err_is(e)) *out = s;
    return e;
}
