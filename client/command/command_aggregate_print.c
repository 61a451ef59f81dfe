/* The result of `fedlora aggregate` as JSON and as tables.
 *
 * Both show the same quantities: the share and weight of each adapter, and for each module its
 * rank, the norm of its change and the error. Norms of several modules are combined as the root of
 * the sum of squares, because the modules are blocks of one change. */
#include "client/command/command_aggregate.h"
#include "client/output/report.h"
#include "client/output/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* 0 for a change of norm 0, where a division would give NaN. */
static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

/* ---- JSON ---- */

/* `share` is the given weight as a fraction of the sum; `weight` is the one used, which a robust
 * rule may have changed. */
static json_t *json_adapters(const struct combine *c)
{
    json_t *list = json_array();
    for (size_t k = 0; k < c->file_count; k++)
        json_array_append_new(list, json_pack("{s:s, s:f, s:f, s:I}", "path", c->file[k].path,
                                              "share", c->share[k], "weight", c->p[k], "modules",
                                              (json_int_t)c->file[k].count));
    return list;
}

/* Cosines exist only for modules that at least two adapters change. */
static void put_cosines(json_t *to, const struct combine *c, size_t i)
{
    if (!to || !c->compared || !c->compared[i].pairs) return;
    json_object_set_new(to, "cosine_mean", json_real(c->compared[i].cosine_mean));
    json_object_set_new(to, "cosine_least", json_real(c->compared[i].cosine_least));
}

/* One object per module, in the order of the file, also without --verbose: programs filter by
 * name. */
static json_t *json_modules(const struct aggregate_command *o, const struct combine *c,
                            const struct aggregate_checked *v)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->count; i++) {
        const struct method_report_row *row = &c->report.row[i];
        json_t *one = json_pack("{s:s, s:I, s:I, s:f, s:f, s:f, s:f}", "name", row->module, "rank",
                                (json_int_t)row->rank, "adapters", (json_int_t)row->sent, "norm",
                                row->update_norm, "error", row->error, "relative_error",
                                ratio(row->error, row->update_norm), "dropped", row->dropped);
        if (one && o->verify) json_object_set_new(one, "verified_error", json_real(v->error[i]));
        put_cosines(one, c, i);
        json_array_append_new(list, one);
    }
    return list;
}

/* Tensors outside of the LoRA modules, such as classification heads, which are averaged
 * elementwise. */
static json_t *json_saved(const struct combine *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < c->saved_count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I}", "name", c->saved[i].name, "values",
                                              (json_int_t)c->saved[i].tensor->count));
    return list;
}

/* The index c->count has the cosines over all modules together. The keys have the names of the
 * columns in the tables, but all digits. */
err aggregate_print_json(const struct aggregate_command *o, const struct combine *c,
                         const struct aggregate_checked *v)
{
    const struct method_report_row *t = &c->report.total;
    json_t *all = json_pack(
        "{s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:o, s:o, s:o}", "method", o->method, "path",
        o->output, "rank_most", (json_int_t)t->rank, "norm", t->update_norm, "error", t->error,
        "relative_error", ratio(t->error, t->update_norm), "dropped", t->dropped, "adapters",
        json_adapters(c), "module", json_modules(o, c, v), "saved", json_saved(c));
    put_cosines(all, c, c->count);
    bool fine = all != NULL;
    if (fine && o->verify)
        fine = json_object_set_new(all, "verified_relative_error",
                                   json_real(ratio(v->total, v->norm))) == 0;
    err e = fine ? report_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(all);
    return e;
}

/* ---- tables ---- */

/* The smallest and largest rank, or number of adapters, of a group of modules. */
struct span {
    uint32_t least, most;
};

static void span_add(struct span *s, uint32_t rank)
{
    if (s->most == 0 || rank < s->least) s->least = rank;
    if (rank > s->most) s->most = rank;
}

static err span_cell(struct table *table, const struct span *s)
{
    if (s->least == s->most) return table_cell(table, "%u", s->most);
    return table_cell(table, "%u to %u", s->least, s->most);
}

/* The share is shown only if a robust rule can make it differ from the weight. */
static err print_adapters(const struct combine *c)
{
    struct table table;
    err e = ERR_NONE;
    bool robust = c->options.robust != METHOD_ROBUST_NONE;
    table_begin(&table, robust ? "lrrrr" : "lrrr");
    TRY_OUT(e, table_cell(&table, "adapter"));
    if (robust) TRY_OUT(e, table_cell(&table, "share"));
    TRY_OUT(e, table_cell(&table, "weight"));
    TRY_OUT(e, table_cell(&table, "modules"));
    TRY_OUT(e, table_cell(&table, "rank"));
    for (size_t k = 0; k < c->file_count; k++) {
        const struct adapter_file *f = &c->file[k];
        struct span ranks = {0};
        for (size_t i = 0; i < f->count; i++)
            span_add(&ranks, f->module[i].rank);
        TRY_OUT(e, table_cell(&table, "%s", f->path));
        if (robust) TRY_OUT(e, table_cell(&table, "%.4f", c->share[k]));
        TRY_OUT(e, table_cell(&table, "%.4f", c->p[k]));
        TRY_OUT(e, table_cell(&table, "%zu", f->count));
        TRY_OUT(e, span_cell(&table, &ranks));
    }
    e = table_print(&table);
out:
    table_close(&table);
    return e;
}

/* Modules of the same kind in all layers, which are printed in one row. */
struct kind {
    const char *name;
    size_t modules;
    struct span rank, sent;
    double norm, error, dropped, verified;
};

/* Adds a module to its kind. Norms and errors add up as the root of the sum of squares. */
static void kind_add(struct kind *k, const struct method_report_row *row, double verified)
{
    k->modules++;
    span_add(&k->rank, row->rank);
    span_add(&k->sent, row->sent);
    k->norm = hypot(k->norm, row->update_norm);
    k->error = hypot(k->error, row->error);
    k->dropped = hypot(k->dropped, row->dropped);
    k->verified = hypot(k->verified, verified);
}

/* The last part of the name, "q_proj", or the whole name with --verbose. */
static const char *kind_name(const char *module, bool whole)
{
    const char *dot = strrchr(module, '.');
    return whole || !dot ? module : dot + 1;
}

/* The columns must be in the order of the heads in print_modules(). */
static err kind_row(struct table *table, const struct kind *k, bool verify)
{
    TRY(table_cell(table, "%s", k->name));
    TRY(table_cell(table, "%zu", k->modules));
    TRY(span_cell(table, &k->sent));
    TRY(span_cell(table, &k->rank));
    TRY(table_cell(table, "%.6g", k->norm));
    TRY(table_cell(table, "%.3g", ratio(k->error, k->norm)));
    TRY(table_cell(table, "%.3g", ratio(k->dropped, k->norm)));
    return verify ? table_cell(table, "%.3g", ratio(k->verified, k->norm)) : ERR_NONE;
}

/* The kinds are searched linearly: there are at most seven, or one per module with --verbose. */
static err print_modules(const struct aggregate_command *o, const struct combine *c,
                         const struct aggregate_checked *v)
{
    static const char *const heads[] = {"module", "number",         "adapters", "rank",
                                        "norm",   "relative error", "cut off",  "recomputed"};
    struct table table;
    /* One entry per module is enough for any grouping. */
    struct arena arena = {0};
    struct kind *kind, all = {.name = "all"};
    size_t kinds = 0;
    err e = ERR_NONE;
    table_begin(&table, o->verify ? "lrrrrrrr" : "lrrrrrr");
    TRY_OUT(e, arena_take(&kind, &arena, c->count, sizeof *kind));
    TRY_OUT(e, table_row(&table, heads));
    for (size_t i = 0; i < c->count; i++) {
        const struct method_report_row *row = &c->report.row[i];
        const char *name = kind_name(row->module, o->common.verbose);
        size_t at = 0;
        while (at < kinds && strcmp(kind[at].name, name) != 0)
            at++;
        kinds += at == kinds;
        kind[at].name = name;
        kind_add(&kind[at], row, o->verify ? v->error[i] : 0);
        kind_add(&all, row, o->verify ? v->error[i] : 0);
    }
    for (size_t i = 0; i < kinds; i++)
        TRY_OUT(e, kind_row(&table, &kind[i], o->verify));
    TRY_OUT(e, kind_row(&table, &all, o->verify));
    e = table_print(&table);
out:
    table_close(&table);
    arena_close(&arena);
    return e;
}

/* The summary is the last line, so that it is visible after long tables. The part that was cut off
 * is printed only for results that were cut. */
err aggregate_print_text(const struct aggregate_command *o, const struct combine *c,
                         const struct aggregate_checked *v)
{
    const struct method_report_row *t = &c->report.total;
    TRY(print_adapters(c));
    printf("\n");
    TRY(print_modules(o, c, v));
    for (size_t i = 0; i < c->saved_count; i++)
        printf("%s%s", i ? ", " : "\naveraged tensors: ", c->saved[i].name);
    if (c->compared && c->compared[c->count].pairs)
        printf("\ncosine between the changes of two adapters: mean %.3f, smallest %.3f, %u pairs",
               c->compared[c->count].cosine_mean, c->compared[c->count].cosine_least,
               c->compared[c->count].pairs);
    printf("\n%s: %s, norm %.6g, relative error %.3g", o->output, o->method, t->update_norm,
           ratio(t->error, t->update_norm));
    if (t->dropped > 0) printf(", of which %.3g was cut off", ratio(t->dropped, t->update_norm));
    if (o->verify) printf("; dense recomputation %.3g", ratio(v->total, v->norm));
    printf("\n");
    return ERR_NONE;
}
