/* Opening of a member's files: client/session/session_local.h. */
#include "client/session/session_local.h"

#include "base/file.h"
#include "base/stop.h"
#include "client/session/data_report.h"
#include "engine/train/train_private.h"

#include <stdio.h>
#include <string.h>

/* Both files or none: the old rows stay in place if one of the new files cannot be read. */
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

/* The data is read here without the run's options, only to find mistakes before the member joins
 * and to report the number of rows. session_local_prepare() reads it again. The digest comes last,
 * because it reads the whole base. */
err session_local_open(struct session_local *out, const struct session_options *o)
{
    struct session_local local = {.options = o};
    err e;
    TRY_OUT(e, model_open(&local.model, o->base));
    TRY_OUT(e, tokenizer_open_if_any(&local.tokenizer, o->base));
    TRY_OUT(e, open_data(&local, &(struct data_options){.tokenizer = local.tokenizer,
                                                        .vocab = local.model.arch.vocab,
                                                        .template = o->template}));
    TRY_OUT(e, model_digest(&local.base, &local.model));
    digest_text(local.base_text, &local.base);
    *out = local;
    return ERR_NONE;
out:
    session_local_close(&local);
    return e;
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

uint64_t session_local_examples(const struct session_local *local)
{
    return local->options->ledger ? local->data.count : data_teaching(&local->data);
}

static struct data_report report_of(const struct session_local *local, const char *run)
{
    return (struct data_report){
        .data = &local->data, .path = local->options->data, .seq = local->read.seq, .run = run};
}

json_t *session_local_report(const struct session_local *local, const char *run)
{
    const struct session_options *o = local->options;
    const struct data_report data = report_of(local, run);
    struct data_report held_out = data;
    json_t *out = json_object();
    held_out.data = &local->held_out;
    held_out.path = o->eval_data;
    if (!o->quiet) data_report_print(&data);
    if (!o->quiet && o->eval_data) data_report_print(&held_out);
    json_object_set_new(out, "data", data_report_json(data.data));
    if (o->eval_data) json_object_set_new(out, "eval_data", data_report_json(held_out.data));
    return out;
}

err session_local_check(const struct session_local *local, const char *run)
{
    const struct data_report report = report_of(local, run);
    return data_report_check(&report);
}

/* A precision that the run names is binding: members with different precisions would still combine,
 * but results could not be repeated. If it names none, the option of this machine decides. */
static err choose_precision(enum dtype *out, const struct session_options *o, int run, bool private)
{
    enum dtype asked = training_dtype(run);
    if (asked != DTYPE_NONE && o->precision != DTYPE_NONE && asked != o->precision)
        return err_make(ERR_INPUT, "--precision: the run asks for %s", training_precisions[run]);
    *out = asked != DTYPE_NONE ? asked : o->precision;
    /* In bfloat16 only a GPU can compute a record's gradient independently of the other rows. */
    if (private && *out == DTYPE_NONE) *out = DTYPE_F32;
    return ERR_NONE;
}

/* The length of a row, its first and last token and the boundary of its prompt are options of the
 * run, so the data is read again. */
err session_local_prepare(struct session_local *local, const struct training_options *t,
                          bool private_examples)
{
    const struct session_options *o = local->options;
    struct engine_options engine = {.device = o->device,
                                    .threads = o->threads,
                                    .base_memory = o->base_memory,
                                    .tokens = (size_t)(t->batch * t->seq),
                                    .checkpoint = o->checkpoint};
    TRY(choose_precision(&engine.precision, o, t->precision, private_examples));
    const struct data_options data = {.tokenizer = local->tokenizer,
                                      .vocab = local->model.arch.vocab,
                                      .seq = (uint32_t)t->seq,
                                      .no_eos = !t->eos,
                                      .bos = t->bos || o->bos,
                                      .template = o->template,
                                      .split = t->boundary == TRAINING_BOUNDARY_SPLIT};
    const struct data_options *had = &local->read;
    bool same_data = local->engine && data.seq == had->seq && data.no_eos == had->no_eos &&
                     data.bos == had->bos && data.split == had->split;
    if (!same_data) TRY(open_data(local, &data));
    bool serves = local->engine && local->made.precision == engine.precision &&
                  local->made.tokens >= engine.tokens;
    if (!serves) {
        engine_close(local->engine);
        local->engine = NULL;
        TRY(engine_open(&local->engine, &local->model, &engine));
        model_drop_pages(&local->model);
        local->made = engine;
    }
    local->read = data;
    return private_examples ? train_private_check(local->engine) : ERR_NONE;
}

/* Ends an evaluation when the user interrupts. */
static bool not_stopped(void *user, size_t done, size_t rows)
{
    (void)user, (void)done, (void)rows;
    return !stop_asked;
}

/* No progress line: evaluations between rounds are short, and `run watch` shows their results. */
err session_local_evaluate(struct member_evaluation *out, struct session_local *local,
                           const struct member_round *round)
{
    const struct member_evaluate work = {.engine = local->engine,
                                         .tokenizer = local->tokenizer,
                                         .data = &local->held_out,
                                         .round = round,
                                         .progress = not_stopped};
    return member_evaluate(out, &work);
}
