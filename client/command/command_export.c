/* fedlora export: convert the change that was learned to PEFT, to GGUF, or to a merged model.
 *
 * The input is an adapter directory or a Fedlora state. Its carry and factors are first flattened
 * into one pair of factors per module, exactly or cut to a rank or an error, and the format is
 * written from that pair. The result always states the error of the cut. */
#include "base/file.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/export/export.h"
#include "client/output/report.h"
#include "client/output/table.h"
#include "engine/adapted.h"
#include "engine/adapter_gguf.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum export_as { EXPORT_PEFT, EXPORT_GGUF, EXPORT_MERGED };
static const char *const as_names[] = {"peft", "gguf", "merged", NULL};
static const char *const type_names[] = {"f32", "bf16", NULL};

struct export_command {
    struct command_common common;
    int as, type; /* indices in as_names and type_names */
    const char *output, *base, *frozen, *kept;
    int64_t rank; /* at most one of rank and error is not 0 */
    double error;
    bool force;
};

#define AT(member) offsetof(struct export_command, member)
static const struct option_row rows[] = {
    {.flag = "as",
     .kind = OPTION_CHOICE,
     .at = AT(as),
     .fallback = "peft",
     .choices = as_names,
     .help = "output format: a PEFT adapter, a GGUF adapter, or the base model with the change "
             "merged in"},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "PATH",
     .help = "output path: a file for --as gguf, else a directory"},
    {.flag = "base",
     .kind = OPTION_TEXT,
     .at = AT(base),
     .value = "PATH",
     .help = "base model; required for --as merged and gguf unless the adapter contains its path"},
    /* Only for states of runs; `fedlora run export` already joins them. */
    {.flag = "frozen",
     .kind = OPTION_TEXT,
     .at = AT(frozen),
     .value = "FILE",
     .help = "frozen factors, for a state that stores them in a separate file"},
    {.flag = "kept",
     .kind = OPTION_TEXT,
     .at = AT(kept),
     .value = "FILE",
     .help = "factors that a member keeps (fedsa), for the model of this member"},
    /* Two ways to make the result smaller; at most one may be given. */
    COMMAND_ROWS_CUT(AT(rank), AT(error)),
    {.flag = "type",
     .kind = OPTION_CHOICE,
     .at = AT(type),
     .fallback = "f32",
     .choices = type_names,
     .help = "type of the weights of a merged model"},
    COMMAND_ROW_FORCE(AT(force)),
};

/* The outcome of one export, for printing. */
struct result {
    const struct export_command *o;
    const struct flatten *delta;
    uint32_t vocab; /* of the base, before an adapter has resized it */
    uint64_t bytes;
    char note[512];
};

/* Size of the result: of a file, or of the plain files of a directory. Shown to the user only, so a
 * file that cannot be examined counts as 0 instead of failing a finished export. */
static uint64_t bytes_of(const char *path)
{
    struct stat st;
    uint64_t sum = 0;
    if (stat(path, &st) != 0) return 0;
    if (!S_ISDIR(st.st_mode)) return (uint64_t)st.st_size;
    DIR *d = opendir(path);
    if (d == NULL) return 0;
    for (struct dirent *entry; (entry = readdir(d)) != NULL;) {
        char name[LIMIT_PATH_BYTES];
        if (entry->d_name[0] == '.' || err_is(file_join(name, sizeof name, path, entry->d_name)))
            continue;
        if (stat(name, &st) == 0 && S_ISREG(st.st_mode)) sum += (uint64_t)st.st_size;
    }
    closedir(d);
    return sum;
}

/* Ranks differ between modules after a cut by error. */
static void rank_range(uint32_t *least, uint32_t *most, const struct flatten *delta)
{
    *least = *most = delta->count > 0 ? delta->module[0].rank : 0;
    for (size_t i = 1; i < delta->count; i++) {
        if (delta->module[i].rank < *least) *least = delta->module[i].rank;
        if (delta->module[i].rank > *most) *most = delta->module[i].rank;
    }
}

static double relative_error(const struct flatten *delta)
{
    return delta->norm_total > 0 ? delta->tail_total / delta->norm_total : 0;
}

static json_t *modules_json(const struct flatten *delta)
{
    json_t *list = json_array();
    for (size_t i = 0; i < delta->count; i++)
        json_array_append_new(list, json_pack("{s:s, s:I, s:f, s:f}", "name", delta->module[i].name,
                                              "rank", (json_int_t)delta->module[i].rank, "norm",
                                              delta->norm[i], "error", delta->tail[i]));
    return list;
}

/* `error` is the absolute Frobenius norm of the part that was cut, over all modules together. */
static err print_json(const struct result *r)
{
    uint32_t least, most;
    rank_range(&least, &most, r->delta);
    json_t *all =
        json_pack("{s:s, s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:I, s:o}", "as", as_names[r->o->as],
                  "path", r->o->output, "modules", (json_int_t)r->delta->count, "rank_least",
                  (json_int_t)least, "rank_most", (json_int_t)most, "norm", r->delta->norm_total,
                  "error", r->delta->tail_total, "relative_error", relative_error(r->delta),
                  "bytes", (json_int_t)r->bytes, "module", modules_json(r->delta));
    if (all == NULL) return err_make(ERR_MACHINE, "no memory for the result");
    if (r->note[0] != 0) json_object_set_new(all, "note", json_string(r->note));
    err e = report_json(all);
    json_decref(all);
    return e;
}

/* The note about missing parts goes to standard error, because standard output is the result. */
static err print_text(const struct result *r)
{
    uint32_t least, most;
    char size[32];
    rank_range(&least, &most, r->delta);
    text_size(size, sizeof size, r->bytes);
    printf("%s: %s, %s, %zu modules of rank %u", r->o->output, as_names[r->o->as], size,
           r->delta->count, least);
    if (most != least) printf(" to %u", most);
    printf(", relative error %.3g\n", relative_error(r->delta));
    if (r->note[0] != 0) command_note(&r->o->common, "note: %s", r->note);
    return ERR_NONE;
}

/* --base, else the path that the PEFT directory names if it exists on this machine. That path is
 * only a hint of another machine, so a missing one is not an error for formats that do not need a
 * base. */
static const char *base_path(const struct export_command *o, const struct adapter_file *file)
{
    if (o->base != NULL) return o->base;
    const char *named = file->meta.base_path;
    return named != NULL && *named != 0 && file_exists(named) ? named : NULL;
}

/* Parts besides A and B of the decoder's modules. PEFT takes them as they are, so they cannot be
 * cut. A merged model has them folded into its weights, and a GGUF adapter has no place for
 * them. */
static err check_parts(const struct export_command *o, const struct adapter_file *file)
{
    const char *part = adapted_part(file);
    if (!part || o->as == EXPORT_MERGED) return ERR_NONE;
    if (o->as == EXPORT_GGUF)
        return err_make(
            ERR_INPUT,
            "%s: %s: a GGUF adapter holds only A and B of the decoder's modules; export "
            "--as merged and convert that model",
            file->path, part);
    if (o->rank > 0 || o->error > 0)
        return err_make(ERR_INPUT,
                        "%s: %s: --rank and --error need an adapter of A and B of the decoder's "
                        "modules only",
                        file->path, part);
    return ERR_NONE;
}

/* The base is opened whenever it is known to be needed or was given: with --as peft it only checks
 * that modules, shapes and digest match, which catches an adapter of another model before a user
 * loads it. PEFT resolves the base's path from its own working directory, so the path is recorded
 * as an absolute one. */
static err write_it(struct result *r, const struct model *base, const struct adapter_file *file)
{
    const struct export_command *o = r->o;
    const char *path = base_path(o, file);
    bool whole_parts = adapted_part(file) != NULL;
    err e = ERR_NONE;
    if (base->path[0] && !whole_parts) TRY(export_check_base(r->delta, base, file->meta.base));
    char own[LIMIT_PATH_BYTES];
    bool resized = base->arch.vocab != r->vocab, has_own = false;
    if (resized && file_is_dir(file->path)) {
        TRY(file_join(own, sizeof own, file->path, "tokenizer.json"));
        has_own = file_exists(own);
    }
    const struct export_merged_options merged = {.tokenizer = has_own ? file->path : NULL,
                                                 .type = o->type == 0 ? DTYPE_F32 : DTYPE_BF16,
                                                 .replace = o->force,
                                                 .note = r->note,
                                                 .note_bytes = sizeof r->note};
    /* PEFT looks for the base from wherever it runs. */
    char *whole = path != NULL ? realpath(path, NULL) : NULL;
    const char *recorded = whole != NULL ? whole : path;
    struct flatten named = *r->delta; /* PEFT finds modules by the names of the whole model */
    if (base->images) named.root = MODEL_IMAGES_ROOT;
    if (o->as == EXPORT_PEFT && whole_parts)
        e = export_peft_whole(o->output, file, recorded, o->force);
    else if (o->as == EXPORT_PEFT)
        e = export_peft(o->output, &named, recorded, o->force);
    else if (o->as == EXPORT_GGUF)
        e = export_gguf(o->output, r->delta, base, o->force);
    else
        e = export_merged(o->output, r->delta, base, &merged);
    if (resized && !has_own)
        (void)snprintf(r->note + strlen(r->note), sizeof r->note - strlen(r->note),
                       "%sthe vocabulary has %u tokens, and the tokenizer is that of the base with "
                       "%u",
                       r->note[0] ? "; " : "", base->arch.vocab, r->vocab);
    free(whole);
    return e;
}

/* PEFT needs no weights of the base, only its path. */
static err open_base(struct model *base, struct result *r, struct adapter_file *file)
{
    const struct export_command *o = r->o;
    const char *path = base_path(o, file);
    if (path == NULL && o->as != EXPORT_PEFT)
        return err_make(ERR_INPUT,
                        "--as %s: expected --base, the model that the adapter was trained on",
                        as_names[o->as]);
    TRY(check_parts(o, file));
    if (o->as == EXPORT_PEFT && o->base == NULL) return ERR_NONE;
    if (!base->path[0]) TRY(model_open(base, path)); /* a GGUF adapter needed it already */
    r->vocab = base->arch.vocab;
    return o->as == EXPORT_MERGED ? adapted_fold(base, file) : ERR_NONE;
}

/* A state of fed-sb or ffa keeps its frozen factors in a file of their own, because they are the
 * same in every round and large. They are joined here, checked by digest. */
static err open_frozen(struct adapter_file *file, struct adapter_file *frozen, const char *path,
                       const char *frozen_path)
{
    struct digest digest;
    char hex[DIGEST_TEXT_BYTES];
    if (!adapter_file_needs_frozen(file)) return ERR_NONE;
    if (frozen_path == NULL)
        return err_make(ERR_INPUT,
                        "%s: the frozen factors are in a separate file with digest %.16s...: "
                        "expected --frozen FILE",
                        path, file->meta.frozen);
    TRY(digest_of_file(&digest, frozen_path));
    digest_text(hex, &digest);
    TRY(adapter_file_open(frozen, frozen_path));
    return adapter_file_join(file, frozen, hex);
}

/* A state of fedsa has the model of a member only with the factors that this member keeps. */
static err open_whole(struct adapter_file *file, struct adapter_file *other, struct model *base,
                      const char *path, const struct export_command *o)
{
    if (adapter_gguf_is(path)) {
        if (o->base == NULL)
            return err_make(
                ERR_INPUT, "%s: is a GGUF adapter: expected --base, the model that it was made for",
                path);
        TRY(model_open(base, o->base));
        return adapter_gguf_open(file, path, base);
    }
    TRY(adapter_file_open_whole(file, path));
    if (o->kept && o->frozen)
        return err_make(ERR_INPUT, "--frozen and --kept exclude each other: no method has both");
    if (!o->kept) return open_frozen(file, other, path, o->frozen);
    TRY(adapter_file_open(other, o->kept));
    return adapter_file_replace(file, other);
}

/* A state without any change (round 0) has no module, and no format can express an empty
 * adapter. */
static err export_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arena;
    struct result r = {.o = options};
    struct adapter_file file = {0}, other = {0};
    struct flatten delta = {0};
    struct model base = {0};
    bool folded = false;
    /* Both 0: an exact result. */
    struct lowrank_cut cut = {.rank_max = (uint32_t)r.o->rank, .error = r.o->error};
    err e;
    if (r.o->rank > 0 && r.o->error > 0)
        return err_make(ERR_INPUT, "--rank and --error exclude each other: give only one");
    TRY(command_check_output(r.o->output, r.o->force));
    TRY_OUT(e, open_whole(&file, &other, &base, arguments->item[0], r.o));
    folded = adapted_part(&file) != NULL;
    TRY_OUT(e, open_base(&base, &r, &file));
    TRY_OUT(e, flatten_open(&delta, &file, &cut, (int)r.o->common.threads));
    if (delta.count == 0 && !folded) {
        e = err_make(ERR_INPUT, "%s: contains no change of the base model", arguments->item[0]);
        goto out;
    }
    r.delta = &delta;
    TRY_OUT(e, write_it(&r, &base, &file));
    r.bytes = bytes_of(r.o->output);
    e = r.o->common.json ? print_json(&r) : print_text(&r);
out:
    flatten_close(&delta);
    model_close(&base);
    adapter_file_close(&file);
    adapter_file_close(&other);
    return e;
}

const struct command command_export = {
    .name = "export",
    .purpose = "convert an adapter or state to PEFT or GGUF, or merge it into its base",
    .usage = "STATE|ADAPTER-DIR|ADAPTER.gguf -o PATH [--as peft|gguf|merged] [--rank N | --error "
             "E] [--base PATH]",
    .example = "fedlora export state.safetensors --as peft -o adapter --rank 16",
    .rows = rows,
    .row_count = sizeof rows / sizeof rows[0],
    .options_size = sizeof(struct export_command),
    .least = 1,
    .most = 1,
    .run = export_run,
};
