/* fedlora train: train a LoRA adapter on local data, without a coordinator.
 *
 * Order: everything that can be refused is checked first (output path, options, inputs, and with
 * --privacy the plan and the ledger), then the adapter is trained, and only a complete adapter
 * is written. An interrupted training writes nothing: there is no partial result to mistake for
 * one. */
#include "base/file.h"
#include "client/command/command.h"
#include "client/command/marked.h"
#include "client/command/setup.h"
#include "client/export/adapter_save.h"
#include "client/output/progress.h"
#include "client/output/report.h"
#include "client/session/data_report.h"
#include "engine/train/train.h"
#include "engine/train/train_ledger.h"
#include "engine/train/train_private.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Options, in the order of the rows below. Numbers are int64_t and double, the types of the option
 * table; options_of() converts them. */
struct train_command {
    struct command_common common;
    const char *base, *data, *output, *adapter, *state, *targets, *log;
    int64_t rank;
    double alpha;
    struct training_options training;
    bool rslora, checkpoint, profile, force;
    int privacy, base_memory;
    double epsilon, delta, noise, clip_norm, sampling;
    const char *ledger, *ledger_key, *template;
    int64_t show_rows;
};

/* Rows in groups: inputs and output, the new adapter, the optimizer, privacy, and the rest. */
static const char *const privacies[] = {"none", "example", NULL};
#define AT(member) offsetof(struct train_command, member)
static const struct option_row rows[] = {
    /* Inputs and output. */
    SETUP_ROW_BASE(AT(base)),
    {.flag = "data",
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(data),
     .value = "FILE",
     .help = "training data, JSON Lines or a JSON list, also as .gz; rows with prompt and "
             "completion, messages, text, text and label, or input_ids and labels"},
    {.flag = "output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(output),
     .value = "DIR",
     .help = "PEFT directory to write"},
    SETUP_ROW_ADAPTER(AT(adapter), "to start from; default: a new adapter"),
    SETUP_ROW_STATE(AT(state), "to start from; default: a new adapter"),
    /* A new adapter. These options have no effect with --adapter or --state, whose shape is
     * given. */
    {.flag = "rank",
     .letter = 'r',
     .kind = OPTION_INT,
     .at = AT(rank),
     .fallback = "16",
     .least = 1,
     .most = LIMIT_RANK,
     .help = "rank of a new adapter"},
    {.flag = "alpha",
     .kind = OPTION_NUM,
     .at = AT(alpha),
     .fallback = "32",
     .least = 1e-6,
     .most = 1e6,
     .help = "alpha of a new adapter; its scale is alpha / rank"},
    {.flag = "rslora",
     .kind = OPTION_FLAG,
     .at = AT(rslora),
     .help = "scale a new adapter by alpha / sqrt(rank) instead of alpha / rank"},
    {.flag = "targets",
     .kind = OPTION_TEXT,
     .at = AT(targets),
     .fallback = "all-linear",
     .value = "LIST",
     .help = "modules that a new adapter changes: short or full names, separated by commas"},
    TRAINING_ROW_LR(AT(training), TRAINING_LR, "learning rate"),
    TRAINING_ROWS(AT(training)),
    {.flag = "checkpoint",
     .kind = OPTION_FLAG,
     .at = AT(checkpoint),
     .help = "recompute activations in the backward pass: less memory, slower"},
    SETUP_ROW_BASE_MEMORY(AT(base_memory), NULL),
    /* Privacy of single records. 0 means "not given" for all of these numbers. */
    {.flag = "privacy",
     .kind = OPTION_CHOICE,
     .at = AT(privacy),
     .fallback = "none",
     .choices = privacies,
     .help = "unit of differential privacy; example: DP-SGD protects each record (needs --delta, "
             "--ledger, --ledger-key, and --epsilon or --noise)"},
    {.flag = "epsilon",
     .kind = OPTION_NUM,
     .at = AT(epsilon),
     .fallback = "0",
     .least = 0,
     .most = 1e6,
     .help = "privacy budget: largest epsilon, at the delta of --delta; 0: not given"},
    {.flag = "delta",
     .kind = OPTION_NUM,
     .at = AT(delta),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "probability that the bound --epsilon fails; must be below 1 / number of records; "
             "0: not given"},
    {.flag = "noise",
     .kind = OPTION_NUM,
     .at = AT(noise),
     .fallback = "0",
     .least = 0,
     .most = 4096,
     .help = "noise multiplier (standard deviation of the noise / clip norm); 0: the smallest that "
             "keeps all steps within --epsilon"},
    {.flag = "clip-norm",
     .kind = OPTION_NUM,
     .at = AT(clip_norm),
     .fallback = "1",
     .least = 0,
     .most = 1e9,
     .help = "L2 norm to which the gradient of each record is clipped, with --privacy"},
    {.flag = "sampling",
     .kind = OPTION_NUM,
     .at = AT(sampling),
     .fallback = "0",
     .least = 0,
     .most = 1,
     .help = "probability that a record is in a step; 0: rows per step / number of records"},
    {.flag = "ledger",
     .kind = OPTION_TEXT,
     .at = AT(ledger),
     .value = "FILE",
     .help = "privacy ledger to continue, or to create"},
    {.flag = "ledger-key",
     .kind = OPTION_TEXT,
     .at = AT(ledger_key),
     .value = "FILE",
     .help = "Ed25519 private key (PEM, mode 0600) that signs the ledger"},
    /* Details of the data and reports. */
    SETUP_ROW_TEMPLATE(AT(template), NULL),
    {.flag = "show-rows",
     .kind = OPTION_INT,
     .at = AT(show_rows),
     .fallback = "0",
     .least = 0,
     .most = 1000000,
     .help = "print this many rows as they are trained, with the learned part marked"},
    {.flag = "log",
     .kind = OPTION_TEXT,
     .at = AT(log),
     .value = "FILE",
     .help = "file for one JSON line per step"},
    {.flag = "profile",
     .kind = OPTION_FLAG,
     .at = AT(profile),
     .help = "report the seconds spent in each operation"},
    COMMAND_ROW_FORCE(AT(force)),
};

/* State of the callback on_step(), which the trainer calls after each optimizer step. */
struct work {
    const struct train_command *o;
    struct progress progress;
    FILE *log;
    err log_failed;
    uint64_t tokens;
};

/* One line per step, flushed at once, so that the file can be followed while training continues. */
static err log_step(FILE *log, const struct train_step *s)
{
    int n = fprintf(log,
                    "{\"step\":%" PRIu64
                    ",\"loss\":%.9g,\"lr\":%.9g,\"grad_norm\":%.9g,\"tokens\":%" PRIu64
                    ",\"seconds\":%.6f}\n",
                    s->step, s->loss, s->lr, s->grad_norm, s->tokens, s->seconds);
    return n < 0 || fflush(log) != 0 ? err_sys(errno, "--log") : ERR_NONE;
}

/* With privacy the loss is not shown: it depends on the records and is not accounted for. Returning
 * false stops the training; the reason is in stop_asked or log_failed. */
static bool on_step(void *user, const struct train_step *s)
{
    struct work *w = user;
    char detail[64];
    w->tokens += s->tokens;
    if (w->o->privacy)
        snprintf(detail, sizeof detail, "private");
    else
        snprintf(detail, sizeof detail, "loss %.4f", s->loss);
    progress_update(&w->progress, s->step + 1, s->steps, w->tokens, detail);
    if (w->log) w->log_failed = log_step(w->log, s);
    return !stop_asked && !err_is(w->log_failed);
}

/* Opened after the plan was accepted, so that a refused command leaves no empty log. */
static err open_log(struct work *w)
{
    if (!w->o->log) return ERR_NONE;
    TRY(command_check_output(w->o->log, w->o->force));
    w->log = fopen(w->o->log, "w");
    return w->log ? ERR_NONE : err_sys(errno, "%s", w->o->log);
}

/* The options of the command line in the units of the trainer; the rest keeps its defaults. */
static struct train_options options_of(const struct train_command *o, struct work *w)
{
    struct train_options t;
    train_defaults(&t);
    train_set(&t, &o->training);
    t.seed = (uint64_t)o->common.seed;
    t.checkpoint = o->checkpoint;
    t.on_step = on_step;
    t.user = w;
    return t;
}

/* Seconds and calls of each operation since the engine was opened. */
static json_t *profile_json(const struct engine *engine)
{
    struct backend_profile profile;
    engine_profile(&profile, engine);
    json_t *list = json_array();
    for (int op = 0; op < OP_COUNT; op++)
        json_array_append_new(list, json_pack("{s:s, s:f, s:I}", "operation",
                                              backend_op_name((enum backend_op)op), "seconds",
                                              profile.seconds[op], "calls",
                                              (json_int_t)profile.calls[op]));
    return list;
}

/* The result of the command. With privacy, every number that depends on the records is left out of
 * the report, and what the ledger has spent is added. */
static err report(const struct train_command *o, const struct setup *s, const struct dataset *data,
                  const struct train_result *r, const struct train_ledger *ledger)
{
    struct train_ledger_spent spent;
    if (o->privacy) TRY(train_ledger_spent(&spent, ledger));
    json_t *out =
        json_pack("{s:s, s:I, s:I, s:I, s:f, s:f, s:f, s:f, s:f}", "output", o->output, "steps",
                  (json_int_t)r->steps, "tokens", (json_int_t)r->tokens, "learned",
                  (json_int_t)r->learned, "loss_first", r->first_loss, "loss_last", r->last_loss,
                  "loss_mean", r->mean_loss, "seconds", r->seconds, "tokens_per_second",
                  r->seconds > 0 ? (double)r->tokens / r->seconds : 0.0);
    static const char *const private_keys[] = {"tokens",    "learned",   "loss_first",
                                               "loss_last", "loss_mean", "tokens_per_second",
                                               "seconds"};
    for (size_t i = 0; o->privacy && i < sizeof private_keys / sizeof *private_keys; i++)
        json_object_del(out, private_keys[i]); /* not counted by the budget, so not computed */
    json_object_set_new(out, "trained_parameters",
                        json_integer((json_int_t)s->adapter.value_count));
    json_object_set_new(out, "device", json_string(engine_device(s->engine)));
    json_object_set_new(out, "precision", json_string(dtype_name(engine_precision(s->engine))));
    if (o->privacy) json_object_update_new(out, train_ledger_json(&spent, o->ledger));
    if (o->common.json && !o->privacy) json_object_set_new(out, "data", data_report_json(data));
    if (o->profile) json_object_set_new(out, "profile", profile_json(s->engine));
    return report_print(out, &(struct report_options){.json = o->common.json});
}

/* The output path is checked before the base is opened, because opening takes seconds and training
 * hours. A new adapter is made only when none was given to start from. */
static err open_all(struct setup *s, struct dataset *data, const struct train_command *o)
{
    TRY(command_check_output(o->output, o->force));
    TRY(setup_open(
        s, &(struct setup_options){
               .common = &o->common,
               .base = o->base,
               .adapter = o->adapter,
               .state = o->state,
               .base_memory = o->base_memory,
               .tokens = (size_t)(o->training.batch * o->training.seq),
               .checkpoint = o->checkpoint,
               .profile = o->profile,
               /* DP-SGD needs each record's gradient to be independent of the other records of
                * its step. In bfloat16 only a GPU can promise that, see train_private_check(). */
               .f32 = o->privacy != 0}));
    TRY(setup_data(data, s,
                   &(struct setup_data_options){o->data, o->training.seq, o->training.eos,
                                                o->training.bos, o->training.boundary,
                                                o->template}));
    TRY(data_report_check(
        &(struct data_report){.data = data, .path = o->data, .seq = (uint32_t)o->training.seq}));
    if (o->show_rows > 0 && s->tokenizer)
        TRY(marked_rows(data, (size_t)o->show_rows, s->tokenizer));
    if (s->adapted) return ERR_NONE;
    struct adapter_fresh fresh = {
        .targets = o->targets,
        .rank = (uint32_t)o->rank,
        .alpha = o->alpha,
        .rslora = o->rslora,
        .seed = (uint64_t)o->common.seed,
    };
    TRY(adapter_open_fresh(&s->adapter, &s->model.arch, &fresh));
    s->adapted = true;
    return ERR_NONE;
}

/* The name under which the ledger records this training. */
static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash && slash[1] ? slash + 1 : path;
}

/* Every privacy option needs --privacy, see command_check_unused(). --clip-norm is missing here
 * because it has a default, so that its presence cannot be seen. */
static err check_privacy(const struct train_command *o)
{
    const struct command_given option[] = {
        {"epsilon", o->epsilon != 0},  {"delta", o->delta != 0},
        {"noise", o->noise != 0},      {"sampling", o->sampling != 0},
        {"ledger", o->ledger != NULL}, {"ledger-key", o->ledger_key != NULL}};
    if (o->privacy) return ERR_NONE;
    return command_check_unused(option, sizeof option / sizeof *option, "--privacy example");
}

/* The plan is checked and the ledger is asked for room before anything is trained. --log and
 * --profile are refused, because their output would reveal information that the budget does not
 * count. */
static err begin_private(struct train_ledger *out, const struct train_command *o,
                         const struct train_options *how, const struct setup *s,
                         const struct dataset *data)
{
    const struct train_ledger_options options = {.train = how,
                                                 .epsilon = o->epsilon,
                                                 .delta = o->delta,
                                                 .noise = o->noise,
                                                 .clip = o->clip_norm,
                                                 .sampling = o->sampling,
                                                 .dim = s->adapter.value_count,
                                                 .ledger = o->ledger,
                                                 .key = o->ledger_key,
                                                 .job = last_part(o->output),
                                                 .party = "local",
                                                 .method = "lora",
                                                 .bases = o->adapter || o->state ? "given" : "seed",
                                                 .afresh = true};
    if (!o->privacy) return ERR_NONE;
    if (o->log || o->profile)
        return err_make(ERR_INPUT,
                        "--%s: not allowed with --privacy, because its output depends on the "
                        "records and is not accounted for",
                        o->log ? "log" : "profile");
    TRY(train_private_check(s->engine));
    TRY(train_ledger_plan(out, &options, data->count));
    TRY(train_ledger_ask(out));
    command_note(&o->common, "%s", out->says);
    if (o->adapter || o->state)
        command_note(&o->common, "privacy: %s counts as public data unless this ledger released it",
                     o->adapter ? o->adapter : o->state);
    return ERR_NONE;
}

/* With privacy the ledger is charged after training but before the adapter is written: a crash in
 * between charges for an adapter that was never written, not the other way round. The digest of the
 * starting values is recorded too, so that an auditor can see whether this ledger released them. */
static err train_it(struct train_result *out, struct setup *s, const struct dataset *data,
                    const struct train_options *how, const struct train_ledger *ledger)
{
    struct adapter *ad = &s->adapter;
    size_t bytes = ad->value_count * sizeof *ad->value;
    if (!ledger) return train_run(out, ad, s->engine, data, how);
    struct train_ledger_made made = {.round = 1, .dim = ad->value_count};
    if (!strcmp(ledger->o.bases, "given")) made.given = digest_of(ad->value, bytes);
    TRY(train_private_run(out, ad, s->engine, data, &ledger->how));
    made.digest = digest_of(ad->value, bytes);
    return train_ledger_charge(ledger, &made);
}

/* An error of the log stops the training and is more useful than the "stopped" that the trainer
 * returns, so it takes precedence. */
static err train_command_run(void *options, const struct option_list *arguments,
                             struct arena *arena)
{
    (void)arguments, (void)arena;
    const struct train_command *o = options;
    struct work w = {.o = o};
    struct setup s = {0};
    struct dataset data = {0};
    struct train_result result = {0};
    struct train_ledger ledger = {0};
    struct train_options how = options_of(o, &w);
    err e = ERR_NONE;
    TRY(check_privacy(o));
    TRY_OUT(e, open_all(&s, &data, o));
    TRY_OUT(e, begin_private(&ledger, o, &how, &s, &data));
    TRY_OUT(e, open_log(&w));
    progress_begin(&w.progress, o->common.quiet, "training", "tokens");
    e = train_it(&result, &s, &data, &how, o->privacy ? &ledger : NULL);
    progress_end(&w.progress, err_is(e) ? "stopped early" : "done");
    if (err_is(w.log_failed)) e = w.log_failed;
    /* The user must not look for an adapter that does not exist. */
    if (e.kind == ERR_STOPPED)
        e = err_make(ERR_STOPPED, "interrupted; %s was not written", o->output);
    if (err_is(e)) goto out;
    struct adapter_save_options save = {.path = o->output,
                                        .base = o->base,
                                        .root = s.model.images ? MODEL_IMAGES_ROOT : NULL,
                                        .replace = o->force,
                                        .threads = (int)o->common.threads};
    TRY_OUT(e, adapter_save_peft(&s.adapter, &save));
    e = report(o, &s, &data, &result, &ledger);
out:
    if (w.log && fclose(w.log) != 0 && !err_is(e)) e = err_sys(errno, "%s", o->log);
    data_close(&data);
    setup_close(&s);
    return e;
}

const struct command command_train = {
    .name = "train",
    .purpose = "train a LoRA adapter on local data",
    .usage = "--base B --data FILE -o DIR [options]",
    .example =
        "fedlora train --base SmolLM2-135M-Instruct --data notes.jsonl -o notes-lora --epochs 2",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct train_command),
    .run = train_command_run,
};
