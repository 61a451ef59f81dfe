/* Byte pair encoding of one word: neighbouring symbols are joined, the pair of the lowest rank
 * first and of equal ranks the leftmost, until no pair can be joined.
 *
 * A symbol is a byte string. Most symbols are tokens; some exist only as steps towards one. A table
 * maps a pair of symbols to its rank and the joined symbol. The table is filled from a list of
 * merges or from the scores of a SentencePiece vocabulary, in which two neighbours may join if
 * their joined text is a token. Once built, a struct bpe is immutable and shared; each thread has
 * its own struct bpe_scratch.
 *
 *   bpe_init();
 *   bpe_add_token() for each token
 *   bpe_add_merge() for each merge, or bpe_merge_by_score() once
 *   bpe_seal();
 *   bpe_encode() any number of times */
#ifndef ENGINE_BPE_H
#define ENGINE_BPE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NONE UINT32_MAX

struct bpe_symbol {
    uint32_t at, size; /* bytes in struct bpe.text */
    int32_t token;     /* id, or -1: only a step towards a token */
};

struct bpe_pair {
    uint32_t left, right; /* left BPE_NONE: free slot */
    uint32_t rank, joined;
};

struct bpe { /* after bpe_init() ready to be filled */
    char *text;
    size_t text_size, text_capacity;
    struct bpe_symbol *symbol;
    size_t count, capacity;
    uint32_t *slot; /* symbol by text, open addressing, BPE_NONE free */
    size_t slots;
    struct bpe_pair *pair;
    size_t pairs, pair_slots;

    bool bytes; /* a word starts as its bytes, else as its characters */
    bool whole; /* a word that is a token stays whole (ignore_merges) */
    bool early; /* unknown characters are replaced before joining (Hugging Face), else after it */
    bool fuse_unknown;   /* neighbouring unknown characters become one token (with `early`) */
    bool byte_fallback;  /* an unknown character becomes the tokens of its bytes, if all exist */
    bool words_by_mark;  /* text can be cut before the marks of words, see bpe_seal() */
    uint32_t unknown;    /* symbol of the unknown token; BPE_NONE: unknown text is dropped */
    uint32_t byte[256];  /* symbol of one byte (bytes), or of its token <0xNN> (byte_fallback) */
    uint32_t ascii[128]; /* symbol of a one-byte character */
};

void bpe_init(struct bpe *b);
void bpe_close(struct bpe *b);
/* If two tokens have the same text, the first one is kept. */
err bpe_add_token(struct bpe *b, const char *text, size_t size, int32_t token);
/* With `replace` a later merge of the same pair replaces an earlier one, else it is ignored. Parts
 * that are not symbols yet are added. */
struct bpe_merge {
    const char *left, *right;
    size_t left_size, right_size;
    uint32_t rank;
    bool replace;
};
err bpe_add_merge(struct bpe *b, const struct bpe_merge *merge);
/* score[token]: a higher score is joined earlier. */
err bpe_merge_by_score(struct bpe *b, const float *score, size_t tokens);
/* Call it after filling: makes the tables of single bytes. Sets words_by_mark when no symbol has
 * the mark U+2581 after another character; then long text may be cut before the marks, with the
 * same result in linear time. */
void bpe_seal(struct bpe *b);
uint32_t bpe_find(const struct bpe *b, const char *text, size_t size); /* symbol or BPE_NONE */

struct bpe_node;
struct bpe_job;
struct bpe_word;
struct bpe_scratch { /* a zeroed one is valid */
    struct bpe_node *node;
    struct bpe_job *heap;
    size_t node_capacity, heap_count, heap_capacity;
    struct bpe_word *cache;
    /* The result for the last word: */
    int32_t *id;
    uint32_t *start; /* byte offset in the word */
    size_t count, capacity;
};
void bpe_scratch_close(struct bpe_scratch *s);
/* Sets s->id, s->start and s->count to the tokens of the word. */
err bpe_encode(struct bpe_scratch *s, const struct bpe *b, const char *word, uint32_t size);

#endif
