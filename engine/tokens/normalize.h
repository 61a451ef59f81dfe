/* The `normalizer` of a tokenizer.json: steps that rewrite text before it is split. Immutable once
 * read. Supported: NFC, NFD, NFKC, NFKD (by utf8proc), Lowercase, Strip, Prepend, Replace (of a
 * string) and Sequence. Any other step is refused by name. */
#ifndef ENGINE_NORMALIZE_H
#define ENGINE_NORMALIZE_H

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
    NORMALIZE_PREPEND, /* puts `content` first, unless the text is empty */
    NORMALIZE_REPLACE, /* replaces every `pattern` by `content` */
};

struct normalize_step {
    enum normalize_kind kind;
    const char *pattern, *content;
    uint32_t pattern_size, content_size;
    bool left, right; /* sides that Strip works on */
};

struct normalize { /* a zeroed one changes nothing */
    struct normalize_step step[NORMALIZE_STEPS_MAX];
    size_t count;
};

/* Texts are copied to the arena. NULL or JSON null gives an empty list. */
err normalize_read(struct normalize *out, struct arena *arena, const json_t *json);

struct normalize_buffers { /* a zeroed one is valid; callers reuse it */
    struct piece_buffer buffer[2];
};
void normalize_buffers_close(struct normalize_buffers *b);

/* *out is `in` itself if nothing changes, else it lies in the buffers and is valid until their next
 * use. */
err normalize_run(struct piece *out, const struct normalize *n, const struct piece *in,
                  struct normalize_buffers *buffers);

#endif
