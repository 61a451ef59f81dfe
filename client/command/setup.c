#include "client/command/setup.h"

#include "base/file.h"
#include "base/text.h"
#include "client/session/data_report.h"
#include "engine/adapted.h"

#include <string.h>

/* An adapter that resizes the vocabulary belongs to a tokenizer with other tokens, which PEFT users
 * save beside it. */
static err resized_tokenizer(struct setup *s, const char *path)
{
    char file[LIMIT_PATH_BYTES];
    if (file_is_dir(path)) {
        TRY(file_join(file, sizeof file, path, "tokenizer.json"));
        if (file_exists(file)) {
            struct tokenizer *own = NULL;
            TRY(tokenizer_open(&own, path));
            tokenizer_close(s->tokenizer);
            s->tokenizer = own;
        }
    }
    if (!s->tokenizer || tokenizer_vocab(s->tokenizer) <= s->model.arch.vocab) return ERR_NONE;
    return err_make(ERR_INPUT,
                    "%s: its vocabulary has %u tokens, but the tokenizer has %zu; put the "
                    "tokenizer.json that the adapter was trained with into its directory",
                    path, s->model.arch.vocab, tokenizer_vocab(s->tokenizer));
}

/* The reader distinguishes an adapter directory from a state file, so --adapter and --state differ
 * only in the documentation. Neither means that the base is used alone. Training changes only A and
 * B, so it refuses adapters with other parts, which its result would not have. */
static err open_adapter(struct setup *s, const struct setup_options *o)
{
    const char *path = o->adapter ? o->adapter : o->state;
    uint32_t vocab = s->model.arch.vocab;
    if (!path) return ERR_NONE;
    if (!o->inference) {
        TRY(adapter_open_path(&s->adapter, &s->model.arch, path, 0));
        s->adapted = true;
        return ERR_NONE;
    }
    TRY(adapted_open(&s->adapter, &s->adapted, &s->model, path));
    return s->model.arch.vocab != vocab ? resized_tokenizer(s, path) : ERR_NONE;
}

/* A precision on the command line wins. Otherwise the command may ask for float32, and DTYPE_NONE
 * lets the engine choose by the processor. */
static enum dtype precision_of(const struct setup_options *o)
{
    enum dtype asked = training_dtype(o->common->precision);
    return asked == DTYPE_NONE && o->f32 ? DTYPE_F32 : asked;
}

/* The order puts cheap checks first. The adapter is opened before the engine, which converts all
 * weights and takes seconds, so that a wrong path is reported at once. The tokenizer is optional
 * here: a base without one can still train on rows of token ids, and the reason for its absence is
 * kept for the command that needs it. */
err setup_open(struct setup *out, const struct setup_options *o)
{
    if (o->adapter && o->state)
        return err_make(ERR_INPUT, "--adapter and --state exclude each other");
    struct setup s = {0};
    err e = ERR_NONE;
    uint64_t begun = text_now_ms();
    struct engine_options options = {
        .device = o->common->device,
        .precision = precision_of(o),
        .threads = (int)o->common->threads,
        .inference = o->inference,
        .base_memory = (enum base_memory)o->base_memory,
        .tokens = o->tokens,
        .checkpoint = o->checkpoint,
        .profile = o->profile,
    };
    TRY_OUT(e, model_open(&s.model, o->base));
    s.no_tokenizer = tokenizer_open(&s.tokenizer, o->base);
    if (o->text) TRY_OUT(e, setup_need_tokenizer(&s));
    TRY_OUT(e, open_adapter(&s, o));
    TRY_OUT(e, stop_check());
    s.quiet = o->common->quiet;
    *out = s; /* moved first, because the engine keeps the address of the model */
    e = engine_open(&out->engine, &out->model, &options);
    if (err_is(e)) {
        setup_close(out);
        return e;
    }
    /* Packed weights do not need the pages of the file, which would stay resident as well. Pages
     * that are needed come back from the file. */
    model_drop_pages(&out->model);
    if (o->base_memory == BASE_AUTO && engine_base_memory(out->engine) == BASE_FILE)
        command_note(
            o->common,
            "%s: packed weights do not fit into the free memory, so they stay in the file, "
            "which is slower",
            o->base);
    if (out->model.images)
        command_note(o->common, "%s: the part that reads images (%u tensors) is not used", o->base,
                     out->model.image_tensors);
    if (*engine_no_gpu(out->engine) && backend_expects_gpu())
        command_note(o->common, "the CPU is used, because %s", engine_no_gpu(out->engine));
    if (o->common->verbose)
        command_note(o->common, "%s: %s, %u layers, %s on %s, opened in %.1f s", o->base,
                     out->model.arch.family->model_type, out->model.arch.layers,
                     dtype_name(engine_precision(out->engine)), engine_device(out->engine),
                     (double)(text_now_ms() - begun) / 1000);
    return ERR_NONE;
out:
    setup_close(&s);
    return e;
}

void setup_close(struct setup *s)
{
    engine_close(s->engine);
    adapter_close(&s->adapter);
    tokenizer_close(s->tokenizer);
    model_close(&s->model);
    *s = (struct setup){0};
}

const struct adapter *setup_adapter(const struct setup *s)
{
    return s->adapted ? &s->adapter : NULL;
}

err setup_need_tokenizer(const struct setup *s)
{
    return s->tokenizer ? ERR_NONE : s->no_tokenizer;
}

/* When rows need a tokenizer and there is none, the error also says why, because "no tokenizer"
 * alone does not tell the user which file of the base is missing. */
err setup_data(struct dataset *out, const struct setup *s, const struct setup_data_options *o)
{
    struct data_options options = {
        .tokenizer = s->tokenizer,
        .vocab = s->model.arch.vocab,
        .seq = (uint32_t)o->seq,
        .no_eos = !o->eos,
        .bos = o->bos,
        .split = o->boundary == TRAINING_BOUNDARY_SPLIT,
        .template = o->template,
    };
    err e = data_open(out, o->path, &options);
    if (!err_is(e) && !s->quiet)
        data_report_print(&(struct data_report){.data = out, .path = o->path, .seq = options.seq});
    if (!err_is(e) || s->tokenizer || !strstr(e.text, "no tokenizer")) return e;
    return err_make(e.kind, "%s (the tokenizer of the base cannot be used: %.160s)", e.text,
                    s->no_tokenizer.text);
}
