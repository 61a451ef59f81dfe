/* fedlora eval: measure the loss over learned tokens and the accuracy of greedy completions.
 *
 * The loss needs one forward pass per row. The accuracy needs a generated completion per row, which
 * takes much longer, so --no-accuracy leaves it out. Both passes report their progress. */
#include "base/file.h"
#include "base/json.h"
#include "client/command/command.h"
#include "client/command/setup.h"
#include "client/output/progress.h"
#include "client/output/report.h"
#include "client/session/data_report.h"
#include "engine/completions.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct eval_command {
    struct command_common common;
    const char *base, *data, *adapter, *state, *logits, *per_row;
    int64_t seq, batch_tokens; /* batch_tokens 0: the default of the engine */
    int base_memory, boundary;
    const char *template;
    bool eos, bos, accuracy, force;
};

#define AT(member) offsetof(struct eval_command, member)
static const struct option_row rows[] = {
    SETUP_ROW_BASE(AT(base)),
    {.flag = "data",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(data),
     .value = "FILE",
     .help = "evaluation data, JSON Lines, in the formats that fedlora train accepts"},
    /* An adapter or a state, not both; without them the base alone gives the value to compare
     * with. */
    SETUP_ROW_ADAPTER(AT(adapter), "to evaluate; default: the base model alone"),
    SETUP_ROW_STATE(AT(state), "to evaluate; default: the base model alone"),
    TRAINING_ROW_SEQ(AT(seq)),
    /* Affects speed and memory only, except that bf16 results may differ in the last digits. */
    {.flag = "batch-tokens",
     .kind = OPTION_INT,
     .at = AT(batch_tokens),
     .fallback = "0",
     .least = 0,
     .most = 1 << 20,
     .help = "tokens of one forward pass; 0: chosen by the program"},
    {.flag = "accuracy",
     .kind = OPTION_FLAG,
     .at = AT(accuracy),
     .fallback = "yes",
     .help = "measure the loss only; generate no completions to measure the accuracy"},
    TRAINING_ROW_EOS(AT(eos)),
    SETUP_ROW_BASE_MEMORY(AT(base_memory), NULL),
    TRAINING_ROW_BOS(AT(bos)),
    TRAINING_ROW_BOUNDARY(AT(boundary)),
    SETUP_ROW_TEMPLATE(AT(template), NULL),
    /* Extra outputs, for comparisons with other programs. */
    {.flag = "logits",
     .kind = OPTION_TEXT,
     .at = AT(logits),
     .value = "FILE",
     .help = "safetensors file for the logits of each row: logits.ROW, F32, shape (tokens, "
             "vocabulary)"},
    {.flag = "per-row",
     .kind = OPTION_TEXT,
     .at = AT(per_row),
     .value = "FILE",
     .help = "file for one JSON line per row, with its loss and completion"},
    COMMAND_ROW_FORCE(AT(force)),
};

/* Everything that is open during an evaluation; closed in eval_run() in reverse order. */
struct work {
    const struct eval_command *o;
    struct setup setup;
    struct dataset data;
    struct arena arena;
    double *nll; /* (rows) */
    struct completions done;
    struct progress progress;
};

/* ---- accuracy ---- */

/* Called by the engine after each batch; false stops the evaluation. */
static bool on_progress(void *user, size_t done, size_t rows_all)
{
    struct work *w = user;
    progress_update(&w->progress, done, rows_all, done, NULL);
    return !stop_asked;
}

/* Only rows with an expected completion count. A data file without any has a loss but no accuracy,
 * which is not an error. */
static err measure_accuracy(struct work *w)
{
    if (completions_wanted(&w->data) == 0) return ERR_NONE;
    TRY(setup_need_tokenizer(&w->setup));
    const struct completions_task task = {.model = &w->setup.model,
                                          .tokenizer = w->setup.tokenizer,
                                          .engine = w->setup.engine,
                                          .adapter = setup_adapter(&w->setup),
                                          .data = &w->data,
                                          .progress = on_progress,
                                          .user = w};
    progress_begin(&w->progress, w->o->common.quiet, "completing", "rows");
    err e = completions_measure(&w->done, &task, &w->arena);
    progress_end(&w->progress, err_is(e) ? "stopped early" : "done");
    return e;
}

/* ---- outputs ---- */

/* All logits are held in memory and written in one file, because safetensors needs the size of
 * every tensor before the first value. This is a tool for comparing two programs on a few rows,
 * therefore the size is checked against a limit instead of being streamed. */
static err write_logits(struct work *w)
{
    struct tensor *tensor;
    size_t vocab = w->setup.model.arch.vocab;
    if (w->data.tokens > LIMIT_BLOB_BYTES / sizeof(float) / vocab)
        return err_make(ERR_LIMIT,
                        "--logits: %" PRIu64
                        " tokens x %zu logits exceed %llu bytes: expected fewer rows",
                        w->data.tokens, vocab, LIMIT_BLOB_BYTES);
    TRY(arena_take(&tensor, &w->arena, w->data.count, sizeof *tensor));
    for (size_t i = 0; i < w->data.count; i++) {
        const struct data_row *row = &w->data.row[i];
        struct engine_row one = {row->id, NULL, row->count, setup_adapter(&w->setup)};
        char name[32];
        float *logits;
        TRY(stop_check());
        TRY(arena_take(&logits, &w->arena, row->count * vocab, sizeof *logits));
        TRY(engine_logits(logits, w->setup.engine, &one));
        snprintf(name, sizeof name, "logits.%zu", i);
        tensor[i] = (struct tensor){.dtype = DTYPE_F32,
                                    .dims = 2,
                                    .shape = {row->count, vocab},
                                    .count = row->count * vocab,
                                    .size = row->count * vocab * sizeof(float),
                                    .data = row->count ? logits : NULL};
        TRY(arena_text(&tensor[i].name, &w->arena, name, strlen(name)));
    }
    struct file_out out = {0};
    err e = file_out_open(&out, w->o->logits, w->o->force);
    if (!err_is(e)) e = safetensors_write_file(&out, tensor, w->data.count, NULL, 0);
    if (!err_is(e)) e = file_out_commit(&out);
    file_out_close(&out);
    return e;
}

/* A loss over no token is null: 0 would look like a perfect result. */
static json_t *loss_json(double loss, uint64_t tokens)
{
    return tokens ? json_real(loss) : json_null();
}

/* `line` is the line of the data file; it differs from `row` if the file has empty lines. */
static json_t *row_json(const struct work *w, size_t i)
{
    const struct data_row *row = &w->data.row[i];
    json_t *o =
        json_pack("{s:I, s:I, s:I, s:I, s:o}", "row", (json_int_t)i, "line", (json_int_t)row->line,
                  "tokens", (json_int_t)row->learned, "length", (json_int_t)row->count, "loss",
                  loss_json(w->nll[i] / row->learned, row->learned));
    if (o && w->done.found && w->done.found[i]) {
        json_object_set_new(o, "completion", json_string(w->done.found[i]));
        json_object_set_new(o, "expected", json_string(row->completion));
        json_object_set_new(o, "correct", json_boolean(w->done.correct[i]));
    }
    return o;
}

/* Written under a temporary name and renamed, so that a reader never sees half a file. */
static err write_rows(const struct work *w)
{
    struct file_out out = {0};
    struct bytes line = {.max = LIMIT_LINE_BYTES * 4ull};
    err e = file_out_open(&out, w->o->per_row, w->o->force);
    for (size_t i = 0; i < w->data.count && !err_is(e); i++) {
        json_t *o = row_json(w, i);
        bytes_clear(&line);
        e = o ? json_write(&line, o) : err_make(ERR_MACHINE, "no memory for a row");
        json_decref(o);
        if (!err_is(e)) e = bytes_append(&line, "\n", 1);
        if (!err_is(e)) e = file_out_append(&out, line.data, line.size);
    }
    if (!err_is(e)) e = file_out_commit(&out);
    file_out_close(&out);
    bytes_close(&line);
    return e;
}

/* The accuracy appears only if completions were generated, and rows_cut only if rows were cut,
 * because both change the meaning of the loss. */
static err report(const struct work *w, const struct engine_evaluation *found)
{
    json_t *out = json_pack("{s:o, s:I, s:I}", "loss", loss_json(found->loss, found->tokens),
                            "tokens", (json_int_t)found->tokens, "rows", (json_int_t)found->rows);
    if (w->done.asked) {
        json_object_set_new(out, "accuracy",
                            json_real((double)w->done.right / (double)w->done.asked));
        json_object_set_new(out, "correct", json_integer((json_int_t)w->done.right));
        json_object_set_new(out, "completions", json_integer((json_int_t)w->done.asked));
    }
    if (w->data.cut.rows)
        json_object_set_new(out, "rows_cut", json_integer((json_int_t)w->data.cut.rows));
    json_object_set_new(out, "precision",
                        json_string(dtype_name(engine_precision(w->setup.engine))));
    if (w->o->common.json) json_object_set_new(out, "data", data_report_json(&w->data));
    return report_print(out, &(struct report_options){.json = w->o->common.json});
}

/* ---- */

/* Output paths are checked before the model is opened. */
static err open_all(struct work *w)
{
    const struct eval_command *o = w->o;
    if (o->logits) TRY(command_check_output(o->logits, o->force));
    if (o->per_row) TRY(command_check_output(o->per_row, o->force));
    TRY(setup_open(&w->setup, &(struct setup_options){.common = &o->common,
                                                      .base = o->base,
                                                      .adapter = o->adapter,
                                                      .state = o->state,
                                                      .base_memory = o->base_memory,
                                                      .inference = true}));
    TRY(setup_data(
        &w->data, &w->setup,
        &(struct setup_data_options){o->data, o->seq, o->eos, o->bos, o->boundary, o->template}));
    return arena_take(&w->nll, &w->arena, w->data.count, sizeof *w->nll);
}

/* The loss first: it is cheap and fails early on broken data. The report is printed last, after the
 * files are complete, so that a printed result means that all of them exist. */
static err eval_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments, (void)arena;
    struct work w = {.o = options};
    struct engine_evaluation found = {0};
    err e = ERR_NONE;
    TRY_OUT(e, open_all(&w));
    struct engine_evaluate_options how = {
        .adapter = setup_adapter(&w.setup),
        .batch_tokens = (uint32_t)w.o->batch_tokens,
        .progress = on_progress,
        .user = &w,
    };
    progress_begin(&w.progress, w.o->common.quiet, "evaluating", "rows");
    e = engine_evaluate(&found, w.nll, w.setup.engine, &w.data, &how);
    progress_end(&w.progress, err_is(e) ? "stopped early" : "done");
    if (err_is(e)) goto out;
    if (w.o->accuracy) TRY_OUT(e, measure_accuracy(&w));
    if (w.o->logits) TRY_OUT(e, write_logits(&w));
    if (w.o->per_row) TRY_OUT(e, write_rows(&w));
    e = report(&w, &found);
out:
    arena_close(&w.arena);
    data_close(&w.data);
    setup_close(&w.setup);
    return e;
}

const struct command command_eval = {
    .name = "eval",
    .purpose = "measure loss and accuracy on local data",
    .usage = "--base B [--adapter DIR | --state FILE] --data FILE [options]",
    .example =
        "fedlora eval --base SmolLM2-135M-Instruct --adapter notes-lora --data test.jsonl --json",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct eval_command),
    .run = eval_run,
};
