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
#include "engine/tokens/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

enum chat_family {
    CHAT_CHATML,  /* <|im_start|>user ... <|im_end|>: SmolLM2, Qwen2, Qwen2.5 and many others */
    CHAT_QWEN3,   /* the same, with thinking before the last answers */
    CHAT_LLAMA2,  /* [INST] <<SYS>> */
    CHAT_LLAMA3,  /* <|start_header_id|>; 3.1 and later print dates in a system turn of their own */
    CHAT_MISTRAL, /* [INST] without <<SYS>> */
    CHAT_ZEPHYR,  /* <|user|>, turns end with eos: TinyLlama */
};

enum { CHAT_SYSTEM_BYTES = 1024, CHAT_TOKEN_BYTES = 64 };

struct chat_template {
    const char *name; /* "smollm2", "qwen2.5", "llama3.1", ... */
    enum chat_family family;
    char system[CHAT_SYSTEM_BYTES]; /* said when the messages have no system turn; empty: nothing */
    char bos[CHAT_TOKEN_BYTES], eos[CHAT_TOKEN_BYTES]; /* as text; empty: the model has none */
    bool says_bos;                                     /* chatml: the text begins with bos */
    bool dated;                                        /* llama3: the system turn with dates */
    bool always_generate; /* opens an assistant turn whether asked or not (the first llama3) */
    bool open_thought;    /* qwen3: an opened answer starts with <think> */
    const char *user_before, *user_after, *answer_before, *answer_after; /* mistral */
    bool trim_answer, system_last, no_system;                            /* mistral */
};

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
    bool generate;    /* end with what opens an assistant turn (add_generation_prompt) */
    const char *date; /* for templates that print one; NULL: "26 Jul 2024", so that the same
                         messages give the same text every day */
};

/* The template of this model. ERR_INPUT when it carries none, or one that is not known. */
err chat_find(struct chat_template *out, const struct tokenizer *t);
/* What a Jinja text is recognised as; bos and eos are left empty. */
err chat_recognise(struct chat_template *out, const char *jinja);

/* Appends the text to *out and the assistant's turns to *spans (may be NULL). ERR_INPUT, naming the
 * message, where the template itself refuses (unknown role, turns that do not alternate). On
 * failure both are as before. */
err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat_template *c,
                const struct chat_message *message, size_t count,
                const struct chat_options *options);

#endif
