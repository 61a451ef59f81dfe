/* Chat templates by name: from messages to the text the model was trained on, with the places of
 * the assistant's turns.
 *
 * A model carries its template as a Jinja program. It is not executed: it is recognised by what it
 * contains and rendered by the family's own rules, which give the same text for plain messages with
 * roles system, user and assistant (no tools, no images). A template that is not recognised is
 * refused. */
#ifndef CLIENT_CHAT_H
#define CLIENT_CHAT_H

#include "base/bytes.h"
#include "base/err.h"
#include "client/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

struct chat_template;

struct chat_message {
    const char *role, *content; /* UTF-8, zero-terminated */
};

struct chat_span { /* bytes [begin, end) of the rendered text */
    size_t begin, end;
};

/* The assistant's turns, each from its first byte to the end of the token that closes it, as the
 * template prints it. Zeroed is ready; chat_spans_close() frees it. */
struct chat_spans {
    struct chat_span *span;
    size_t count, capacity;
};
void chat_spans_close(struct chat_spans *spans);

struct chat_options {
    bool generate; /* end with what opens an assistant turn (add_generation_prompt) */
    const char
        *date; /* for templates that print one, "26 Jul 2024"; NULL: the template's fixed date */
};

/* The template of this model. ERR_INPUT when it carries none, or one that is not known. */
err chat_find(const struct chat_template **out, const struct tokenizer *t);
/* By name: "smollm2", "qwen2.5", "llama3.1", ...; NULL when there is none. */
const struct chat_template *chat_named(const char *name);
/* The name a Jinja text is recognised by, or NULL. */
const struct chat_template *chat_recognise(const char *jinja);
const char *chat_name(const struct chat_template *c);

/* Appends the text to *out and the assistant's turns to *spans (may be NULL). ERR_INPUT, naming the
 * message, where the template itself refuses (unknown role, turns that do not alternate). On
 * failure both are as before. */
err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat_template *c,
                const struct chat_message *message, size_t count,
                const struct chat_options *options);

#endif
