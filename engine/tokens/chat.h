/* Chat templates: from messages to the text that the model was trained on, with the places of the
 * assistant's turns.
 *
 * A template is a Jinja program (jinja.h). Messages are handed to it as they are in the data file,
 * with all their members, as transformers does. A template that cannot be interpreted, or that
 * refuses the messages, is an error; the text is never approximated. */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H

#include "base/bytes.h"
#include "base/err.h"
#include "engine/tokens/tokenizer.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct chat; /* a template with the special tokens of a tokenizer; immutable, so threads share it */

/* The template named by `choice`: a built-in name (chat_names()) or the path of a Jinja file; NULL:
 * the model's own, and with tools its template "tool_use" if it has one. ERR_INPUT if there is
 * none or if it cannot be parsed. `t` is borrowed until chat_close(). */
err chat_open(struct chat **out, const struct tokenizer *t, const char *choice);
/* For tests and fuzzing: a template from text. `specials` has texts by name (bos_token, eos_token,
 * ...) and may be NULL; the texts of eos_token and eot_token end an answer. */
err chat_open_text(struct chat **out, const char *jinja, size_t size, const json_t *specials);
void chat_close(struct chat *c); /* accepts NULL */

/* "the model's own", "chatml", "template.jinja": for reports. */
const char *chat_name(const struct chat *c);
/* Names of the built-in templates, and the same in one text for help and errors. */
enum { CHAT_BUILTINS = 9 };
void chat_names(const char *out[CHAT_BUILTINS]);
#define CHAT_NAMES "chatml, llama2, llama3, mistral, zephyr, gemma, phi3, alpaca, vicuna"
/* Whether the template mentions this member of messages or variable (tool_calls, tools,
 * reasoning_content, ...). If it does not, the member cannot reach the text. */
bool chat_mentions(const struct chat *c, const char *name);

struct chat_span { /* bytes [begin, end) of the rendered text */
    size_t begin, end;
};

/* The learned parts, in order. A zeroed one is valid; chat_spans_close() frees it. */
struct chat_spans {
    struct chat_span *span;
    size_t count, capacity;
    /* Set, and never cleared here: */
    bool earlier_changed; /* the template writes earlier turns otherwise once later ones follow, as
                             Qwen3's drops their thinking */
    bool left_out;        /* the template leaves out a message of the system or the user */
};
void chat_spans_close(struct chat_spans *spans);

struct chat_input {
    const json_t *messages;  /* list of objects, at least one; given to the template unchanged */
    const json_t *tools;     /* NULL or null: none */
    const json_t *documents; /* NULL or null: none */
    const json_t *variables; /* NULL, or an object of further variables (enable_thinking, ...) */
    const bool *unlearned;   /* (messages) assistant turns that are not learned; NULL: none */
    bool generate;           /* end with an open assistant turn (add_generation_prompt) */
    const char *date; /* "26 Jul 2024" is the default, so that the same messages give the same text
                         every day */
};

/* Appends the text to *out and the learned parts to *spans (may be NULL).
 *
 * Learned is the text inside {% generation %} if the template has it. Otherwise it is, for each
 * assistant turn, the text that the turn adds to the text before it with its generation prompt, up
 * to the token that ends the turn.
 *
 * ERR_INPUT if the template refuses the messages, or naming the message whose turn cannot be found
 * in the text. On failure *out and *spans are unchanged. */
err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat *c,
                const struct chat_input *input);

#endif
