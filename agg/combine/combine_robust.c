/* Robust rules, and how far the adapters agree; contract in combine.h. */
#include "agg/algebra/matrix.h"
#include "agg/combine/combine_parts.h"
#include "agg/round/method_diagnose.h"
#include "agg/round/method_robust.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* total += the inner products of every module. `ordered` adds them in the order of modules, so that
 * the bits do not depend on the threads. */
static err all_modules(double *total, struct combine *c, const struct combine_options *o,
                       int threads)
{
    size_t count = c->file_count, size = count * count;
    err failed = ERR_NONE;
#pragma omp parallel num_threads(threads)
    {
        double *part = NULL;
        err mine = matrix_take(&part, size, 1);
#pragma omp for ordered schedule(dynamic, 1)
        for (size_t i = 0; i < c->count; i++) {
            err e = err_is(mine) ? mine : combine_gram(part, c, o, i);
            if (!err_is(e) && o->compare) method_diagnose_cosines(&c->compared[i], part, count);
#pragma omp ordered
            {
                if (err_is(e) && !err_is(failed)) failed = e;
                for (size_t j = 0; j < size && !err_is(e); j++)
                    total[j] += part[j];
            }
        }
        free(part);
    }
    return failed;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static err bounded(double *p, const double *gram, size_t count, double bound)
{
    double *norm = NULL;
    TRY(matrix_take(&norm, count, 2));
    for (size_t k = 0; k < count; k++)
        norm[k] = norm[count + k] = sqrt(fmax(0, gram[k * count + k]));
    qsort(norm + count, count, sizeof *norm, by_value);
    double median = (norm[count + (count - 1) / 2] + norm[count + count / 2]) / 2;
    method_robust_norm(p, norm, count, bound > 0 ? bound : median);
    free(norm);
    return ERR_NONE;
}

err combine_robust(struct combine *c, const struct combine_options *o, int threads)
{
    const struct method_options *rule = &c->options;
    size_t count = c->file_count;
    double *gram = NULL;
    if (rule->robust == METHOD_ROBUST_NONE && !o->compare) return ERR_NONE;
    if (count > LIMIT_ROBUST_MEMBERS)
        return err_make(ERR_LIMIT, "%zu adapters, at most %d when all pairs are compared", count,
                        LIMIT_ROBUST_MEMBERS);
    if (o->compare) TRY(arena_take(&c->compared, &c->arena, c->count + 1, sizeof *c->compared));
    TRY(matrix_take(&gram, count, count));
    err e = all_modules(gram, c, o, threads);
    if (!err_is(e) && o->compare) method_diagnose_cosines(&c->compared[c->count], gram, count);
    if (!err_is(e) && rule->robust == METHOD_ROBUST_NORM)
        e = bounded(c->p, gram, count, rule->robust_norm);
    else if (!err_is(e) && rule->robust == METHOD_ROBUST_KRUM)
        e = method_robust_krum(c->p, gram, count, rule->robust_faulty);
    else if (!err_is(e) && rule->robust == METHOD_ROBUST_GEOMETRIC)
        e = method_robust_geometric(c->p, gram, count);
    free(gram);
    return e;
}
