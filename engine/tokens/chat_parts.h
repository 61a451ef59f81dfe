/* The parts of the chat layer: chat.c opens templates and renders, chat_learned.c finds what is
 * learned, chat_builtin.c has the templates with names. Used only there. */
#ifndef ENGINE_CHAT_PARTS_H
#define ENGINE_CHAT_PARTS_H

#include "engine/tokens/chat.h"
#include "engine/tokens/jinja.h"

enum { CHAT_NAME_BYTES = 128, CHAT_ENDS = 32 };

struct chat {
    char name[CHAT_NAME_BYTES];
    struct jinja *plain;
    struct jinja *tools;  /* for messages with tools; NULL: the same as plain */
    json_t *specials;     /* texts of special tokens by name */
    char *end[CHAT_ENDS]; /* texts of the tokens that end an answer */
    size_t ends;
};

/* One call of chat_render(). */
struct chat_work {
    const struct chat *c;
    const struct chat_input *in;
    const struct jinja *program; /* plain or tools */
    json_t *variables;           /* everything that the template gets */
    struct jinja_options options;
    uint64_t steps; /* that are left for all renderings of this call */
};

/* Appends the text of `messages`. On failure *out and *spans are unchanged. */
err chat_text(struct bytes *out, struct jinja_spans *spans, struct chat_work *w,
              const json_t *messages, bool generate);
/* Adds the learned parts of the text in out[begin..], which chat_text() has made of all messages.
 * `tagged`: the parts inside of {% generation %}. */
err chat_learned(struct chat_spans *spans, struct chat_work *w, const struct bytes *out,
                 size_t begin, const struct jinja_spans *tagged);

/* The template of this name, or NULL. */
const char *chat_builtin(const char *name);

#endif
