/* fedlora basis: compute the frozen factors of fed-sb, the leading singular vectors of each
 * module's weight in the base model.
 *
 * They are computed once, by the operator, and named by their digest in the run's configuration.
 * All members download the same file: singular vectors are unique only up to sign and rotation, so
 * members that computed their own would train in different coordinates. */
#include "agg/algebra/basis.h"
#include "agg/round/method_state.h"
#include "base/digest.h"
#include "base/file.h"
#include "base/text.h"
#include "client/command/command.h"
#include "client/output/progress.h"
#include "client/output/report.h"
#include "engine/adapter.h"

#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

struct basis_command {
    struct command_common common;
    const char *base, *targets, *output;
    int64_t rank;
    bool force;
};

#define AT(member) offsetof(struct basis_command, member)
static const struct option_row rows[] = {
    {.flag = "base",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(base),
     .value = "PATH",
     .help = "base model: a Hugging Face directory or a .gguf file"},
    /* The rank of the run must not be larger than this. */
    {.flag = "rank",
     .kind = OPTION_INT,
     .at = AT(rank),
     .fallback = "64",
     .least = 1,
     .most = LIMIT_RANK,
     .help = "singular vectors per module; fewer if the weight is smaller"},
    {.flag = "targets",
     .kind = OPTION_TEXT,
     .at = AT(targets),
     .fallback = "all-linear",
     .value = "LIST",
     .help = "modules to adapt: short or full names, separated by commas"},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "FILE",
     .help = "file for the frozen factors"},
    COMMAND_ROW_FORCE(AT(force)),
};

/* The factors of one module. The weight is converted to float32 only while it is needed, so that
 * the memory used is that of one module per thread. */
static err make_module(struct method_state *file, const struct model *base,
                       const struct adapter_module *m, uint32_t rank, size_t i)
{
    const struct weight *w = &base->layer[m->layer].linear[m->kind];
    char name[LIMIT_TENSOR_NAME_BYTES];
    struct method_result out = {0};
    struct basis_shape shape = {.d_out = m->d_out, .d_in = m->d_in, .r = rank};
    float *W0 = NULL, *A, *B;
    err e = ERR_NONE;
    if (shape.r > m->d_out) shape.r = m->d_out;
    if (shape.r > m->d_in) shape.r = m->d_in;
    out.module.rank = shape.r;
    model_module_name(name, m->layer, m->kind);
    TRY_OUT(e, arena_take(&W0, &out.arena, (size_t)m->d_out * m->d_in, sizeof *W0));
    TRY_OUT(e, method_result_take(&A, &out, ADAPTER_FILE_A, shape.r, m->d_in));
    TRY_OUT(e, method_result_take(&B, &out, ADAPTER_FILE_B, m->d_out, shape.r));
    weight_rows_f32(W0, w, 0, m->d_out);
    TRY_OUT(e, basis_of_weight(A, B, W0, &shape));
    e = method_state_put(file, i, name, &out);
out:
    arena_close(&out.arena);
    return err_is(e) ? err_in(e, "%s", name) : e;
}

/* Modules differ in size, so they are distributed dynamically; each result has a fixed place in the
 * file, so the order does not change it. An error cannot leave an OpenMP loop, so it is kept and
 * returned after the loop. Only an interruption skips the remaining modules. */
static err make_all(struct method_state *file, const struct basis_command *o,
                    const struct model *base, const struct adapter *modules)
{
    int threads = o->common.threads > 0 ? (int)o->common.threads : omp_get_max_threads();
    struct progress progress = {0};
    size_t done = 0;
    err failed = ERR_NONE;
    progress_begin(&progress, o->common.quiet, "basis", "modules");
    int before = lowrank_begin();
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (size_t i = 0; i < modules->count; i++) {
        err e = stop_check();
        if (!err_is(e)) e = make_module(file, base, &modules->module[i], (uint32_t)o->rank, i);
/* progress_update() is for one thread at a time, and `failed` is shared. */
#pragma omp critical(command_basis)
        {
            if (err_is(e)) failed = e;
            done++;
            progress_update(&progress, done, modules->count, done, NULL);
        }
    }
    lowrank_end(before);
    progress_end(&progress, NULL);
    return failed;
}

/* The digest is what the operator compares with the run's configuration. */
static err print_result(const struct basis_command *o, const char *digest, size_t count)
{
    struct stat st = {0};
    char size[32];
    if (stat(o->output, &st) != 0)
        return err_make(ERR_MACHINE, "%s: deleted by another process after it was written",
                        o->output);
    if (!o->common.json) {
        text_size(size, sizeof size, (uint64_t)st.st_size);
        printf("%s: %s, %zu modules of rank %lld\ndigest %s\n", o->output, size, count,
               (long long)o->rank, digest);
        return ERR_NONE;
    }
    json_t *all =
        json_pack("{s:s, s:s, s:I, s:I, s:I}", "path", o->output, "digest", digest, "modules",
                  (json_int_t)count, "rank", (json_int_t)o->rank, "bytes", (json_int_t)st.st_size);
    if (all == NULL) return err_make(ERR_MACHINE, "no memory for the result");
    err e = report_json(all);
    json_decref(all);
    return e;
}

/* The file records the digest of the base, so that the coordinator refuses factors that were made
 * from another base. alpha = rank gives the factors the scale 1. */
static err basis_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments, (void)arena;
    const struct basis_command *o = options;
    struct model base = {0};
    struct adapter modules = {0};
    struct method_state file = {0};
    struct digest digest;
    char hex[DIGEST_TEXT_BYTES];
    err e = ERR_NONE;
    TRY(command_check_output(o->output, o->force));
    TRY_OUT(e, model_open(&base, o->base));
    /* A rank-1 adapter is opened only to resolve the targets to modules in the same way as training
     * does; its values are not used. */
    const struct adapter_fresh fresh = {.targets = o->targets, .rank = 1, .alpha = 1};
    TRY_OUT(e, adapter_open_fresh(&modules, &base.arch, &fresh));
    TRY_OUT(e, model_digest(&digest, &base));
    digest_text(hex, &digest);
    const struct adapter_file_meta meta = {.kind = ADAPTER_FILE_FROZEN,
                                           .base = hex,
                                           .rank = (uint32_t)o->rank,
                                           .alpha = (double)o->rank};
    TRY_OUT(e, method_state_open(&file, o->output, modules.count));
    TRY_OUT(e, make_all(&file, o, &base, &modules));
    TRY_OUT(e, method_state_commit(&file, o->output, &meta));
    /* Of the committed file and not of the values in memory: the digest must name what is on
     * disk. */
    TRY_OUT(e, digest_of_file(&digest, o->output));
    digest_text(hex, &digest);
    e = print_result(o, hex, modules.count);
out:
    method_state_close(&file);
    adapter_close(&modules);
    model_close(&base);
    return e;
}

const struct command command_basis = {
    .name = "basis",
    .purpose = "compute the frozen factors of fed-sb from a base model",
    .usage = "--base PATH -o FILE [--rank N] [--targets LIST]",
    .example = "fedlora basis --base SmolLM2-135M-Instruct.gguf --rank 64 -o basis.safetensors",
    .rows = rows,
    .row_count = sizeof rows / sizeof rows[0],
    .options_size = sizeof(struct basis_command),
    .run = basis_run,
};
