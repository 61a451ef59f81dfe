#include "agg/round/method_budget.h"

#include "agg/algebra/budget.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static err spectrum_of(struct budget_module *out, const struct method *method,
                       const struct method_cohort *c, const struct method_round *common, size_t i)
{
    struct method_view view = {0};
    struct method_round round = *common;
    struct lowrank_svd svd = {0};
    double *sigma = NULL;
    err e = ERR_NONE;
    TRY(method_view_open(&view, &round, c, i));
    TRY_OUT(e, method->spectrum(&svd, &round));
    *out = (struct budget_module){view.state.d_out, view.state.d_in, svd.k, NULL};
    if (svd.norm == 0) out->k = 0; /* no member sent or changed the module, so it costs no bytes */
    if (out->k) sigma = calloc(out->k, sizeof *sigma);
    if (out->k && !sigma) {
        e = err_sys(ENOMEM, "%u singular values", out->k);
        goto out;
    }
    if (out->k) memcpy(sigma, svd.sigma, out->k * sizeof *sigma);
    out->sigma = sigma;
out:
    lowrank_svd_close(&svd);
    method_view_close(&view, c);
    return e;
}

err method_budget(uint32_t **rank, const struct method *method, struct method_cohort *c,
                  const struct method_round *common, int threads)
{
    size_t count = c->state.count, first = SIZE_MAX;
    err failed = ERR_NONE; /* of the first module that failed, whichever thread had it */
    *rank = NULL;
    if (!method->spectrum || !c->options.bytes) return ERR_NONE;
    struct budget_module *module = calloc(count + 1, sizeof *module);
    if (!module) return err_sys(ENOMEM, "%zu modules", count);
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < count; i++) {
        err one = spectrum_of(&module[i], method, c, common, i);
#pragma omp critical(method_budget)
        if (err_is(one) && i < first) {
            failed = one;
            first = i;
        }
    }
    lowrank_end(before);
    if (!err_is(failed)) failed = arena_take(rank, &c->arena, count, sizeof **rank);
    if (!err_is(failed)) failed = budget_spend(*rank, module, count, c->options.bytes);
    for (size_t i = 0; i < count; i++)
        free((void *)(uintptr_t)module[i].sigma);
    free(module);
    return failed;
}
