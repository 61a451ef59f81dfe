/* DoRA in sums of adapters; contract in combine.h. With the rows of W0, and
 * g_k = m_k / ||W0 + s_k B_k A_k|| of an adapter with magnitudes (1 of a plain one), the mean of
 * the changes is, row by row,
 *
 *     sum_k p_k (g_k (W0 + s_k B_k A_k) - W0) = (d - 1) W0 + S      d = 1 + sum_k p_k (g_k - 1)
 *                                                                   S = sum_k p_k s_k g_k B_k A_k
 *
 * and W0 plus this is again a DoRA adapter: B A = S / d with m = d ||W0 + B A||. So the mean is
 * exact at the rank of S. */
#include "agg/combine/combine_parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool is_dora(const struct combine *c)
{
    for (size_t k = 0; k < c->file_count; k++)
        if (adapter_file_is_dora(&c->file[k])) return true;
    return false;
}

static err check_dora(const struct combine *c, const struct combine_options *o)
{
    const char *path = c->file[0].path;
    for (size_t k = 0; k < c->file_count; k++)
        if (adapter_file_is_dora(&c->file[k])) path = c->file[k].path;
    if (!o->base_rows)
        return err_make(ERR_INPUT,
                        "%s: use_dora: the change of a DoRA adapter depends on the base: expected "
                        "--base",
                        path);
    if (!combine_sums(o->method) || c->options.robust != METHOD_ROBUST_NONE || o->compare)
        return err_make(ERR_INPUT,
                        "%s: use_dora: DoRA adapters are combined only by methods that add changes "
                        "(flora, florist, flexlora), without a robust rule and --compare",
                        path);
    for (size_t i = 0; i < c->count; i++)
        if (c->module[i].embedding)
            return err_make(ERR_INPUT,
                            "%s: use_dora: PEFT has no DoRA of %s, which another adapter changes",
                            path, c->module[i].name);
    return ERR_NONE;
}

/* PEFT has one use_dora for all modules, so those of plain adapters get a magnitude as well. */
err combine_dora_list(struct combine *c, const struct combine_options *o)
{
    for (size_t i = 0; i < c->count; i++)
        c->module[i].magnitude = (struct adapter_file_factor){0};
    if (!is_dora(c)) return ERR_NONE;
    TRY(check_dora(c, o));
    c->dora = true;
    c->base_rows = o->base_rows;
    c->base = o->base;
    for (size_t i = 0; i < c->count; i++) {
        float *m;
        TRY(arena_take(&m, &c->arena, c->module[i].d_out, sizeof *m));
        c->module[i].magnitude =
            (struct adapter_file_factor){.f32 = m, .rows = c->module[i].d_out, .cols = 1};
    }
    return ERR_NONE;
}

/* sum (n) += c B[row] A */
static void add_product(double *sum, double c, const float *b, const float *a, const size_t size[2])
{
    for (size_t l = 0; l < size[0]; l++)
        for (size_t j = 0; j < size[1]; j++)
            sum[j] += c * (double)b[l] * (double)a[l * size[1] + j];
}

static double norm_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t j = 0; j < n; j++)
        sum += x[j] * x[j];
    return sqrt(sum);
}

struct row { /* of W0, as stored and in float64 */
    float *x;
    double *sum;
};

static err row_take(struct row *out, struct arena *arena, size_t n)
{
    TRY(arena_take(&out->x, arena, n, sizeof *out->x));
    return arena_take(&out->sum, arena, n, sizeof *out->sum);
}

static err row_read(struct row *r, const struct combine *c, size_t i, uint32_t row)
{
    TRY(c->base_rows(r->x, c->base, &c->module[i], row, 1));
    for (size_t j = 0; j < c->module[i].d_in; j++)
        r->sum[j] = (double)r->x[j];
    return ERR_NONE;
}

err combine_dora_scale(struct adapter_file_module *m, double *d, const struct combine *c, size_t i,
                       const struct combine_dora_term *term)
{
    const size_t size[2] = {m->rank, m->d_in};
    const float *magnitude, *b = m->factor[ADAPTER_FILE_B].f32, *a = m->factor[ADAPTER_FILE_A].f32;
    struct row w = {0};
    float *scaled;
    TRY(adapter_file_f32(&magnitude, &m->magnitude, term->arena));
    TRY(row_take(&w, term->arena, m->d_in));
    TRY(arena_take(&scaled, term->arena, (size_t)m->d_out * m->rank, sizeof *scaled));
    for (uint32_t row = 0; row < m->d_out; row++) {
        TRY(row_read(&w, c, i, row));
        add_product(w.sum, m->scale, b + (size_t)row * m->rank, a, size);
        double norm = norm_of(w.sum, m->d_in), gain = norm > 0 ? (double)magnitude[row] / norm : 0;
        d[row] += term->p * (gain - 1);
        for (size_t l = 0; l < m->rank; l++)
            scaled[row * m->rank + l] = (float)(gain * (double)b[row * m->rank + l]);
    }
    m->factor[ADAPTER_FILE_B].f32 = scaled;
    return ERR_NONE;
}

err combine_dora_result(struct method_result *out, const struct combine *c, size_t i,
                        const double *d)
{
    const struct adapter_file_module *m = &c->module[i];
    const size_t size[2] = {out->module.rank, m->d_in};
    const float *a = out->module.factor[ADAPTER_FILE_A].f32;
    float *b = (float *)(uintptr_t)out->module.factor[ADAPTER_FILE_B].f32;
    float *magnitude = (float *)(uintptr_t)m->magnitude.f32;
    struct arena arena = {0};
    struct row w = {0};
    double square = 0;
    err e;
    TRY_OUT(e, row_take(&w, &arena, m->d_in));
    for (uint32_t row = 0; row < m->d_out; row++) {
        float *to = b + row * size[0];
        if (!(fabs(d[row]) > 1e-6)) {
            e = err_make(
                ERR_INPUT,
                "module %s: row %u: the magnitudes cancel, so that no DoRA adapter is their "
                "sum",
                m->name, row);
            goto out;
        }
        for (size_t l = 0; l < size[0]; l++)
            to[l] = (float)((double)to[l] / d[row]);
        TRY_OUT(e, row_read(&w, c, i, row));
        add_product(w.sum, out->module.scale, to, a, size);
        magnitude[row] = (float)(d[row] * norm_of(w.sum, m->d_in));
        for (size_t j = 0; j < m->d_in; j++)
            w.sum[j] = d[row] * w.sum[j] - (double)w.x[j];
        double change = norm_of(w.sum, m->d_in);
        square += change * change;
    }
    out->row.update_norm = out->row.state_norm = sqrt(square);
out:
    arena_close(&arena);
    return e;
}
