/* The pre-tokenizer: cuts text into the words in which byte pairs are merged. It is a list of
 * steps. A step cuts each word by a regular expression (PCRE2 with JIT) or puts a text before it.
 * Immutable once read and shared by threads; each user has its own struct split_scratch.
 *
 * From tokenizer.json: Sequence, ByteLevel, Split, Digits, Punctuation, Metaspace, Whitespace,
 * WhitespaceSplit, CharDelimiterSplit. From a GGUF file: the pre-tokenizers of llama.cpp by name.
 * Any other is refused by name. */
#ifndef ENGINE_SPLIT_H
#define ENGINE_SPLIT_H

#define PCRE2_CODE_UNIT_WIDTH 8

#include "base/arena.h"
#include "engine/tokens/piece.h"

#include <jansson.h>
#include <pcre2.h>

enum { SPLIT_STEPS_MAX = 12 };

/* The use of a match, by the names of tokenizer.json. */
enum split_behavior {
    SPLIT_ISOLATED,      /* a word of its own */
    SPLIT_REMOVED,       /* dropped */
    SPLIT_WITH_PREVIOUS, /* joined to the text before it */
    SPLIT_WITH_NEXT,     /* joined to the text after it */
    SPLIT_CONTIGUOUS,    /* neighbouring matches form one word */
};

enum split_kind {
    SPLIT_REGEX,
    SPLIT_SPACE,     /* puts a space first, unless there is one */
    SPLIT_METASPACE, /* spaces become `mark`; puts the mark first, unless there is one */
};

struct split_step {
    enum split_kind kind;
    pcre2_code *regex;
    enum split_behavior behavior;
    bool invert; /* the text between matches is treated as the matches */
    const char *mark;
    uint32_t mark_size;
    bool prefix, prefix_first_only;
};

struct split { /* a zeroed one makes each text one word */
    struct split_step step[SPLIT_STEPS_MAX];
    size_t count;
    bool unicode_15; /* letters and numbers of Unicode 15.1, as llama.cpp; else Unicode 16 */
    bool byte_level; /* words are bytes; the vocabulary writes them with 256 letters (GPT-2) */
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

struct split_sink {
    err (*word)(void *object, const struct piece *word);
    void *object;
};
/* Calls sink->word for each word in order; the piece is valid during the call. `text` must be valid
 * UTF-8. */
err split_run(const struct split *s, struct split_scratch *scratch, const struct piece *text,
              const struct split_sink *sink);

/* Byte-level vocabularies (GPT-2) write each byte as a letter, a code point below 324. Returns the
 * byte of a letter, or -1 for any other code point. */
int split_byte_of_letter(uint32_t letter);

#endif
