/* Finding a tokenizer's added tokens (special ones, and words the user's vocabulary added) in text,
 * before anything else looks at it. Immutable once sealed; found matches do not overlap. */
#ifndef CLIENT_ADDED_H
#define CLIENT_ADDED_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    const char *text; /* borrowed, not empty */
    uint32_t size;
    int32_t id;
    bool special;        /* found only when special tokens are asked for */
    bool single_word;    /* not next to a letter, digit or underscore */
    bool lstrip, rstrip; /* takes the white space before, after it */
};

enum added_order {
    ADDED_LEFTMOST, /* the leftmost match, of those the longest (Hugging Face) */
    ADDED_LONGEST,  /* the longest token anywhere first (llama.cpp) */
};

struct added {                 /* zeroed is ready and finds nothing */
    struct added_token *token; /* sorted by text once sealed */
    size_t count, capacity;
    enum added_order order;
    bool first[256]; /* some token starts with this byte */
};

struct added_match {
    uint32_t begin, end; /* bytes of the text, with the white space taken */
    int32_t id;
};

struct added_matches { /* zeroed is ready; kept by the caller between calls */
    struct added_match *match;
    size_t count, capacity;
};

err added_put(struct added *a, const struct added_token *token); /* before added_seal */
void added_seal(struct added *a);
void added_close(struct added *a);

/* Replaces what *out held by the matches in order of place. */
err added_find(struct added_matches *out, const struct added *a, const char *text, uint32_t size,
               bool special);
void added_matches_close(struct added_matches *m);

#endif
