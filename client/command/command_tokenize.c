/* fedlora tokenize: convert text to token ids, or ids to text, with the base model's own tokenizer.
 *
 * It shows exactly what training sees, and tests compare it with the reference tokenizers. Inputs
 * on the command line are taken as they are; lines of standard input are JSON strings, so that a
 * text may contain newlines and any other character. */
#include "base/json.h"
#include "base/limits.h"
#include "client/command/command.h"
#include "client/command/marked.h"
#include "client/command/setup.h"
#include "client/output/report.h"
#include "engine/tokens/chat.h"
#include "engine/tokens/tokenizer.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tokenize_command {
    struct command_common common;
    const char *base, *template;
    int special; /* 0: no, 1: yes */
    bool chat, decode, prompt, show;
};

static const char *const no_yes[] = {"no", "yes", NULL};
#define AT(member) offsetof(struct tokenize_command, member)
static const struct option_row rows[] = {
    {.flag = "base",
     .letter = 'b',
     .kind = OPTION_TEXT,
     .required = true,
     .at = AT(base),
     .value = "PATH",
     .help = "base model whose tokenizer is used: a Hugging Face directory or a .gguf file"},
    /* A choice and not a flag, so that both values can be written explicitly in tests. */
    {.flag = "special",
     .kind = OPTION_CHOICE,
     .at = AT(special),
     .fallback = "yes",
     .choices = no_yes,
     .help = "encode the names of special tokens in the text as their ids; with --decode, print "
             "special tokens"},
    {.flag = "chat",
     .kind = OPTION_FLAG,
     .at = AT(chat),
     .help = "read each input as a conversation, a JSON list of {\"role\",\"content\"}, an object "
             "with \"messages\" or one user message, and apply the chat template"},
    SETUP_ROW_TEMPLATE(AT(template), NULL),
    {.flag = "show",
     .kind = OPTION_FLAG,
     .at = AT(show),
     .help = "with --chat, print the text of the conversation with its learned parts marked, in "
             "place of token ids"},
    {.flag = "generation-prompt",
     .kind = OPTION_FLAG,
     .at = AT(prompt),
     .fallback = "yes",
     .help = "with --chat, do not append the tokens that open the assistant's turn"},
    {.flag = "decode",
     .kind = OPTION_FLAG,
     .at = AT(decode),
     .help = "read each input as a list of token ids and print its text"},
};

/* The open tokenizer, and the results so far if they are printed as one JSON document. */
struct work {
    const struct tokenize_command *o;
    struct tokenizer *tokenizer;
    struct chat *chat; /* with --chat */
    json_t *results;   /* with --json: what is printed at the end */
};

/* ---- one input ---- */

/* Without --json every input is printed at once on a line of its own, so that long inputs
 * stream. */
static err add_ids(struct work *w, const char *text, size_t size)
{
    struct tokens tokens = {0};
    err e = tokenizer_encode(&tokens, w->tokenizer, text, size, w->o->special == 1);
    json_t *ids = w->results && !err_is(e) ? json_array() : NULL;
    for (size_t i = 0; i < tokens.count && !err_is(e); i++) {
        if (ids)
            json_array_append_new(ids, json_integer(tokens.id[i]));
        else
            printf("%s%" PRId32, i ? " " : "", tokens.id[i]);
    }
    if (ids)
        json_array_append_new(w->results, ids);
    else if (!err_is(e))
        printf("\n");
    tokens_close(&tokens);
    return e;
}

/* With --json the parts are given by their text; else they are marked in the text. */
static err show_chat(struct work *w, const struct bytes *text, const struct chat_spans *spans)
{
    const char *data = (const char *)text->data;
    if (!w->results) {
        struct bytes marked = {.max = 8 * (size_t)LIMIT_LINE_BYTES};
        err e = marked_text(&marked, data, text->size, spans);
        if (!err_is(e)) printf("%s\n", (const char *)marked.data);
        bytes_close(&marked);
        return e;
    }
    json_t *learned = json_array();
    for (size_t i = 0; i < spans->count; i++) {
        struct chat_span s = spans->span[i];
        json_array_append_new(learned, json_stringn(data + s.begin, s.end - s.begin));
    }
    json_array_append_new(
        w->results,
        json_pack("{s:o, s:o}", "text", json_stringn(data, text->size), "learned", learned));
    return ERR_NONE;
}

static err render_chat(struct work *w, const struct chat_input *input, const char *where)
{
    struct bytes text = {.max = LIMIT_LINE_BYTES};
    struct chat_spans spans = {0};
    err e = chat_render(&text, w->o->show ? &spans : NULL, w->chat, input);
    if (err_is(e))
        e = err_in(e, "%s", where);
    else
        e = w->o->show ? show_chat(w, &text, &spans)
                       : add_ids(w, (const char *)text.data, text.size);
    chat_spans_close(&spans);
    bytes_close(&text);
    return e;
}

/* A conversation is a list of messages, an object with "messages" as in a data file, or one string,
 * which is a single user message. */
static err add_chat(struct work *w, const json_t *value, const char *where)
{
    /* Bounds the memory for a list of unknown size. */
    enum { MESSAGES_MAX = 4096 };
    const json_t *given = json_is_object(value) ? json_object_get(value, "messages") : value;
    json_t *one =
        json_is_string(value) ? json_pack("[{s:s, s:O}]", "role", "user", "content", value) : NULL;
    struct chat_input input = {.messages = one ? one : given,
                               .tools = json_object_get(value, "tools"),
                               .documents = json_object_get(value, "documents"),
                               .variables = json_object_get(value, "chat_template_kwargs"),
                               .generate = w->o->prompt && !w->o->show};
    size_t count = json_array_size(input.messages);
    err e = count > 0 && count <= MESSAGES_MAX
                ? render_chat(w, &input, where)
                : err_make(ERR_INPUT, "%s: expected a string or a list of 1 to %d messages", where,
                           MESSAGES_MAX);
    json_decref(one);
    return e;
}

/* Accepts "1 2 3", "1,2,3" and "[1, 2, 3]", the forms in which other tools print ids. */
static err ids_read(int32_t **out, size_t *count, const char *text, const char *where)
{
    /* Every id takes at least one digit and one separator. */
    size_t used = 0, room = strlen(text) / 2 + 1;
    int32_t *id = malloc(room * sizeof *id);
    if (!id) return err_make(ERR_MACHINE, "no memory for %zu ids", room);
    for (const char *p = text; *(p += strspn(p, " \t\r\n,[]"));) {
        char *end;
        long value = strtol(p, &end, 10);
        if (end == p || value < 0 || value > INT32_MAX || !strchr(" \t\r\n,]", *end)) {
            free(id);
            return err_make(ERR_INPUT,
                            "%s: \"%.20s\" is not a token id: expected a whole number from 0",
                            where, p);
        }
        id[used++] = (int32_t)value;
        p = end;
    }
    *out = id;
    *count = used;
    return ERR_NONE;
}

/* The text may contain a zero byte, so it is passed to JSON with its length. */
static err add_text(struct work *w, const char *line, const char *where)
{
    int32_t *id = NULL;
    size_t count = 0;
    struct bytes text = {.max = LIMIT_LINE_BYTES};
    TRY(ids_read(&id, &count, line, where));
    err e = tokenizer_decode(&text, w->tokenizer, id, count, w->o->special == 1);
    if (!err_is(e)) {
        const char *found = text.data ? (const char *)text.data : "";
        if (w->results)
            json_array_append_new(w->results, json_stringn(found, text.size));
        else
            printf("%s\n", found);
    }
    bytes_close(&text);
    free(id);
    return err_is(e) ? err_in(e, "%s", where) : e;
}

/* ---- where inputs come from ---- */

/* For --chat an argument that begins like JSON is parsed as JSON; anything else is a user
 * message. */
static err add_argument(struct work *w, const char *text)
{
    if (w->o->decode) return add_text(w, text, "--decode");
    if (!w->o->chat) return add_ids(w, text, strlen(text));
    json_t *value = NULL;
    if (text[0] == '[' || text[0] == '{')
        TRY(json_parse(&value, text, strlen(text), "--chat"));
    else
        value = json_string(text);
    if (!value) return err_make(ERR_INPUT, "--chat: the text is not valid UTF-8");
    err e = add_chat(w, value, "--chat");
    json_decref(value);
    return e;
}

/* Like json_parse(), but accepts U+0000 in the string, which a tokenizer must be able to encode. */
static err parse_text(json_t **out, const char *line, size_t size, const char *where)
{
    json_error_t cause;
    json_t *value = json_loadb(line, size, JSON_DECODE_ANY | JSON_ALLOW_NUL, &cause);
    if (!value) return err_make(ERR_INPUT, "%s:%d: not JSON: %s", where, cause.column, cause.text);
    *out = value;
    return ERR_NONE;
}

/* Empty lines are skipped. Errors name the line of standard input. */
static err add_line(struct work *w, const char *line, size_t size, unsigned number)
{
    char where[40];
    snprintf(where, sizeof where, "standard input:%u", number);
    if (strspn(line, " \t\r\n") == size) return ERR_NONE;
    if (w->o->decode) return add_text(w, line, where);
    json_t *value = NULL;
    err e =
        w->o->chat ? json_parse(&value, line, size, where) : parse_text(&value, line, size, where);
    if (!err_is(e) && w->o->chat)
        e = add_chat(w, value, where);
    else if (!err_is(e) && !json_is_string(value))
        e = err_make(ERR_INPUT, "%s: expected a JSON string", where);
    else if (!err_is(e))
        e = add_ids(w, json_string_value(value), json_string_length(value));
    json_decref(value);
    return e;
}

/* Lines are read one at a time, so that a program can write a line and wait for its ids. */
static err add_lines(struct work *w)
{
    char *line = NULL;
    size_t room = 0;
    err e = ERR_NONE;
    unsigned number = 0;
    /* An interrupt makes getline() return early, so the flag is checked once more after the
     * loop. */
    for (ssize_t size; !err_is(e) && (size = getline(&line, &room, stdin)) >= 0;) {
        e = stop_check();
        if (!err_is(e)) e = add_line(w, line, (size_t)size, ++number);
    }
    free(line);
    if (!err_is(e)) e = stop_check();
    return e;
}

/* The shell splits `--decode 1 2 3` into three arguments, which are meant as one list. If any of
 * them contains several ids, each argument is a list of its own. */
static err join_numbers(struct work *w, const struct option_list *texts, bool *joined)
{
    *joined = w->o->decode && texts->count > 1;
    for (size_t i = 0; i < texts->count; i++)
        if (strpbrk(texts->item[i], " ,")) *joined = false;
    if (!*joined) return ERR_NONE;
    struct bytes all = {.max = LIMIT_LINE_BYTES};
    err e = ERR_NONE;
    for (size_t i = 0; i < texts->count && !err_is(e); i++)
        e = bytes_printf(&all, "%s ", texts->item[i]);
    if (!err_is(e)) e = add_text(w, (const char *)all.data, "--decode");
    bytes_close(&all);
    return e;
}

/* The weights are not opened: a tokenizer needs only a few files of the base. */
static err tokenize_run(void *options, const struct option_list *texts, struct arena *arena)
{
    (void)arena;
    struct work w = {.o = options};
    err e = ERR_NONE;
    bool joined = false;
    TRY_OUT(e, tokenizer_open(&w.tokenizer, w.o->base));
    const struct command_given given[] = {{"show", w.o->show}, {"template", w.o->template != NULL}};
    if (!w.o->chat) TRY_OUT(e, command_check_unused(given, 2, "--chat"));
    if (w.o->chat) TRY_OUT(e, chat_open(&w.chat, w.tokenizer, w.o->template));
    if (w.o->common.json) w.results = json_array();
    TRY_OUT(e, join_numbers(&w, texts, &joined));
    for (size_t i = 0; i < texts->count && !joined; i++)
        TRY_OUT(e, add_argument(&w, texts->item[i]));
    if (texts->count == 0) TRY_OUT(e, add_lines(&w));
    if (w.results) e = report_json(w.results);
out:
    json_decref(w.results);
    chat_close(w.chat);
    tokenizer_close(w.tokenizer);
    return e;
}

const struct command command_tokenize = {
    .name = "tokenize",
    .purpose = "convert text to token ids, or token ids to text",
    .usage =
        "--base B [--chat] [--special yes|no] [--decode] [TEXT...]\n\n"
        "Without TEXT, every line of standard input is one JSON string (with --decode, one list).",
    .example = "fedlora tokenize --base SmolLM2-135M-Instruct \"Hello world\"",
    .rows = rows,
    .row_count = sizeof rows / sizeof *rows,
    .options_size = sizeof(struct tokenize_command),
    .most = 1 << 20,
    .run = tokenize_run,
};
