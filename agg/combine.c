#include "agg/combine.h"

#include "agg/method_round.h"

#include <errno.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

void combine_close(struct combine *c)
{
    for (size_t i = 0; i < c->file_count; i++)
        adapter_file_close(&c->file[i]);
    method_report_close(&c->report);
    arena_close(&c->arena);
    *c = (struct combine){0};
}

/* ---- what there is to combine ---- */

static err check_file(const struct adapter_file *f)
{
    for (size_t i = 0; i < f->count; i++) {
        const struct adapter_file_module *m = &f->module[i];
        if (m->carry_rank || m->factor[ADAPTER_FILE_R].tensor ||
            (m->rank && (!m->factor[ADAPTER_FILE_A].tensor || !m->factor[ADAPTER_FILE_B].tensor)))
            return err_make(ERR_INPUT, "%s: module %s: expected A and B only; export it first",
                            f->path, m->name);
    }
    return ERR_NONE;
}

static err open_files(struct combine *c, const struct combine_options *o)
{
    double sum = 0;
    TRY(arena_take(&c->file, &c->arena, o->count, sizeof *c->file));
    TRY(arena_take(&c->p, &c->arena, o->count, sizeof *c->p));
    for (size_t k = 0; k < o->count; k++) {
        double w = o->weight ? o->weight[k] : 1;
        if (!(w > 0) || !isfinite(w))
            return err_make(ERR_INPUT, "%s: weight %g, expected a number above zero", o->path[k],
                            w);
        TRY(adapter_file_map(&c->file[k], o->path[k]));
        c->file_count++;
        TRY(check_file(&c->file[k]));
        c->p[k] = w;
        sum += w;
    }
    for (size_t k = 0; k < o->count; k++)
        c->p[k] /= sum;
    return ERR_NONE;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct adapter_file_module *)a)->name,
                  ((const struct adapter_file_module *)b)->name);
}

/* Every module that some adapter has, once; shapes agree. */
static err list_modules(struct combine *c)
{
    size_t room = 0, kept = 0;
    for (size_t k = 0; k < c->file_count; k++)
        room += c->file[k].count;
    TRY(arena_take(&c->module, &c->arena, room, sizeof *c->module));
    for (size_t k = 0; k < c->file_count; k++)
        for (size_t i = 0; i < c->file[k].count; i++)
            if (c->file[k].module[i].rank) c->module[c->count++] = c->file[k].module[i];
    if (c->count == 0) return err_make(ERR_INPUT, "no adapted module in any of these");
    qsort(c->module, c->count, sizeof *c->module, by_name);
    for (size_t i = 0; i < c->count; i++) {
        const struct adapter_file_module *m = &c->module[i];
        const struct adapter_file_module *last = &c->module[kept - (kept > 0)];
        if (kept == 0 || strcmp(last->name, m->name) != 0)
            c->module[kept++] = *m;
        else if (last->d_out != m->d_out || last->d_in != m->d_in)
            return err_make(ERR_INPUT,
                            "module %s is (%u, %u) in one adapter and (%u, %u) in another", m->name,
                            last->d_out, last->d_in, m->d_out, m->d_in);
    }
    c->count = kept;
    return ERR_NONE;
}

static err agree(struct combine *c, const struct combine_options *o)
{
    const struct adapter_file_meta *first = &c->file[0].meta;
    c->meta = (struct adapter_file_meta){.fan_in_fan_out = first->fan_in_fan_out};
    if (!o->method->carries) c->meta.rslora = first->rslora;
    for (size_t k = 1; k < c->file_count; k++) {
        const struct adapter_file_meta *m = &c->file[k].meta;
        if (m->fan_in_fan_out != first->fan_in_fan_out)
            return err_make(ERR_INPUT, "%s: fan_in_fan_out differs from %s's", c->file[k].path,
                            c->file[0].path);
        if (m->base[0] && first->base[0] && strcmp(m->base, first->base) != 0)
            return err_make(ERR_INPUT, "%s: made for another base than %s", c->file[k].path,
                            c->file[0].path);
        if (!o->method->carries && m->rslora != first->rslora)
            return err_make(ERR_INPUT, "%s: rslora differs from %s's; %s needs one scale for all",
                            c->file[k].path, c->file[0].path, o->method->name);
    }
    return ERR_NONE;
}

/* ---- one module ---- */

struct work {
    struct arena arena;                         /* what was read */
    struct adapter_file_module *copy;           /* (file_count) all float32 */
    const struct adapter_file_module **present; /* (file_count), NULL where it has none */
    struct lowrank_term *term;
    struct lowrank_stack stack;
};

static err work_open(struct work *w, const struct combine *c, size_t i)
{
    size_t n = c->file_count;
    struct adapter_file_module *copy;
    TRY(arena_take(&copy, &w->arena, n, sizeof *copy));
    TRY(arena_take(&w->present, &w->arena, n, sizeof *w->present));
    TRY(arena_take(&w->term, &w->arena, n, sizeof *w->term));
    w->stack =
        (struct lowrank_stack){.m = c->module[i].d_out, .n = c->module[i].d_in, .term = w->term};
    for (size_t k = 0; k < n; k++) {
        const struct adapter_file_module *m = adapter_file_find(&c->file[k], c->module[i].name);
        if (!m || !m->rank) continue;
        copy[k] = *m;
        for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++)
            TRY(adapter_file_f32(&copy[k].factor[r].f32, &m->factor[r], &w->arena));
        TRY(adapter_file_check_finite(&c->file[k], m));
        w->present[k] = &copy[k];
        w->term[w->stack.count++] = (struct lowrank_term){.c = c->p[k] * m->scale,
                                                          .B = copy[k].factor[ADAPTER_FILE_B].f32,
                                                          .A = copy[k].factor[ADAPTER_FILE_A].f32,
                                                          .r = m->rank};
    }
    w->copy = copy;
    return ERR_NONE;
}

static void work_close(struct work *w, const struct combine *c)
{
    for (size_t k = 0; k < c->file_count; k++)
        adapter_file_drop(&c->file[k]);
    arena_close(&w->arena);
}

/* The exact sum, recompressed. A module that adds nothing keeps rank 1, all zero. */
static err product(struct method_result *out, const struct work *w, const struct lowrank_cut *cut)
{
    struct lowrank_svd svd = {0};
    uint32_t q;
    double tail, rounding = 0;
    float *A, *B;
    err e = ERR_NONE;
    TRY(lowrank_svd_open(&svd, &w->stack, w->stack.count));
    lowrank_cut(&q, &tail, &svd, cut);
    uint32_t rank = q ? q : 1;
    TRY_OUT(e, method_result_take(&B, out, ADAPTER_FILE_B, svd.m, rank));
    TRY_OUT(e, method_result_take(&A, out, ADAPTER_FILE_A, rank, svd.n));
    TRY_OUT(e, lowrank_split(B, A, &rounding, &svd, q, LOWRANK_BALANCED));
    out->module.rank = rank;
    out->module.alpha = rank;
    out->module.scale = 1;
    out->row =
        (struct method_report_row){.rank = rank,
                                   .update_norm = svd.norm,
                                   .error = hypot(tail, rounding),
                                   .dropped = tail,
                                   .state_norm = sqrt(fmax(0, svd.norm * svd.norm - tail * tail))};
out:
    lowrank_svd_close(&svd);
    return e;
}

/* The method's own next state from one that adds nothing. */
static err averaged(struct method_result *out, struct work *w, const struct combine *c, size_t i,
                    const struct method *method)
{
    struct adapter_file_module zero = c->module[i];
    float *none;
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
        struct adapter_file_factor *x = &zero.factor[r];
        TRY(arena_take(&none, &w->arena, (size_t)x->rows * x->cols, sizeof *none));
        *x = (struct adapter_file_factor){.f32 = none, .rows = x->rows, .cols = x->cols};
    }
    const struct method_round round = {
        .module = &zero, .update = w->present, .p = c->p, .count = c->file_count};
    TRY(method->next(out, &round));
    out->module.alpha = zero.alpha;
    out->module.scale = zero.scale;
    return ERR_NONE;
}

static err combine_module(struct method_result *out, const struct combine *c,
                          const struct combine_options *o, size_t i, uint32_t rank_max)
{
    struct work w = {0};
    struct lowrank_cut cut = o->cut;
    if (rank_max) cut.rank_max = rank_max;
    err e = work_open(&w, c, i);
    if (!err_is(e))
        e = o->method->carries ? product(out, &w, &cut) : averaged(out, &w, c, i, o->method);
    out->row.sent = (uint32_t)w.stack.count;
    work_close(&w, c);
    return e;
}

/* ---- a budget of bytes over all modules ---- */

struct direction { /* one singular value, what keeping it is worth and costs */
    double worth;
    uint32_t module, order;
};

static int by_worth(const void *a, const void *b)
{
    const struct direction *x = a, *y = b;
    if (x->worth != y->worth) return x->worth > y->worth ? -1 : 1;
    if (x->module != y->module) return x->module < y->module ? -1 : 1;
    return x->order < y->order ? -1 : 1;
}

static err sigma_of(struct lowrank_svd *svd, const struct combine *c, size_t i)
{
    struct work w = {0};
    err e = work_open(&w, c, i);
    if (!err_is(e)) e = lowrank_svd_open(svd, &w.stack, 0);
    work_close(&w, c);
    return e;
}

/* rank[i] such that sum rank (m + n) 4 <= bytes, the largest s^2 / (m + n) first: best in the
 * Frobenius norm over all modules together. Every module keeps at least one. */
static err spend(uint32_t *rank, const struct combine *c, const struct combine_options *o)
{
    struct direction *all = NULL;
    size_t used = 0, count = 0;
    double left = (double)o->bytes;
    err e = ERR_NONE;
    for (size_t i = 0; i < c->count && !err_is(e); i++) {
        struct lowrank_svd svd = {0};
        double cost = 4.0 * ((double)c->module[i].d_out + c->module[i].d_in);
        TRY_OUT(e, sigma_of(&svd, c, i));
        struct direction *more = realloc(all, (count + svd.k) * sizeof *all);
        if (!more && svd.k) e = err_sys(ENOMEM, "singular values");
        if (more) all = more;
        for (uint32_t j = 0; j < svd.k && !err_is(e); j++)
            all[count++] = (struct direction){svd.sigma[j] * svd.sigma[j] / cost, (uint32_t)i, j};
        lowrank_svd_close(&svd);
        rank[i] = 1;
        left -= cost;
    }
    if (!err_is(e) && left < 0)
        e = err_make(ERR_INPUT, "%llu bytes do not hold rank 1 of every module",
                     (unsigned long long)o->bytes);
    if (err_is(e)) goto out;
    qsort(all, count, sizeof *all, by_worth);
    for (; used < count; used++) {
        const struct direction *d = &all[used];
        double cost = 4.0 * ((double)c->module[d->module].d_out + c->module[d->module].d_in);
        if (d->order == 0 || d->worth == 0) continue;
        if (cost > left) break;
        rank[d->module] = d->order + 1;
        left -= cost;
    }
out:
    free(all);
    return e;
}

/* ---- all ---- */

static err keep(struct combine *c, struct method_result *from, size_t i)
{
    struct adapter_file_module *to = &c->module[i];
    const char *name = to->name;
    TRY(arena_text(&c->report.row[i].module, &c->report.arena, name, strlen(name)));
    to->rank = from->module.rank;
    to->alpha = from->module.alpha;
    to->scale = from->module.scale;
    for (int r = ADAPTER_FILE_A; r <= ADAPTER_FILE_B; r++) {
        struct adapter_file_factor x = from->module.factor[r];
        float *values;
        size_t count = (size_t)x.rows * x.cols;
        TRY(arena_take(&values, &c->arena, count, sizeof *values));
        memcpy(values, x.f32, count * sizeof *values);
        to->factor[r] = (struct adapter_file_factor){.f32 = values, .rows = x.rows, .cols = x.cols};
    }
    return ERR_NONE;
}

static void sum_up(struct combine *c)
{
    struct method_report_row *t = &c->report.total;
    for (size_t i = 0; i < c->count; i++) {
        const struct method_report_row *r = &c->report.row[i];
        t->rank = r->rank > t->rank ? r->rank : t->rank;
        t->sent = r->sent > t->sent ? r->sent : t->sent;
        t->update_norm = hypot(t->update_norm, r->update_norm);
        t->error = hypot(t->error, r->error);
        t->dropped = hypot(t->dropped, r->dropped);
        t->state_norm = hypot(t->state_norm, r->state_norm);
    }
    c->report.count = c->count;
}

static err combine_all(struct combine *c, const struct combine_options *o)
{
    uint32_t *rank = NULL;
    err failed = ERR_NONE;
    size_t first = SIZE_MAX;
    int threads = o->threads > 0 ? o->threads : omp_get_max_threads();
    TRY(arena_take(&rank, &c->arena, c->count, sizeof *rank));
    TRY(arena_take(&c->report.row, &c->report.arena, c->count, sizeof *c->report.row));
    if (o->bytes) TRY(spend(rank, c, o));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < c->count; i++) {
        struct method_result out = {0};
        err e = combine_module(&out, c, o, i, rank[i]);
        c->report.row[i] = out.row;
#pragma omp critical(combine_all)
        {
            if (!err_is(e)) e = keep(c, &out, i);
            if (err_is(e) && i < first) {
                failed = e;
                first = i;
            }
        }
        arena_close(&out.arena);
    }
    if (!err_is(failed)) sum_up(c);
    return failed;
}

err combine_open(struct combine *out, const struct combine_options *options)
{
    struct combine c = {0};
    err e = ERR_NONE;
    if (options->count == 0) return err_make(ERR_INPUT, "no adapter to combine");
    if (options->method->factors(1) & METHOD_R)
        return err_make(ERR_INPUT, "%s combines small matrices, not LoRA adapters",
                        options->method->name);
    bool cuts = options->bytes || options->cut.rank_max || options->cut.error > 0 ||
                options->cut.energy > 0;
    if (cuts && !options->method->carries)
        return err_make(ERR_INPUT, "%s keeps the rank it was given: nothing to cut",
                        options->method->name);
    TRY_OUT(e, open_files(&c, options));
    TRY_OUT(e, agree(&c, options));
    TRY_OUT(e, list_modules(&c));
    int before = lowrank_begin();
    e = combine_all(&c, options);
    lowrank_end(before);
    if (err_is(e)) goto out;
    *out = c;
    return ERR_NONE;
out:
    combine_close(&c);
    return e;
}

/* ---- the independent check ---- */

/* sum (m, n) += c B A, by loops. */
static err add_plain(double *sum, const struct adapter_file_module *m, double c)
{
    struct arena arena = {0};
    const float *A, *B;
    err e = adapter_file_f32(&A, &m->factor[ADAPTER_FILE_A], &arena);
    if (!err_is(e)) e = adapter_file_f32(&B, &m->factor[ADAPTER_FILE_B], &arena);
    if (err_is(e)) goto out;
    for (size_t i = 0; i < m->d_out; i++)
        for (size_t l = 0; l < m->rank; l++) {
            double b = c * m->scale * (double)B[i * m->rank + l];
            for (size_t j = 0; j < m->d_in; j++)
                sum[i * m->d_in + j] += b * (double)A[l * m->d_in + j];
        }
out:
    arena_close(&arena);
    return e;
}

static double norm_of(const double *x, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += x[i] * x[i];
    return sqrt(sum);
}

err combine_verify(double *error, double *norm, const struct combine *c, size_t i,
                   const struct adapter_file *result)
{
    const struct adapter_file_module *m = &c->module[i];
    size_t size = (size_t)m->d_out * m->d_in;
    double *sum = calloc(size, sizeof *sum);
    err e = ERR_NONE;
    if (!sum) return err_sys(ENOMEM, "module %s", m->name);
    for (size_t k = 0; k < c->file_count; k++) {
        const struct adapter_file_module *x = adapter_file_find(&c->file[k], m->name);
        if (x && x->rank) TRY_OUT(e, add_plain(sum, x, c->p[k]));
    }
    double exact = norm_of(sum, size);
    const struct adapter_file_module *got = result ? adapter_file_find(result, m->name) : m;
    if (!got) {
        e = err_make(ERR_INPUT, "%s: module %s is missing", result->path, m->name);
        goto out;
    }
    TRY_OUT(e, add_plain(sum, got, -1));
    *error = norm_of(sum, size);
    *norm = exact;
out:
    free(sum);
    return e;
}
