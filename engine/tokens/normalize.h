/* The `normalizer` of a tokenizer.json: a list of steps that rewrite text before it is split.
 * Immutable once read. Unicode forms are utf8proc's. Known: NFC, NFD, NFKC, NFKD, Lowercase, Strip,
 * Prepend, Replace (by a string), and sequences of them; any other is refused by name. */
#ifndef CLIENT_NORMALIZE_H
#define CLIENT_NORMALIZE_H

#include "base/arena.h"
#include "engine/tokens/piece.h"

#include <jansson.h>

enum { NORMALIZE_STEPS_MAX = 16 };

enum normalize_kind {
    NORMALIZE_NFC,
    NORMALIZE_NFD,
    NORMALIZE_NFKC,
    NORMALIZE_NFKD,
    NORMALIZE_LOWERCASE,
    NORMALIZE_STRIP,
    NORMALIZE_PREPEND, /* `content`, unless the text is empty */
    NORMALIZE_REPLACE, /* every `pattern` by `content` */
};

struct normalize_step {
    enum normalize_kind kind;
    const char *pattern, *content;
    uint32_t pattern_size, content_size;
    bool left, right;
};

struct normalize { /* zeroed: changes nothing */
    struct normalize_step step[NORMALIZE_STEPS_MAX];
    size_t count;
};

/* Texts are copied to the arena; json null gives an empty list. */
err normalize_read(struct normalize *out, struct arena *arena, const json_t *json);

struct normalize_buffers { /* zeroed is ready */
    struct piece_buffer buffer[2];
};
void normalize_buffers_close(struct normalize_buffers *b);

/* *out is `in` itself when nothing changes, else lies in the buffers until their next use. */
err normalize_run(struct piece *out, const struct normalize *n, const struct piece *in,
                  struct normalize_buffers *buffers);

#endif
