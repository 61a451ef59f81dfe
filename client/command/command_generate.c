/* fedlora generate: print text from the base model, with an adapter or a state, as it is generated.
 *
 * With --json the text is collected and printed once at the end, because a JSON document cannot be
 * printed in pieces. */
#include "base/file.h"
#include "client/command/command.h"
#include "client/command/setup.h"
#include "client/output/report.h"
#include "engine/completions.h"
#include "engine/generate.h"
#include "engine/tokens/chat.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct generate_command {
    struct command_common common;
    const char *base, *adapter, *state, *prompt, *system, *template;
    int64_t tokens;
    double temperature, top_p;
    bool chat, special, bos;
    int base_memory;
};

#define AT(member) offsetof(struct generate_command, member)
static const struct option_row rows[] = {
    SETUP_ROW_BASE(AT(base)),
    /* An adapter or a state, not both. */
    SETUP_ROW_ADAPTER(AT(adapter), "to generate with; default: the base model alone"),
    SETUP_ROW_STATE(AT(state), "to generate with; default: the base model alone"),
    {.flag = "prompt",
     .letter = 'p',
     .kind = OPTION_TEXT,
     .at = AT(prompt),
     .value = "TEXT",
     .help = "text to continue; default: standard input"},
    {.flag = "chat",
     .kind = OPTION_FLAG,
     .at = AT(chat),
     .help = "use the prompt as a user message in the model's chat template"},
    {.flag = "system",
     .kind = OPTION_TEXT,
     .at = AT(system),
     .value = "TEXT",
     .help = "system message for --chat; default: the one of the chat template"},
    SETUP_ROW_TEMPLATE(AT(template), NULL),
    {.flag = "tokens",
     .letter = 'n',
     .kind = OPTION_INT,
     .at = AT(tokens),
     .fallback = "256",
     .least = 1,
     .most = LIMIT_SEQUENCE,
     .help = "largest number of new tokens"},
    /* The defaults generate greedily, so that the same command prints the same text. */
    {.flag = "temperature",
     .kind = OPTION_NUM,
     .at = AT(temperature),
     .fallback = "0",
     .least = 0,
     .most = 100,
     .help = "sampling temperature; 0: always take the most likely token"},
    {.flag = "top-p",
     .kind = OPTION_NUM,
     .at = AT(top_p),
     .fallback = "1",
     .least = 0,
     .most = 1,
     .help = "sample from the most likely tokens that reach this total probability; 1: from all "
             "tokens"},
    SETUP_ROW_BASE_MEMORY(AT(base_memory), NULL),
    {.flag = "special", .kind = OPTION_FLAG, .at = AT(special), .help = "print special tokens too"},
    TRAINING_ROW_BOS(AT(bos)),
};

/* Everything that is open, and the text so far. */
struct work {
    const struct generate_command *o;
    struct setup setup;
    struct arena arena;
    struct bytes prompt;
    struct tokens tokens;
    struct tokenizer_stream stream;
    struct bytes text; /* all of it, for --json */
    err failed;        /* in on_token */
};

/* Prints the text that was added since `before`, and flushes it so that the user sees each
 * token. */
static err show(struct work *w, size_t before)
{
    if (w->o->common.json || w->text.size == before) return ERR_NONE;
    fwrite(w->text.data + before, 1, w->text.size - before, stdout);
    return fflush(stdout) == 0 ? ERR_NONE
                               : err_make(ERR_MACHINE, "cannot write to standard output");
}

/* A token may end inside a UTF-8 character; the stream holds its bytes back until the character is
 * complete. An error cannot be returned through the engine, so it is kept in w->failed. */
static bool on_token(void *user, int32_t id)
{
    struct work *w = user;
    size_t before = w->text.size;
    w->failed = tokenizer_stream_add(&w->text, &w->stream, id);
    if (!err_is(w->failed)) w->failed = show(w, before);
    return !err_is(w->failed) && !stop_asked;
}

/* One turn of the user, and the system message if there is one. */
static err render_chat(struct work *w, const char *text)
{
    const struct generate_command *o = w->o;
    struct chat *chat = NULL;
    json_t *messages = json_array();
    if (o->system)
        json_array_append_new(messages,
                              json_pack("{s:s, s:s}", "role", "system", "content", o->system));
    json_array_append_new(messages, json_pack("{s:s, s:s}", "role", "user", "content", text));
    err e = json_array_size(messages) == (o->system ? 2 : 1)
                ? chat_open(&chat, w->setup.tokenizer, o->template)
                : err_make(ERR_INPUT, "--chat: the text is not valid UTF-8");
    if (!err_is(e))
        e = chat_render(&w->prompt, NULL, chat,
                        &(struct chat_input){.messages = messages, .generate = true});
    chat_close(chat);
    json_decref(messages);
    return e;
}

/* A trailing newline of standard input is removed for --chat only: `echo text |` adds one, which a
 * chat template does not expect. Without --chat the input is continued exactly as it is. */
static err read_prompt(struct work *w)
{
    const struct generate_command *o = w->o;
    /* LIMIT_LINE_BYTES also bounds standard input: a longer prompt exceeds every context window. */
    char *input = NULL;
    size_t size = 0;
    const char *text = o->prompt;
    if (!text) {
        TRY(file_read_all(&input, &size, "/dev/stdin", LIMIT_LINE_BYTES));
        while (o->chat && size && input[size - 1] == '\n')
            input[--size] = 0;
        text = input;
    } else {
        size = strlen(text);
    }
    err e = ERR_NONE;
    if (!o->chat) {
        e = bytes_append(&w->prompt, text, size);
    } else {
        e = render_chat(w, text);
    }
    free(input);
    return e;
}

/* An empty prompt is allowed if the model defines a beginning-of-sequence token, which then starts
 * the text; without any token the model has nothing to continue. */
static err encode_prompt(struct work *w)
{
    const struct tokenizer *t = w->setup.tokenizer;
    TRY(tokenizer_encode(&w->tokens, t, (const char *)w->prompt.data, w->prompt.size, true));
    if (w->o->bos && !w->o->chat) TRY(tokenizer_begin(&w->tokens, t, NULL));
    if (w->tokens.count) return ERR_NONE;
    char text[64];
    const char *first = tokenizer_token(w->setup.tokenizer, tokenizer_bos(w->setup.tokenizer));
    if (!first)
        return err_make(ERR_INPUT, "the prompt is empty: expected text, because this model has no "
                                   "beginning-of-sequence token");
    /* Encoded by its text, because special tokens in the prompt are encoded in the same way. */
    snprintf(text, sizeof text, "%s", first);
    return tokenizer_encode(&w->tokens, w->setup.tokenizer, text, strlen(text), true);
}

/* The stream is ended after the last token, because bytes of an incomplete character may be
 * left. */
static err run_model(struct work *w, uint32_t *count)
{
    const struct generate_command *o = w->o;
    struct generate_options how = {
        .tokens = (uint32_t)o->tokens,
        .temperature = o->temperature,
        .top_p = o->top_p,
        .seed = (uint64_t)o->common.seed,
        .on_token = on_token,
        .user = w,
    };
    struct generate_prompt prompt = {w->tokens.id, (uint32_t)w->tokens.count, 0};
    int32_t *out;
    TRY(completions_stop_ids(&how.stop, &how.stops, &w->setup.model, w->setup.tokenizer,
                             &w->arena));
    TRY(arena_take(&out, &w->arena, how.tokens, sizeof *out));
    w->stream = (struct tokenizer_stream){.tokenizer = w->setup.tokenizer, .special = o->special};
    TRY(generate_one(out, count, w->setup.engine, setup_adapter(&w->setup), &prompt, &how));
    TRY(w->failed);
    size_t before = w->text.size;
    TRY(tokenizer_stream_end(&w->text, &w->stream));
    TRY(show(w, before));
    return stop_check();
}

/* Both buffers get an empty text first, so that their data is never NULL. The newline after the
 * text is printed also after an error, to leave the terminal in order. */
static err generate_run(void *options, const struct option_list *arguments, struct arena *arena)
{
    (void)arguments, (void)arena;
    struct work w = {
        .o = options, .prompt.max = LIMIT_LINE_BYTES * 2ull, .text.max = LIMIT_LINE_BYTES};
    const struct generate_command *o = w.o;
    uint32_t count = 0;
    err e = ERR_NONE;
    TRY_OUT(e, bytes_append(&w.prompt, "", 0));
    TRY_OUT(e, bytes_append(&w.text, "", 0));
    TRY_OUT(e, setup_open(&w.setup, &(struct setup_options){.common = &o->common,
                                                            .base = o->base,
                                                            .adapter = o->adapter,
                                                            .state = o->state,
                                                            .base_memory = o->base_memory,
                                                            .inference = true,
                                                            .text = true}));
    TRY_OUT(e, read_prompt(&w));
    TRY_OUT(e, encode_prompt(&w));
    e = run_model(&w, &count);
    /* Also after an error, so that the message starts on a line of its own. */
    if (!o->common.json && w.text.size) printf("\n");
    if (err_is(e) || !o->common.json) goto out;
    json_t *result = json_pack("{s:s#, s:i, s:i}", "text", w.text.data, (int)w.text.size, "tokens",
                               (int)count, "prompt_tokens", (int)w.tokens.count);
    e = result ? report_json(result) : err_make(ERR_MACHINE, "no memory for the result");
    json_decref(result);
out:
    bytes_close(&w.text);
    bytes_close(&w.prompt);
    tokens_close(&w.tokens);
    arena_close(&w.arena);
    setup_close(&w.setup);
    return e;
}

const struct command command_generate = {
    .name = "generate",
    .purpose = "generate text with a base model, an adapter or a state",
    .usage = "--base B [--adapter DIR | --state FILE] [--chat] [--prompt TEXT] [options]",
    .example = "fedlora generate --base SmolLM2-135M-Instruct --chat --prompt \"What is the "
               "capital of France?\"",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct generate_command),
    .run = generate_run,
};
