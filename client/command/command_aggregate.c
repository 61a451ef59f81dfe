/* fedlora aggregate: combine existing PEFT adapters, also of different ranks, without a
 * coordinator.
 *
 * The mathematics is that of the federated methods (agg/combine). This file reads the options,
 * checks them before any file is opened, and with --verify compares the written result with a dense
 * recomputation. */
#include "client/command/command_aggregate.h"
#include "base/text.h"
#include "client/command/method_help.h"
#include "engine/adapter_gguf.h"
#include "engine/model/model_build.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define AT(member) offsetof(struct aggregate_command, member)
static const struct option_row rows[] = {
    {.flag = "method",
     .kind = OPTION_TEXT,
     .at = AT(method),
     .fallback = "flora",
     .value = "M",
     .help = "how to combine the adapters, see below"},
    {.flag = "option",
     .kind = OPTION_LIST,
     .at = AT(options),
     .value = "KEY=VALUE",
     .help = "option of the method, listed in docs/aggregate.md; may be repeated"},
    {.flag = "weights",
     .kind = OPTION_TEXT,
     .at = AT(weights),
     .value = "3,1,2",
     .help = "one weight per adapter, divided by their sum; with a negative weight all are used as "
             "given, to subtract adapters (task arithmetic); default: equal weights"},
    {.flag = "base",
     .letter = 'b',
     .kind = OPTION_TEXT,
     .at = AT(base),
     .value = "PATH",
     .help = "base model of the adapters; only DoRA and GGUF adapters need it"},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "DIR",
     .help = "PEFT directory to write"},
    /* Five ways to bound the size of the result; at most one may be given. Without any, the result
     * is exact for methods that can be. */
    COMMAND_ROWS_CUT(AT(rank), AT(error)),
    {.flag = "energy",
     .kind = OPTION_NUM,
     .at = AT(energy),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "share of a module's squared singular values to keep, with the smallest rank that "
             "does (0.99 gives a relative error of 0.1); 0: all"},
    {.flag = "bytes",
     .kind = OPTION_SIZE,
     .at = AT(bytes),
     .fallback = "0",
     .value = "SIZE",
     .help = "largest size of the result; modules get the ranks with the smallest total error; 0: "
             "no limit"},
    {.flag = "stack",
     .kind = OPTION_FLAG,
     .at = AT(stack),
     .help = "flora only: write the stacked factors without recompression; fast, but the result "
             "has the sum of all ranks"},
    /* Extra checks, which take about as long as the combination itself. */
    {.flag = "compare",
     .kind = OPTION_FLAG,
     .at = AT(compare),
     .help = "report how similar the adapters are: cosines between their changes, over all pairs"},
    {.flag = "verify",
     .kind = OPTION_FLAG,
     .at = AT(verify),
     .help = "recompute each module densely and compare it with the written result"},
    {.flag = "force",
     .letter = 'f',
     .kind = OPTION_FLAG,
     .at = AT(force),
     .help = "replace an existing output; also combine adapters that name different bases"},
};

/* "3,1,2": exactly one number per directory, so that a forgotten weight is an error and not a 0. */
static err parse_weights(double **out, const char *text, size_t count, struct arena *arena)
{
    double *weight;
    const char *p = text;
    TRY(arena_take(&weight, arena, count, sizeof *weight));
    for (size_t k = 0; k < count; k++) {
        size_t n = strcspn(p, ",");
        char one[64];
        if (n == 0 || n >= sizeof one || (p[n] == 0) != (k + 1 == count))
            return err_make(ERR_INPUT, "--weights %s: expected %zu numbers, one per directory",
                            text, count);
        memcpy(one, p, n);
        one[n] = 0;
        err e = text_parse_num(&weight[k], one, -1e300, 1e300);
        if (err_is(e)) return err_in(e, "--weights");
        p += n + 1;
    }
    *out = weight;
    return ERR_NONE;
}

/* The ways to cut exclude each other, because a combination has no single meaning: each bounds
 * another quantity. Trailing slashes of the output are removed, since the temporary file of
 * agg/combine is named after it. */
static err options_read(struct combine_options *out, const struct aggregate_command *o,
                        const struct option_list *arguments, struct arena *arena)
{
    double *weight = NULL;
    struct combine_options c = {
        .path = arguments->item,
        .count = arguments->count,
        .cut = {.rank_max = (uint32_t)o->rank, .error = o->error, .energy = o->energy},
        .bytes = o->bytes,
        .stack = o->stack,
        .any_base = o->force,
        .compare = o->compare,
        .threads = (int)o->common.threads};
    c.method = method_find(o->method);
    if (c.method == NULL) {
        char near[TEXT_SUGGESTION_BYTES];
        return err_make(ERR_INPUT, "--method %s: unknown method%s", o->method,
                        method_suggestion(near, o->method));
    }
    if (o->stack + (o->rank > 0) + (o->error > 0) + (o->energy > 0) + (o->bytes > 0) > 1)
        return err_make(
            ERR_INPUT,
            "--rank, --error, --energy, --bytes and --stack exclude each other: give only one");
    struct method_options *options;
    TRY(arena_take(&options, arena, 1, sizeof *options));
    TRY(method_options_parse(options, c.method, o->options.item, o->options.count));
    c.options = options;
    if (o->weights) TRY(parse_weights(&weight, o->weights, c.count, arena));
    size_t n = strlen(o->output);
    while (n > 1 && o->output[n - 1] == '/')
        n--;
    TRY(arena_text(&c.scratch, arena, o->output, n));
    c.weight = weight;
    *out = c;
    return ERR_NONE;
}

/* The written module is read back and compared with the dense weighted sum. The error found must
 * also agree with the error reported, except for rounding: 1 % of it, 1e-6 of the module's norm,
 * and the rounding of the sum, which is larger where adapters cancel. Values within that rounding
 * are reported as 0. */
static err verify_module(struct aggregate_checked *v, const struct combine *c, size_t i,
                         const struct adapter_file *written)
{
    const struct method_report_row *row = &c->report.row[i];
    struct combine_verified x;
    TRY(stop_check());
    TRY(combine_verify(&x, c, i, written));
    v->error[i] = x.error <= x.noise ? 0 : x.error;
    v->total = hypot(v->total, v->error[i]);
    v->norm = hypot(v->norm, x.norm <= x.noise ? 0 : x.norm);
    double tolerance = 0.01 * row->error + 1e-6 * x.norm + x.noise;
    if (fabs(x.error - row->error) <= tolerance) return ERR_NONE;
    return err_make(ERR_MACHINE,
                    "%s: module %s: the dense recomputation has error %.6g, but %.6g was reported",
                    written->path, row->module, v->error[i], row->error);
}

/* Modules are checked one at a time, because the dense weights of all of them do not fit into
 * memory. Tensors that are saved whole (classification heads) are float32 means, so 1e-6 is their
 * rounding. */
static err verify(struct aggregate_checked *out, const struct aggregate_command *o,
                  const struct combine *c, struct arena *arena)
{
    struct adapter_file written = {0};
    struct aggregate_checked v = {0};
    struct progress progress;
    err e = ERR_NONE;
    TRY(arena_take(&v.error, arena, c->count, sizeof *v.error));
    TRY(adapter_file_map_whole(&written, o->output));
    progress_begin(&progress, o->common.quiet, "verify", "modules");
    for (size_t i = 0; i < c->count; i++) {
        TRY_OUT(e, verify_module(&v, c, i, &written));
        progress_update(&progress, i + 1, c->count, i + 1, NULL);
    }
    for (size_t i = 0; i < c->saved_count; i++) {
        double error;
        TRY_OUT(e, combine_verify_saved(&error, c, i, &written));
        v.saved = fmax(v.saved, error);
        if (error > 1e-6)
            e = err_make(ERR_MACHINE,
                         "%s: %s differs from the mean of the adapters by %.3g of its norm",
                         written.path, c->saved[i].name, error);
    }
    *out = v;
out:
    progress_end(&progress, NULL);
    adapter_file_close(&written);
    return e;
}

/* Progress of the combination. It starts with the first module, so that inputs which are refused
 * before print no progress line. */
struct aggregate_shown {
    struct progress progress;
    bool quiet, begun;
};

/* The base of DoRA and GGUF adapters. */
struct aggregate_base {
    struct model model;
    struct model_slot *slot; /* (slots) */
    size_t slots;
    struct arena arena;
};

static err base_open(struct aggregate_base *b, const char *path)
{
    TRY(model_open(&b->model, path));
    return model_slots_with_head(&b->slot, &b->slots, &b->model, &b->arena);
}

static void base_close(struct aggregate_base *b)
{
    model_close(&b->model);
    arena_close(&b->arena);
}

static err open_adapter(void *base, struct adapter_file *out, const char *path)
{
    struct aggregate_base *b = base;
    if (!adapter_gguf_is(path)) return adapter_file_map_whole(out, path);
    if (b->slots) return adapter_gguf_open(out, path, &b->model);
    return err_make(ERR_INPUT,
                    "%s: is a GGUF adapter: expected --base, the model that it was made for", path);
}

/* Rows in the order of Hugging Face, as A and B have them. */
static err base_rows(float *out, void *base, const struct adapter_file_module *m, uint32_t row,
                     uint32_t n)
{
    const struct aggregate_base *b = base;
    const struct model_slot *s = model_slot_find(b->slot, b->slots, m->name, ".weight");
    if (!s) return err_make(ERR_INPUT, "module %s: the base has no such module", m->name);
    const struct weight *w = s->weight;
    if (w->rows != m->d_out || w->cols != m->d_in)
        return err_make(ERR_INPUT, "module %s: shape (%u, %u), expected (%u, %u) as in the base",
                        m->name, m->d_out, m->d_in, w->rows, w->cols);
    weight_rows_f32(out, w, row, n);
    return ERR_NONE;
}

/* Called after each module; an error ends the combination. */
static err show_step(void *context, size_t done, size_t of)
{
    struct aggregate_shown *shown = context;
    if (!shown->begun) progress_begin(&shown->progress, shown->quiet, "aggregate", "modules");
    shown->begun = true;
    progress_update(&shown->progress, done, of, done, NULL);
    return stop_check();
}

/* The result is written before it is verified: the check reads the file that users will load. */
static err aggregate_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    const struct aggregate_command *o = options;
    struct combine_options how = {0};
    struct combine c = {0};
    struct aggregate_checked v = {0};
    struct aggregate_shown shown = {.quiet = o->common.quiet};
    struct aggregate_base base = {0};
    err e;
    TRY(command_check_output(o->output, o->force));
    TRY(options_read(&how, o, arguments, arena));
    if (o->base) TRY_OUT(e, base_open(&base, o->base));
    how.step = show_step;
    how.context = &shown;
    how.open = open_adapter;
    how.base_rows = o->base ? base_rows : NULL;
    how.base = &base;
    e = combine_open(&c, &how);
    if (shown.begun) progress_end(&shown.progress, NULL);
    if (err_is(e)) goto out;
    TRY_OUT(e, combine_write(&c, o->output, o->force));
    if (o->verify) TRY_OUT(e, verify(&v, o, &c, arena));
    e = o->common.json ? aggregate_print_json(o, &c, &v) : aggregate_print_text(o, &c, &v);
out:
    combine_close(&c);
    base_close(&base);
    return e;
}

const struct command command_aggregate = {
    .name = "aggregate",
    .purpose = "combine PEFT adapters of any ranks into one, and report the error",
    .usage = "ADAPTER... -o DIR [--method M] [--weights W,W,...] [--rank N | --error E | "
             "--energy T | --bytes SIZE | --stack] [--option KEY=VALUE]",
    .example = "fedlora aggregate site-a site-b site-c --weights 300,120,80 --rank 16 -o merged",
    .rows = rows,
    .row_count = sizeof rows / sizeof rows[0],
    .options_size = sizeof(struct aggregate_command),
    .least = 1,
    /* As many adapters as a run may have members. */
    .most = 10000,
    .run = aggregate_run,
    .details = method_help_aggregate,
};
