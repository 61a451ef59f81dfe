/* The pre-tokenizer: text to the words that byte pairs are merged in. A list of steps, each of
 * which cuts every word it is given by a regular expression (PCRE2, JIT), or puts something in
 * front of it. Immutable once read, shared by threads; each use needs its own struct split_scratch.
 *
 * From tokenizer.json: Sequence, ByteLevel, Split, Digits, Punctuation, Metaspace, Whitespace,
 * WhitespaceSplit, CharDelimiterSplit. From a GGUF file: llama.cpp's pre-tokenizers by name. Any
 * other is refused by name. */
#ifndef CLIENT_SPLIT_H
#define CLIENT_SPLIT_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "base/arena.h"
#include "engine/tokens/piece.h"

#include <jansson.h>
#include <pcre2.h>

enum { SPLIT_STEPS_MAX = 12 };

enum split_behavior {
    SPLIT_ISOLATED,
    SPLIT_REMOVED,
    SPLIT_WITH_PREVIOUS,
    SPLIT_WITH_NEXT,
    SPLIT_CONTIGUOUS,
};

enum split_kind {
    SPLIT_REGEX,
    SPLIT_SPACE,     /* a space in front, unless there is one */
    SPLIT_METASPACE, /* spaces become `mark`; the mark in front, unless there is one */
};

struct split_step {
    enum split_kind kind;
    pcre2_code *regex;
    enum split_behavior behavior;
    bool invert;
    const char *mark;
    uint32_t mark_size;
    bool prefix, prefix_first_only;
};

struct split { /* zeroed: every text is one word */
    struct split_step step[SPLIT_STEPS_MAX];
    size_t count;
    bool unicode_15; /* letters and numbers of Unicode 15.1, as llama.cpp; else 16 */
    bool byte_level; /* words are bytes, written with the 256 letters of GPT-2 in the vocabulary */
};

/* On failure *out must still be closed. */
err split_read(struct split *out, struct arena *arena, const json_t *json);
err split_named(struct split *out, const char *gguf_name);
void split_close(struct split *s);

struct split_scratch {
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack;
    struct piece_buffer buffer[SPLIT_STEPS_MAX];
};
err split_scratch_open(struct split_scratch *s);
void split_scratch_close(struct split_scratch *s);

/* Calls `word` for each word in order; the piece is valid during the call. `text` is valid UTF-8.
 */
struct split_sink {
    err (*word)(void *object, const struct piece *word);
    void *object;
};
err split_run(const struct split *s, struct split_scratch *scratch, const struct piece *text,
              const struct split_sink *sink);

/* Byte-level vocabularies (GPT-2) write each byte as a letter, a code point below 324. The byte of a
 * letter, or -1 if c is not one of these letters. */
int split_byte_of_letter(uint32_t letter);

#endif
