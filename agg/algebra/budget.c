#include "agg/algebra/budget.h"

#include <errno.h>
#include <stdlib.h>

struct direction { /* one singular value and its s^2 per byte */
    double worth;
    uint32_t order;
    size_t module;
};

/* The most valuable first. Ties are broken by module and order, so that the result is the same for
 * every implementation of qsort(). */
static int by_worth(const void *a, const void *b)
{
    const struct direction *x = a, *y = b;
    if (x->worth != y->worth) return x->worth > y->worth ? -1 : 1;
    if (x->module != y->module) return x->module < y->module ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static double cost_of(const struct budget_module *m)
{
    return 4.0 * ((double)m->m + m->n);
}

/* Every direction but the first of each module, which is kept in any case. */
static size_t list(struct direction *out, const struct budget_module *module, size_t count)
{
    size_t n = 0;
    for (size_t i = 0; i < count; i++)
        for (uint32_t j = 1; j < module[i].k && module[i].sigma[j] > 0; j++) {
            double s = module[i].sigma[j];
            out[n++] = (struct direction){s * s / cost_of(&module[i]), j, i};
        }
    return n;
}

err budget_spend(uint32_t *rank, const struct budget_module *module, size_t count, uint64_t bytes)
{
    double left = (double)bytes;
    size_t room = 0;
    for (size_t i = 0; i < count; i++) {
        room += module[i].k;
        if (module[i].k) left -= cost_of(&module[i]);
    }
    if (left < 0)
        return err_make(ERR_INPUT, "%llu bytes are too few for rank 1 of every module",
                        (unsigned long long)bytes);
    struct direction *all = calloc(room + 1, sizeof *all);
    if (!all) return err_sys(ENOMEM, "%zu singular values", room);
    size_t n = list(all, module, count);
    if (n) qsort(all, n, sizeof *all, by_worth);
    for (size_t i = 0; i < count; i++)
        rank[i] = module[i].k > 0;
    for (size_t i = 0; i < n && cost_of(&module[all[i].module]) <= left; i++) {
        rank[all[i].module] = all[i].order + 1;
        left -= cost_of(&module[all[i].module]);
    }
    free(all);
    return ERR_NONE;
}
