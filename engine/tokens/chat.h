/* Chat templates: from messages to the text that the model was trained on, with the places of the
 * assistant's turns.
 *
 * A model carries its template as a Jinja program. The program is not executed. It is recognised by
 * texts that it contains and rendered by fixed rules of its family, which give the same text for
 * plain messages with the roles system, user and assistant, without tools and images. A template
 * that is not recognised is refused. */
#ifndef ENGINE_CHAT_H
#define ENGINE_CHAT_H

#include "base/bytes.h"
#include "base/err.h"
#include "engine/tokens/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>

enum chat_family {
    CHAT_CHATML,  /* <|im_start|>user ... <|im_end|>: SmolLM2, Qwen2, Qwen2.5, many others */
    CHAT_QWEN3,   /* as chatml, with the thinking before the last answers */
    CHAT_LLAMA2,  /* [INST] <<SYS>> */
    CHAT_LLAMA3,  /* <|start_header_id|>; 3.1 and later add a system turn with dates */
    CHAT_MISTRAL, /* [INST] without <<SYS>> */
    CHAT_ZEPHYR,  /* <|user|>, turns end with eos: TinyLlama */
};

enum { CHAT_SYSTEM_BYTES = 1024, CHAT_TOKEN_BYTES = 64 };

struct chat_template {
    const char *name; /* "smollm2", "qwen2.5", "llama3.1", ... */
    enum chat_family family;
    char system[CHAT_SYSTEM_BYTES]; /* system turn for messages without one; empty: none */
    char bos[CHAT_TOKEN_BYTES], eos[CHAT_TOKEN_BYTES]; /* as text; empty: the model has none */
    bool says_bos;                                     /* chatml: the text begins with bos */
    bool dated;                                        /* llama3: the system turn with dates */
    bool always_generate; /* the text always ends with an open assistant turn (the first llama3) */
    bool open_thought;    /* qwen3: an open assistant turn starts with <think> */
    const char *user_before, *user_after, *answer_before, *answer_after; /* mistral */
    bool trim_answer, system_last, no_system;                            /* mistral */
};

struct chat_message {
    const char *role, *content; /* UTF-8, zero-terminated */
};

struct chat_span { /* bytes [begin, end) of the rendered text */
    size_t begin, end;
};

/* The assistant's turns, each from its first byte to the end of the token that closes it. A zeroed
 * one is valid; chat_spans_close() frees it. */
struct chat_spans {
    struct chat_span *span;
    size_t count, capacity;
};
void chat_spans_close(struct chat_spans *spans);

struct chat_options {
    bool generate;    /* end with an open assistant turn (add_generation_prompt) */
    const char *date; /* for templates that print the date; NULL: "26 Jul 2024", so that the same
                         messages give the same text every day */
};

/* The template of this model. ERR_INPUT if it has none or one that is not recognised. */
err chat_find(struct chat_template *out, const struct tokenizer *t);
/* Recognises a Jinja text; bos and eos stay empty. */
err chat_recognise(struct chat_template *out, const char *jinja);

/* Appends the text to *out and the assistant's turns to *spans (may be NULL). ERR_INPUT naming the
 * message if the model's template would raise an error too: an unknown role, or turns that do not
 * alternate. On failure *out and *spans are unchanged. */
err chat_render(struct bytes *out, struct chat_spans *spans, const struct chat_template *c,
                const struct chat_message *message, size_t count,
                const struct chat_options *options);

#endif
