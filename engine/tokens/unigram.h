/* Unigram tokenizers (SentencePiece): of all ways to cut a word into tokens the one with the
 * highest sum of scores is taken.
 *
 * best[0] = 0;  best[end] = max over tokens word[start .. end) of best[start] + score(token)
 *
 * A character at which no token of one character starts may become the unknown token, whose score
 * is 10 below the lowest one of the vocabulary. Sums are double and of equal sums the one found
 * first is kept, as in Hugging Face tokenizers, so that the ids are the same.
 *
 *   unigram_add() for each token
 *   unigram_seal()
 *   unigram_encode() any number of times; a sealed one is immutable and shared by threads */
#ifndef ENGINE_UNIGRAM_H
#define ENGINE_UNIGRAM_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct unigram_token {
    const char *text; /* borrowed */
    uint32_t size;
    int32_t id;
    double score;
};

struct unigram {                 /* a zeroed one is empty and is valid for unigram_close() */
    struct unigram_token *token; /* sorted by text once sealed */
    size_t count, capacity;
    uint32_t first[257]; /* tokens whose first byte is c: first[c] .. first[c + 1] - 1 */
    double unknown_score;
    bool byte_fallback; /* unknown text becomes the tokens of its bytes, if all exist */
    int32_t byte[256];  /* ids of the tokens <0xNN>, or -1 */
    int32_t unknown;    /* id, or -1: unknown text without byte tokens is an error */
};

/* The text must not be empty. Of tokens with the same text the one with the highest id counts. */
err unigram_add(struct unigram *u, const struct unigram_token *token);
void unigram_seal(struct unigram *u);
void unigram_close(struct unigram *u);

struct unigram_place;    /* the best way to a place of the word */
struct unigram_scratch { /* a zeroed one is valid */
    struct unigram_place *place;
    size_t places;
    /* The result for the last word: */
    int32_t *id;
    uint32_t *start; /* byte offset in the word */
    size_t count, capacity;
};
void unigram_scratch_close(struct unigram_scratch *s);
/* Sets s->id, s->start and s->count to the tokens of the word, which must be valid UTF-8. ERR_INPUT
 * for unknown text if the vocabulary has neither an unknown token nor all bytes. */
err unigram_encode(struct unigram_scratch *s, const struct unigram *u, const char *word,
                   uint32_t size);

#endif
