/* What a tokenizer is made of: filled by vocab_hf.c or vocab_gguf.c, used by tokenizer.c alone. */
#ifndef CLIENT_TOKENIZER_PARTS_H
#define CLIENT_TOKENIZER_PARTS_H

#include "base/arena.h"
#include "engine/tokens/added.h"
#include "engine/tokens/bpe.h"
#include "engine/tokens/normalize.h"
#include "engine/tokens/split.h"
#include "engine/tokens/tokenizer.h"

#include <pthread.h>

struct tokenizer_token {
    const char *text;  /* as the vocabulary writes it; NULL: no such id */
    const char *bytes; /* what it decodes to */
    uint32_t size;
    bool special; /* printed only when asked for */
    bool ends;
    bool byte; /* one byte of a character */
};

struct tokenizer_scratch { /* what one call of encode works with; kept for the next */
    struct tokenizer_scratch *next;
    struct piece_buffer repaired;
    struct normalize_buffers normalized;
    struct added_matches raw, normal;
    struct split_scratch split;
    struct bpe_scratch bpe;
};

struct tokenizer {
    struct arena arena;
    char kind[128];
    struct tokenizer_token *token; /* (vocab) */
    size_t vocab;
    int32_t bos, eos;
    const char *template; /* Jinja, or NULL */
    struct added raw;     /* found in the text as it is */
    struct added normal;  /* found in normalised text */
    struct normalize normalize;
    struct split split;
    struct bpe bpe;
    bool strip_space; /* decoding drops one space in front */
    pthread_mutex_t lock;
    struct tokenizer_scratch *idle; /* under lock */
};

/* Each fills a zeroed one whose mutex is ready; on failure what is there is closed by the caller.
 */
err vocab_hf_read(struct tokenizer *t, const char *dir);
err vocab_gguf_read(struct tokenizer *t, const char *path);
/* Makes room for ids below `vocab`. */
err tokenizer_make_room(struct tokenizer *t, size_t vocab);
/* The bytes of a token written in byte-level letters; false when a character is no such letter. */
bool tokenizer_unletter(struct bytes *out, const char *text, size_t size);
/* Marks tokens that by their usual names end an answer. */
void tokenizer_mark_ends(struct tokenizer *t);
bool tokenizer_ends_by_name(const char *text);

#endif
