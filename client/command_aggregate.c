/* fedlora aggregate: adapters made by anyone, of different ranks, into one; no coordinator. */
#include "agg/combine.h"
#include "base/text.h"
#include "client/command.h"
#include "client/table.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct aggregate_command {
    struct command_common common;
    const char *method, *weights, *output;
    int64_t rank;
    double error, energy;
    uint64_t bytes;
    bool verify, force;
};

#define AT(member) offsetof(struct aggregate_command, member)
static const struct option_row rows[] = {
    {.flag = "method",
     .kind = OPTION_TEXT,
     .at = AT(method),
     .fallback = "flora",
     .value = "M",
     .help = "flora: the exact weighted sum of what the adapters do, of any ranks; fedit: the mean "
             "of their factors, one rank for all, with the error that makes"},
    {.flag = "weights",
     .kind = OPTION_TEXT,
     .at = AT(weights),
     .value = "3,1,2",
     .help = "one a directory, in any unit; default: all the same"},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "DIR",
     .help = "a PEFT directory"},
    {.flag = "rank",
     .kind = OPTION_INT,
     .at = AT(rank),
     .fallback = "0",
     .least = 0,
     .most = LIMIT_RANK,
     .help = "largest rank of a module; 0: whatever is exact"},
    {.flag = "error",
     .kind = OPTION_NUM,
     .at = AT(error),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "smallest ranks that keep each module's relative error within this"},
    {.flag = "energy",
     .kind = OPTION_NUM,
     .at = AT(energy),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "smallest ranks that keep this part of the squared singular values (0.99 of it is an "
             "error of 0.1)"},
    {.flag = "bytes",
     .kind = OPTION_SIZE,
     .at = AT(bytes),
     .fallback = "0",
     .value = "SIZE",
     .help = "the result's size at most, spent over all modules where it counts most"},
    {.flag = "verify",
     .kind = OPTION_FLAG,
     .at = AT(verify),
     .help = "recompute densely, module by module, and compare with what was written"},
    {.flag = "force", .kind = OPTION_FLAG, .at = AT(force), .help = "replace what exists"},
};

/* "3,1,2": as many as there are directories. */
static err parse_weights(double **out, const char *text, size_t count, struct arena *arena)
{
    double *weight;
    const char *p = text;
    TRY(arena_take(&weight, arena, count, sizeof *weight));
    for (size_t k = 0; k < count; k++) {
        size_t n = strcspn(p, ",");
        char one[64];
        if (n == 0 || n >= sizeof one || (p[n] == 0) != (k + 1 == count))
            return err_make(ERR_INPUT, "--weights %s: expected %zu numbers, one a directory", text,
                            count);
        memcpy(one, p, n);
        one[n] = 0;
        err e = text_parse_num(&weight[k], one, 0, 1e300);
        if (err_is(e)) return err_in(e, "--weights");
        p += n + 1;
    }
    *out = weight;
    return ERR_NONE;
}

static err options_read(struct combine_options *out, const struct aggregate_command *o,
                        const struct option_list *arguments, struct arena *arena)
{
    double *weight = NULL;
    struct combine_options c = {
        .path = arguments->item,
        .count = arguments->count,
        .cut = {.rank_max = (uint32_t)o->rank, .error = o->error, .energy = o->energy},
        .bytes = o->bytes,
        .threads = (int)o->common.threads};
    c.method = method_find(o->method);
    if (c.method == NULL) {
        size_t count = 0;
        while (method_names()[count])
            count++;
        const char *near = text_nearest(o->method, method_names(), count);
        return err_make(ERR_INPUT, "--method %s: no such method%s%s", o->method,
                        near ? "; did you mean " : "", near ? near : "");
    }
    if ((o->rank > 0) + (o->error > 0) + (o->energy > 0) + (o->bytes > 0) > 1)
        return err_make(ERR_INPUT, "--rank, --error, --energy and --bytes: give one");
    if (o->weights) TRY(parse_weights(&weight, o->weights, c.count, arena));
    c.weight = weight;
    *out = c;
    return ERR_NONE;
}

/* What was written, read back, against the plain dense sum; error and norm a module, and in total.
 */
struct checked {
    double *error, total, norm;
};

static err verify(struct checked *out, const struct combine *c, const char *path,
                  struct arena *arena)
{
    struct adapter_file written = {0};
    struct checked v = {0};
    err e = ERR_NONE;
    TRY(arena_take(&v.error, arena, c->count, sizeof *v.error));
    TRY(adapter_file_open(&written, path));
    for (size_t i = 0; i < c->count; i++) {
        double norm;
        TRY_OUT(e, command_check_stop());
        TRY_OUT(e, combine_verify(&v.error[i], &norm, c, i, &written));
        v.total = hypot(v.total, v.error[i]);
        v.norm = hypot(v.norm, norm);
    }
    *out = v;
out:
    adapter_file_close(&written);
    return e;
}

static double ratio(double part, double whole)
{
    return whole > 0 ? part / whole : 0;
}

static err print_json(const struct aggregate_command *o, const struct combine *c,
                      const struct checked *v)
{
    const struct method_report *r = &c->report;
    json_t *all = json_pack(
        "{s:s, s:s, s:I, s:f, s:f, s:f, s:f}", "method", o->method, "path", o->output, "rank_most",
        (json_int_t)r->total.rank, "norm", r->total.update_norm, "error", r->total.error,
        "relative_error", ratio(r->total.error, r->total.update_norm), "dropped", r->total.dropped);
    json_t *list = json_array(), *from = json_array();
    for (size_t k = 0; k < c->file_count; k++)
        json_array_append_new(from,
                              json_pack("{s:s, s:f}", "path", c->file[k].path, "weight", c->p[k]));
    for (size_t i = 0; i < c->count; i++) {
        const struct method_report_row *row = &r->row[i];
        json_t *one = json_pack("{s:s, s:I, s:I, s:f, s:f, s:f}", "name", row->module, "rank",
                                (json_int_t)row->rank, "adapters", (json_int_t)row->sent, "norm",
                                row->update_norm, "error", row->error, "dropped", row->dropped);
        if (one && o->verify) json_object_set_new(one, "verified_error", json_real(v->error[i]));
        json_array_append_new(list, one);
    }
    bool fine = all && json_object_set(all, "module", list) == 0 &&
                json_object_set(all, "adapters", from) == 0;
    if (fine && o->verify)
        fine = json_object_set_new(all, "verified_relative_error",
                                   json_real(ratio(v->total, v->norm))) == 0;
    err e = fine ? command_print_json(all) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(list);
    json_decref(from);
    json_decref(all);
    return e;
}

static err print_text(const struct aggregate_command *o, const struct combine *c,
                      const struct checked *v)
{
    const struct method_report_row *t = &c->report.total;
    struct table table;
    err e = ERR_NONE;
    table_begin(&table, "lrrr");
    TRY_OUT(e, table_row(&table, (const char *[]){"adapter", "weight", "modules", "rank"}));
    for (size_t k = 0; k < c->file_count; k++) {
        const struct adapter_file *f = &c->file[k];
        TRY_OUT(e, table_cell(&table, "%s", f->path));
        TRY_OUT(e, table_cell(&table, "%.4f", c->p[k]));
        TRY_OUT(e, table_cell(&table, "%zu", f->count));
        TRY_OUT(e, table_cell(&table, "%u", f->meta.rank));
    }
    TRY_OUT(e, table_cell(&table, "%s", o->output));
    TRY_OUT(e, table_cell(&table, "%s", ""));
    TRY_OUT(e, table_cell(&table, "%zu", c->count));
    TRY_OUT(e, table_cell(&table, "%u", t->rank));
    TRY_OUT(e, table_print(&table));
    printf("%s: norm %.6g, relative error %.3g", o->method, t->update_norm,
           ratio(t->error, t->update_norm));
    if (t->dropped > 0) printf(", of it cut off %.3g", ratio(t->dropped, t->update_norm));
    if (o->verify) printf("; recomputed densely %.3g", ratio(v->total, v->norm));
    printf("\n");
out:
    table_close(&table);
    return e;
}

static err aggregate_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct aggregate_command *o = options;
    struct combine_options how = {0};
    struct combine c = {0};
    struct checked v = {0};
    err e = ERR_NONE;
    TRY(command_check_output(o->output, o->force));
    TRY(options_read(&how, o, arguments, arena));
    TRY(combine_open(&c, &how));
    TRY_OUT(e, adapter_file_write_peft(o->output, &c.meta, c.module, c.count, o->force));
    if (o->verify) TRY_OUT(e, verify(&v, &c, o->output, arena));
    e = o->common.json ? print_json(o, &c, &v) : print_text(o, &c, &v);
out:
    combine_close(&c);
    return e;
}

const struct command command_aggregate = {
    .name = "aggregate",
    .purpose = "combine PEFT adapters of any ranks into one, with the error any cut costs",
    .usage = "ADAPTER-DIR... -o DIR [--method M] [--weights W,W,...] [--rank N | --error E | "
             "--energy T | --bytes SIZE]",
    .example = "fedlora aggregate site-a site-b site-c --weights 300,120,80 --rank 16 -o merged",
    .rows = rows,
    .row_count = sizeof rows / sizeof rows[0],
    .options_size = sizeof(struct aggregate_command),
    .least = 1,
    .most = 10000,
    .run = aggregate_run,
};
