#include "agg/combine/combine_parts.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

void combine_close(struct combine *c)
{
    for (size_t i = 0; i < c->file_count; i++)
        adapter_file_close(&c->file[i]);
    method_state_close(&c->state);
    method_report_close(&c->report);
    arena_close(&c->arena);
    *c = (struct combine){0};
}

bool combine_sums(const struct method *method)
{
    return method->aggregate.way == METHOD_AGGREGATE_SUM;
}

/* ---- options ---- */

static err check_method(const struct method *method)
{
    const struct method_aggregate *a = &method->aggregate;
    if (a->way == METHOD_AGGREGATE_SUM || a->way == METHOD_AGGREGATE_FACTORS) return ERR_NONE;
    return err_make(ERR_INPUT, "%s %s", method->name,
                    a->text ? a->text : "cannot combine adapters");
}

/* The method's own cut, used if the user asked for none. */
static void set_own_cut(struct combine *c, const struct method *method)
{
    switch (method->aggregate.cut) {
    case METHOD_AGGREGATE_CUT_NONE:
        return;
    case METHOD_AGGREGATE_CUT_LARGEST:
        c->cut_to_sent = c->options.tail == METHOD_TAIL_DROP;
        return;
    case METHOD_AGGREGATE_CUT_ENERGY:
        c->bytes = c->options.bytes;
        c->cut.energy = c->bytes ? 0 : c->options.energy;
        return;
    }
}

static err check_options(struct combine *c, const struct combine_options *o)
{
    const char *name = o->method->name;
    TRY(check_method(o->method));
    if (o->options)
        c->options = *o->options;
    else
        TRY(method_options_parse(&c->options, o->method, NULL, 0));
    if (c->options.server != METHOD_SERVER_NONE)
        return err_make(ERR_INPUT, "server=%s: a server optimizer needs the rounds of a run",
                        method_options_choice(&c->options, "server"));
    c->cut = o->cut;
    c->bytes = o->bytes;
    c->stack = o->stack;
    bool cuts = c->stack || c->bytes || c->cut.rank_max || c->cut.error > 0 || c->cut.energy > 0;
    if (cuts && !combine_sums(o->method))
        return err_make(ERR_INPUT, "%s keeps the rank of its adapters: there is nothing to cut",
                        name);
    if (c->stack && !o->method->aggregate.stack)
        return err_make(ERR_INPUT, "%s cannot give the stack of all factors; flora can", name);
    if (!cuts) set_own_cut(c, o->method);
    return ERR_NONE;
}

/* ---- adapters and their modules ---- */

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

/* Weights above zero are shares of their sum. With a negative one the sum says nothing (it may be
 * zero), so all are used as they are given: task arithmetic. */
static err shares(struct combine *c, const struct combine_options *o)
{
    double sum = 0;
    bool negative = false;
    for (size_t k = 0; k < o->count; k++) {
        double w = o->weight ? o->weight[k] : 1;
        if (w == 0 || !isfinite(w))
            return err_make(ERR_INPUT, "%s: weight %g, expected a number other than zero",
                            o->path[k], w);
        negative = negative || w < 0;
        c->p[k] = w;
        sum += w;
    }
    if (!isfinite(sum)) return err_make(ERR_INPUT, "the sum of the weights is not finite");
    if (negative && (!combine_sums(o->method) || c->options.robust != METHOD_ROBUST_NONE))
        return err_make(ERR_INPUT,
                        "a negative weight needs a method that adds changes (flora, florist, "
                        "flexlora), without a robust rule");
    for (size_t k = 0; k < o->count; k++)
        c->share[k] = c->p[k] /= negative ? 1 : sum;
    return ERR_NONE;
}

static err open_files(struct combine *c, const struct combine_options *o)
{
    TRY(arena_take(&c->file, &c->arena, o->count, sizeof *c->file));
    TRY(arena_take(&c->p, &c->arena, o->count, sizeof *c->p));
    TRY(arena_take(&c->share, &c->arena, o->count, sizeof *c->share));
    TRY(shares(c, o));
    for (size_t k = 0; k < o->count; k++) {
        TRY(o->open ? o->open(o->base, &c->file[k], o->path[k])
                    : adapter_file_map_whole(&c->file[k], o->path[k]));
        c->file_count++;
        TRY(check_file(&c->file[k]));
    }
    return ERR_NONE;
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const struct adapter_file_module *)a)->name,
                  ((const struct adapter_file_module *)b)->name);
}

/* Lists the modules of all adapters, each once. ERR_INPUT if shapes differ. */
static err list_modules(struct combine *c)
{
    size_t room = 0, kept = 0;
    for (size_t k = 0; k < c->file_count; k++)
        room += c->file[k].count;
    TRY(arena_take(&c->module, &c->arena, room, sizeof *c->module));
    for (size_t k = 0; k < c->file_count; k++)
        for (size_t i = 0; i < c->file[k].count; i++)
            if (c->file[k].module[i].rank) c->module[c->count++] = c->file[k].module[i];
    if (c->count == 0) return err_make(ERR_INPUT, "none of these adapters has an adapted module");
    qsort(c->module, c->count, sizeof *c->module, by_name);
    for (size_t i = 0; i < c->count; i++) {
        const struct adapter_file_module *m = &c->module[i];
        const struct adapter_file_module *last = &c->module[kept - (kept > 0)];
        if (kept == 0 || strcmp(last->name, m->name) != 0)
            c->module[kept++] = *m;
        else if (last->d_out != m->d_out || last->d_in != m->d_in ||
                 last->embedding != m->embedding)
            return err_make(ERR_INPUT,
                            "module %s is (%u, %u) in one adapter and (%u, %u) in another", m->name,
                            last->d_out, last->d_in, m->d_out, m->d_in);
    }
    c->count = kept;
    return ERR_NONE;
}

/* Two adapters count as having the same base unless both name one and the names differ. */
static bool differ(const char *a, const char *b)
{
    return a[0] && b[0] && strcmp(a, b) != 0;
}

static err agree(struct combine *c, const struct combine_options *o)
{
    const struct adapter_file_meta *first = &c->file[0].meta;
    c->meta = (struct adapter_file_meta){.fan_in_fan_out = first->fan_in_fan_out,
                                         .base_path = first->base_path,
                                         .root = first->root,
                                         .task_type = first->task_type};
    bool sums = combine_sums(o->method);
    if (!sums) c->meta.rslora = first->rslora;
    for (size_t k = 1; k < c->file_count; k++) {
        const struct adapter_file_meta *m = &c->file[k].meta;
        const char *path = c->file[k].path, *other = c->file[0].path;
        if (m->fan_in_fan_out != first->fan_in_fan_out)
            return err_make(ERR_INPUT, "%s: fan_in_fan_out differs from %s's", path, other);
        if (differ(m->base, first->base))
            return err_make(ERR_INPUT, "%s: its base is not that of %s", path, other);
        if (!sums && m->rslora != first->rslora)
            return err_make(ERR_INPUT, "%s: rslora differs from %s's; %s needs one scale for all",
                            path, other, o->method->name);
        /* Names are written as the adapters have them, or plainly if they differ. */
        if (m->root != first->root) c->meta.root = NULL;
        if (differ(m->task_type, first->task_type))
            return err_make(ERR_INPUT, "%s: task_type %s, %s has %s", path, m->task_type, other,
                            first->task_type);
        if (differ(m->base_path, first->base_path) && !o->any_base)
            return err_make(ERR_INPUT,
                            "%s: base_model_name_or_path \"%s\", but %s has \"%s\"; --force "
                            "combines them if both name the same model",
                            path, m->base_path, other, first->base_path);
        if (strcmp(m->base_path, first->base_path) != 0) c->meta.base_path = "";
    }
    return ERR_NONE;
}

/* ---- all ---- */

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

/* Combines one module, into the scratch file and the report. */
static err one_module(struct combine *c, const struct combine_options *o, size_t i, uint32_t rank)
{
    struct method_result out = {0};
    const char *name = c->module[i].name;
    err e = combine_module(&out, c, o, i, rank);
    c->report.row[i] = out.row;
    if (!err_is(e)) e = method_state_put(&c->state, i, name, &out);
    arena_close(&out.arena);
    return e;
}

static err combine_all(struct combine *c, const struct combine_options *o)
{
    uint32_t *rank = NULL;
    err failed = ERR_NONE;
    size_t first = SIZE_MAX, done = 0;
    int threads = o->threads > 0 ? o->threads : omp_get_max_threads();
    TRY(arena_take(&rank, &c->arena, c->count, sizeof *rank));
    TRY(combine_robust(c, o, threads));
    if (c->bytes) TRY(combine_spend(rank, c, threads));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < c->count; i++) {
        size_t failed_at;
#pragma omp atomic read
        failed_at = first;
        if (failed_at < i) continue; /* the error of an earlier module will be returned */
        err e = one_module(c, o, i, rank[i]);
#pragma omp critical(combine_all)
        {
            if (!err_is(e) && o->step) e = o->step(o->context, ++done, c->count);
            if (err_is(e) && i < first) {
                failed = e;
#pragma omp atomic write
                first = i;
            }
        }
    }
    return failed;
}

/* Names the report's rows. Names are copied, because the report may outlive the files. */
static err keep_modules(struct combine *c)
{
    TRY(arena_take(&c->report.row, &c->report.arena, c->count, sizeof *c->report.row));
    for (size_t i = 0; i < c->count; i++) {
        const char *name = c->module[i].name;
        TRY(arena_text(&c->report.row[i].module, &c->report.arena, name, strlen(name)));
    }
    return ERR_NONE;
}

static err combine_results(struct combine *c, const struct combine_options *o)
{
    TRY(method_state_open(&c->state, o->scratch, c->count));
    TRY(keep_modules(c));
    TRY(combine_all(c, o));
    TRY(combine_saved_mean(c));
    TRY(method_state_map(&c->state));
    combine_saved_map(c);
    for (size_t i = 0; i < c->count; i++) {
        const struct adapter_file_module *from = &c->state.module[i];
        struct adapter_file_module *to = &c->module[i];
        to->rank = from->rank;
        to->alpha = from->alpha;
        to->scale = from->scale;
        memcpy(to->factor, from->factor, sizeof to->factor);
    }
    sum_up(c);
    return ERR_NONE;
}

err combine_open(struct combine *out, const struct combine_options *options)
{
    struct combine c = {0};
    err e = ERR_NONE;
    if (options->count == 0) return err_make(ERR_INPUT, "no adapter to combine");
    TRY(check_options(&c, options));
    TRY_OUT(e, open_files(&c, options));
    TRY_OUT(e, agree(&c, options));
    TRY_OUT(e, list_modules(&c));
    TRY_OUT(e, combine_dora_list(&c, options));
    TRY_OUT(e, combine_saved_list(&c));
    int before = lowrank_begin();
    e = combine_results(&c, options);
    lowrank_end(before);
    if (err_is(e)) goto out;
    *out = c;
    return ERR_NONE;
out:
    combine_close(&c);
    return e;
}

err combine_write(const struct combine *c, const char *dir, bool replace)
{
    const struct adapter_file_peft what = {.meta = &c->meta,
                                           .module = c->module,
                                           .count = c->count,
                                           .saved = c->saved,
                                           .saved_count = c->saved_count,
                                           .from = &c->state.map,
                                           .replace = replace};
    return adapter_file_save_peft(dir, &what);
}
