#include "client/session/session_local.h"

#include "base/file.h"
#include "base/stop.h"
#include "client/output/progress.h"
#include "engine/completions.h"
#include "kernels/describe.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* A base without a tokenizer will do for data that is tokenised already. */
static err open_tokenizer(struct tokenizer **out, const char *base)
{
    char path[LIMIT_PATH_BYTES];
    if (file_is_dir(base)) {
        TRY(file_join(path, sizeof path, base, "tokenizer.json"));
        if (!file_exists(path)) return ERR_NONE;
    }
    return tokenizer_open(out, base);
}

static err open_data(struct session_local *local, const struct data_options *how)
{
    const struct session_options *o = local->options;
    struct dataset data = {0}, held_out = {0};
    TRY(data_open(&data, o->data, how));
    err e = o->eval_data ? data_open(&held_out, o->eval_data, how) : ERR_NONE;
    if (err_is(e)) {
        data_close(&data);
        return e;
    }
    data_close(&local->data);
    data_close(&local->held_out);
    local->data = data;
    local->held_out = held_out;
    return ERR_NONE;
}

err session_local_open(struct session_local *out, const struct session_options *o)
{
    struct session_local local = {.options = o};
    err e;
    TRY_OUT(e, model_open(&local.model, o->base));
    TRY_OUT(e, open_tokenizer(&local.tokenizer, o->base));
    TRY_OUT(e, open_data(&local, &(struct data_options){.tokenizer = local.tokenizer,
                                                        .vocab = local.model.arch.vocab}));
    TRY_OUT(e, model_digest(&local.base, &local.model));
    digest_text(local.base_text, &local.base);
    *out = local;
    return ERR_NONE;
out:
    session_local_close(&local);
    return e;
}

static err list_modules(Fedlora__V1__ModuleShape ***out, size_t *count, const struct arch *arch,
                        struct arena *arena)
{
    size_t n = (size_t)arch->layers * MODULE_KINDS;
    Fedlora__V1__ModuleShape **list = NULL, *shape = NULL;
    TRY(arena_take(&list, arena, n, sizeof(Fedlora__V1__ModuleShape *)));
    TRY(arena_take(&shape, arena, n, sizeof *shape));
    for (size_t i = 0; i < n; i++) {
        enum module_kind kind = (enum module_kind)(i % MODULE_KINDS);
        char name[LIMIT_TENSOR_NAME_BYTES];
        const char *kept = NULL;
        model_module_name(name, (uint32_t)(i / MODULE_KINDS), kind);
        TRY(arena_text(&kept, arena, name, strlen(name)));
        shape[i] = (Fedlora__V1__ModuleShape)FEDLORA__V1__MODULE_SHAPE__INIT;
        shape[i].name = (char *)(uintptr_t)kept;
        model_module_shape(&shape[i].d_out, &shape[i].d_in, arch, kind);
        list[i] = &shape[i];
    }
    *out = list;
    *count = n;
    return ERR_NONE;
}

/* Equal bytes are promised for one processor type and one set of libraries: the run records them.
 */
static err name_libraries(char **out, struct arena *arena)
{
    char processor[100], libraries[150], all[256];
    const char *kept = NULL;
    describe_processor(processor, sizeof processor);
    describe_libraries(libraries, sizeof libraries);
    snprintf(all, sizeof all, "%s; %s", processor, libraries);
    TRY(arena_text(&kept, arena, all, strlen(all)));
    *out = (char *)(uintptr_t)kept;
    return ERR_NONE;
}

err session_local_describe(Fedlora__V1__HelloRequest *out, struct session_local *local,
                           struct arena *arena)
{
    out->base_digest = (ProtobufCBinaryData){DIGEST_BYTES, local->base.byte};
    out->rank = local->options->rank;
    out->memory_bytes = local->options->memory;
    out->examples = local->data.count;
    out->eval_rows = local->held_out.count;
    TRY(name_libraries(&out->libraries, arena));
    return list_modules(&out->modules, &out->n_modules, &local->model.arch, arena);
}

void session_local_close(struct session_local *local)
{
    engine_close(local->engine);
    data_close(&local->data);
    data_close(&local->held_out);
    tokenizer_close(local->tokenizer);
    model_close(&local->model);
    *local = (struct session_local){0};
}

/* The run's word on precision binds; where it leaves it open, this machine's option decides. */
static err choose_precision(enum dtype *out, const struct session_options *o, const char *word,
                            bool private)
{
    enum dtype asked = DTYPE_NONE;
    if (strcmp(word, "f32") == 0)
        asked = DTYPE_F32;
    else if (strcmp(word, "bf16") == 0)
        asked = DTYPE_BF16;
    else if (word[0] != 0 && strcmp(word, "auto") != 0)
        return err_make(ERR_INPUT, "the run's precision \"%.40s\": expected f32, bf16 or auto",
                        word);
    if (asked != DTYPE_NONE && o->precision != DTYPE_NONE && asked != o->precision)
        return err_make(ERR_INPUT, "--precision: the run asks for %s", word);
    *out = asked != DTYPE_NONE ? asked : o->precision;
    /* In float32 alone is a record's gradient the same bits whatever stands beside it. */
    if (private && *out == DTYPE_NONE) *out = DTYPE_F32;
    return ERR_NONE;
}

err session_local_prepare(struct session_local *local, const Fedlora__V1__Training *t)
{
    const struct session_options *o = local->options;
    struct engine_options engine = {.device = o->device, .threads = o->threads};
    TRY(choose_precision(&engine.precision, o, t->precision, local->privacy != NULL));
    const struct data_options data = {.tokenizer = local->tokenizer,
                                      .vocab = local->model.arch.vocab,
                                      .seq = t->seq,
                                      .no_eos = t->no_eos};
    TRY(open_data(local, &data));
    engine_close(local->engine);
    local->engine = NULL;
    TRY(engine_open(&local->engine, &local->model, &engine));
    model_drop_pages(&local->model);
    return ERR_NONE;
}

struct training {
    struct session_report *report;
    struct progress progress;
    uint64_t tokens;
    double seconds;
    bool untold; /* the loss is not */
};

static bool on_step(void *user, const struct train_step *step)
{
    struct training *t = user;
    char detail[64];
    t->tokens += step->tokens;
    t->seconds += step->seconds;
    double rate = t->seconds > 0 ? (double)t->tokens / t->seconds : 0;
    session_report_step(t->report, (uint32_t)step->step + 1, (uint32_t)step->steps,
                        t->untold ? 0 : step->loss, t->untold ? 0 : rate);
    if (t->untold)
        snprintf(detail, sizeof detail, "private");
    else
        snprintf(detail, sizeof detail, "loss %.4f", step->loss);
    progress_update(&t->progress, step->step + 1, step->steps, t->tokens, detail);
    return !atomic_load(&t->report->abandon) && !stop_asked;
}

struct task { /* of one round */
    const struct member_round *round;
    const Fedlora__V1__Training *training;
    struct session_report *report;
};

static err train(struct train_result *out, struct session_local *local, struct adapter *adapter,
                 const struct task *task)
{
    struct train_options options = {0};
    struct train_private_options private;
    struct training training = {.report = task->report, .untold = local->untold};
    const struct member_round *round = task->round;
    char what[64];
    TRY(session_train_options(&options, task->training, round));
    options.checkpoint = local->options->checkpoint;
    options.on_step = on_step;
    options.user = &training;
    if (local->privacy) TRY(session_privacy_round(&private, local->privacy, &options, round));
    snprintf(what, sizeof what, "%.30s round %" PRIu32, round->run, round->round);
    progress_begin(&training.progress, local->options->quiet, what, "tokens");
    err e = local->privacy ? train_private_run(out, adapter, local->engine, &local->data, &private)
                           : train_run(out, adapter, local->engine, &local->data, &options);
    progress_end(&training.progress, NULL);
    return e;
}

/* Every record's, clipped, and noise. */
static err find_private_gradient(struct train_result *out, struct session_local *local,
                                 struct adapter *adapter, const struct task *task)
{
    struct train_options options = {0};
    struct train_private_options private;
    TRY(session_train_options(&options, task->training, task->round));
    options.checkpoint = local->options->checkpoint;
    TRY(session_privacy_round(&private, local->privacy, &options, task->round));
    out->values = adapter->value_count;
    return train_private_gradient(adapter->value, adapter, local->engine, &local->data, &private);
}

/* The gradient takes the place of the values that it is of. */
static err find_gradient(struct train_result *out, struct session_local *local,
                         struct adapter *adapter, const struct task *task)
{
    struct train_gradient_options options = {0};
    struct train_gradient gradient = {0};
    struct arena arena = {0};
    if (local->privacy) return find_private_gradient(out, local, adapter, task);
    TRY(session_gradient_options(&options, task->training, task->round));
    options.checkpoint = local->options->checkpoint;
    err e = arena_take(&gradient.value, &arena, adapter->value_count, sizeof *gradient.value);
    if (!err_is(e))
        e = train_gradient_run(&gradient, adapter, local->engine, &local->data, &options);
    if (!err_is(e)) {
        memcpy(adapter->value, gradient.value, adapter->value_count * sizeof *adapter->value);
        out->mean_loss = gradient.loss;
        out->learned = gradient.learned;
    }
    arena_close(&arena);
    return e;
}

err session_local_train(struct train_result *out, struct session_local *local, const char *path,
                        const struct member_round *round, const Fedlora__V1__Training *wanted,
                        struct session_report *report)
{
    struct member_adapter a = {0};
    struct train_result result = {0};
    const struct task task = {.round = round, .training = wanted, .report = report};
    uint32_t rank = 0;
    TRY(member_adapter_open(&a, &local->model.arch, round));
    err e = round->gradient ? find_gradient(&result, local, &a.adapter, &task)
                            : train(&result, local, &a.adapter, &task);
    if (atomic_load(&report->abandon) && !stop_asked)
        e = err_make(ERR_STATE, "round %" PRIu32 " is over for us", round->round);
    if (!round->gradient && round->prune_lambda > 0)
        rank = train_pruned_rank(round->rank, round->prune_gamma, &result);
    if (!err_is(e)) e = member_adapter_write(path, &a, round, rank);
    if (!err_is(e)) *out = result;
    member_adapter_close(&a);
    return e;
}

static bool go_on(void *user, size_t done, size_t rows)
{
    (void)user, (void)done, (void)rows;
    return !stop_asked;
}

static err evaluate(struct session_evaluation *out, struct session_local *local,
                    const struct adapter *adapter, struct arena *arena)
{
    const struct dataset *rows = &local->held_out;
    struct engine_evaluation loss = {0};
    struct completions done = {0};
    const struct engine_evaluate_options options = {.adapter = adapter, .progress = go_on};
    const struct completions_task task = {.model = &local->model,
                                          .tokenizer = local->tokenizer,
                                          .engine = local->engine,
                                          .adapter = adapter,
                                          .data = rows,
                                          .progress = go_on};
    TRY(engine_evaluate(&loss, NULL, local->engine, rows, &options));
    if (local->tokenizer) TRY(completions_measure(&done, &task, arena));
    *out = (struct session_evaluation){.rows = loss.rows, .loss = loss.loss, .accuracy = -1};
    if (done.asked > 0) out->accuracy = (double)done.right / (double)done.asked;
    return ERR_NONE;
}

err session_local_evaluate(struct session_evaluation *out, struct session_local *local,
                           const struct member_round *round)
{
    struct member_adapter a = {0};
    struct arena arena = {0};
    TRY(member_adapter_open(&a, &local->model.arch, round));
    err e = evaluate(out, local, &a.adapter, &arena);
    arena_close(&arena);
    member_adapter_close(&a);
    return e;
}
