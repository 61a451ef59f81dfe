/* Byte pair encoding of one word: pieces that may join are joined, the best pair first (lowest
 * rank; of equals the leftmost), until none is left.
 *
 * Symbols are byte strings; most are tokens, some only occur on the way to one. A table gives for a
 * pair of symbols the rank and the joined symbol. It is filled from a list of merges, or from the
 * scores of a SentencePiece vocabulary (any two neighbours whose text together is a token may
 * join). Built once, then immutable and shared; each thread needs its own struct bpe_scratch.
 *
 *   bpe_add_token ... ; bpe_add_merge ... | bpe_merge_by_score ; bpe_encode ... */
#ifndef CLIENT_BPE_H
#define CLIENT_BPE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define BPE_NONE UINT32_MAX

struct bpe_symbol {
    uint32_t at, size; /* in struct bpe.text */
    int32_t token;     /* id, or -1: only a step on the way */
};

struct bpe_pair {
    uint32_t left, right; /* left BPE_NONE: free slot */
    uint32_t rank, joined;
};

struct bpe { /* zeroed is ready to be filled */
    char *text;
    size_t text_size, text_capacity;
    struct bpe_symbol *symbol;
    size_t count, capacity;
    uint32_t *slot; /* symbol by text, open addressing, BPE_NONE free */
    size_t slots;
    struct bpe_pair *pair;
    size_t pairs, pair_slots;

    bool bytes; /* a word starts as its bytes; else as its characters */
    bool whole; /* a word that is a token is not taken apart (ignore_merges) */
    bool early; /* unknown characters are replaced before joining (Hugging Face), else after */
    bool fuse_unknown;   /* neighbouring unknown characters are one (early only) */
    bool byte_fallback;  /* an unknown character becomes its bytes' tokens, where all exist */
    bool words_by_mark;  /* no symbol continues over the start of a word's mark: see bpe_seal */
    uint32_t unknown;    /* symbol of the unknown token, or BPE_NONE: dropped */
    uint32_t byte[256];  /* symbol of one byte (bytes), or of its token <0xNN> (byte_fallback) */
    uint32_t ascii[128]; /* symbol of a one-byte character */
};

void bpe_init(struct bpe *b);
void bpe_close(struct bpe *b);
/* The first token of a text keeps it. */
err bpe_add_token(struct bpe *b, const char *text, size_t size, int32_t token);
/* With `replace` a later merge of the same pair counts, else the first. Parts that are not yet
 * symbols become such. */
struct bpe_merge {
    const char *left, *right;
    size_t left_size, right_size;
    uint32_t rank;
    bool replace;
};
err bpe_add_merge(struct bpe *b, const struct bpe_merge *merge);
/* score[token], higher is better. */
err bpe_merge_by_score(struct bpe *b, const float *score, size_t tokens);
/* After filling: the tables of single bytes. Sets words_by_mark when no symbol has the mark U+2581
 * after another character, so that a long text may be taken apart in front of marks. */
void bpe_seal(struct bpe *b);
uint32_t bpe_find(const struct bpe *b, const char *text, size_t size); /* symbol or BPE_NONE */

struct bpe_node;
struct bpe_job;
struct bpe_word;
struct bpe_scratch { /* zeroed is ready */
    struct bpe_node *node;
    struct bpe_job *heap;
    size_t node_capacity, heap_count, heap_capacity;
    struct bpe_word *cache;
    /* Of the last word: */
    int32_t *id;
    uint32_t *start; /* byte offset in the word */
    size_t count, capacity;
};
void bpe_scratch_close(struct bpe_scratch *s);
/* The word's tokens replace what s->id, s->start held. */
err bpe_encode(struct bpe_scratch *s, const struct bpe *b, const char *word, uint32_t size);

#endif
