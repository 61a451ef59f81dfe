/* The parts of a tokenizer: filled by vocab_hf.c or vocab_gguf.c, used only in tokenizer.c. */
#ifndef ENGINE_TOKENIZER_PARTS_H
#define ENGINE_TOKENIZER_PARTS_H

#include "base/arena.h"
#include "engine/tokens/added.h"
#include "engine/tokens/bpe.h"
#include "engine/tokens/normalize.h"
#include "engine/tokens/split.h"
#include "engine/tokens/tokenizer.h"
#include "engine/tokens/unigram.h"

#include <pthread.h>

struct gguf;

struct tokenizer_token {
    const char *text;  /* as the vocabulary writes it; NULL: no such id */
    const char *bytes; /* its text when decoded */
    uint32_t size;
    bool special; /* decoded only by calls with `special` */
    bool ends;    /* ends an answer */
};

struct tokenizer_scratch { /* working memory of one call of tokenizer_encode(), reused */
    struct tokenizer_scratch *next;
    struct piece_buffer repaired;
    struct normalize_buffers normalized;
    struct added_matches raw, normal;
    struct split_scratch split;
    struct bpe_scratch bpe;
    struct unigram_scratch unigram;
};

struct tokenizer {
    struct arena arena;
    char kind[128];
    struct tokenizer_token *token; /* (vocab) */
    size_t vocab;
    int32_t bos, eos;
    json_t *templates;   /* texts of chat templates by name; NULL: none */
    json_t *specials;    /* texts of special tokens by name; NULL: none */
    struct added raw;    /* added tokens found in the original text */
    struct added normal; /* added tokens found in the normalised text */
    struct normalize normalize;
    struct split split;
    struct bpe bpe;
    struct unigram unigram; /* used instead of bpe if it has tokens */
    bool strip_space;       /* decoding removes one space at the start of a text */
    pthread_mutex_t lock;
    struct tokenizer_scratch *idle; /* list of unused ones; guarded by lock */
};

/* Fill a zeroed tokenizer whose mutex is initialised. On failure the caller closes it. */
err vocab_hf_read(struct tokenizer *t, const char *dir);
err vocab_gguf_read(struct tokenizer *t, const char *path);
/* Fills t->unigram and the texts of the tokens from the `model` of a tokenizer.json. */
err unigram_read(struct tokenizer *t, const json_t *model);
/* Reads the chat templates and the names of special tokens beside a tokenizer.json, or from a
 * GGUF, once the vocabulary, bos and eos are known. */
err vocab_template_read_hf(struct tokenizer *t, const char *dir);
err vocab_template_read_gguf(struct tokenizer *t, const struct gguf *g);
/* Makes room for the ids 0 .. vocab - 1. */
err tokenizer_make_room(struct tokenizer *t, size_t vocab);
/* Appends the bytes of a token written in byte-level letters. Returns false, with *out unchanged,
 * if a character is no such letter. */
bool tokenizer_unletter(struct bytes *out, const char *text, size_t size);
/* Marks eos and the special tokens whose usual names end an answer, for models that declare
 * less. */
void tokenizer_mark_ends(struct tokenizer *t);
bool tokenizer_ends_by_name(const char *text);

#endif
