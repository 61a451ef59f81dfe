/* Finds the added tokens of a tokenizer in text, before any other step sees the text. Added tokens
 * are the special tokens and the words that were added to the vocabulary. A set of tokens is
 * immutable once sealed. Matches do not overlap. */
#ifndef ENGINE_ADDED_H
#define ENGINE_ADDED_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct added_token {
    const char *text; /* borrowed, not empty */
    uint32_t size;
    int32_t id;
    bool special;        /* found only by calls with `special` */
    bool single_word;    /* no match next to a letter, digit or underscore */
    bool lstrip, rstrip; /* the match includes the white space before or after it */
};

enum added_order {
    ADDED_LEFTMOST, /* the leftmost match and, at one place, the longest (Hugging Face) */
    ADDED_LONGEST,  /* all matches of the longest token first, then shorter ones (llama.cpp) */
};

struct added {                 /* a zeroed one is valid and finds nothing */
    struct added_token *token; /* sorted by text once sealed */
    size_t count, capacity;
    enum added_order order;
    bool first[256]; /* some token starts with this byte */
};

struct added_match {
    uint32_t begin, end; /* bytes of the text, including stripped white space */
    int32_t id;
};

struct added_matches { /* a zeroed one is valid; callers reuse it, because it keeps its memory */
    struct added_match *match;
    size_t count, capacity;
};

err added_put(struct added *a, const struct added_token *token); /* before added_seal() */
void added_seal(struct added *a);
void added_close(struct added *a);

/* Sets *out to the matches, in the order of the text. */
err added_find(struct added_matches *out, const struct added *a, const char *text, uint32_t size,
               bool special);
void added_matches_close(struct added_matches *m);

#endif
