/* Text to token ids and back, as the model's own tokenizer does it.
 *
 * Opened from a Hugging Face directory (tokenizer.json, tokenizer_config.json, config.json) or from
 * a .gguf file. Known kinds: byte-level BPE with any pre-tokenizer expressible in tokenizer.json,
 * or a GGUF pre-tokenizer known by name; BPE with byte fallback (Llama 2, Mistral), by merges or by
 * SentencePiece scores. Any other kind is refused by name. Ids equal those of Hugging Face
 * tokenizers for a directory, and those of llama.cpp for a GGUF file.
 *
 * A tokenizer is immutable once open: threads share it. No token is ever added by itself (no bos or
 * eos). Text is UTF-8; each byte that is not part of a valid sequence counts as U+FFFD. */
#ifndef CLIENT_TOKENIZER_H
#define CLIENT_TOKENIZER_H

#include "base/bytes.h"
#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* A zeroed one is ready; the caller owns it and may use it again after tokens_clear(). */
struct tokens {
    int32_t *id;     /* (count) */
    uint32_t *start; /* (count) byte offset in the text where the token's first byte lies */
    size_t count, capacity;
};
void tokens_clear(struct tokens *tokens); /* keeps the memory */
err tokens_push(struct tokens *tokens, int32_t id, uint32_t start);
void tokens_close(struct tokens *tokens);

err tokenizer_open(struct tokenizer **out, const char *base_path);
void tokenizer_close(struct tokenizer *t); /* NULL is fine */

/* Appends the ids of `text`; on failure *out keeps what it held. With `special`, special tokens
 * written in the text become their ids; without, they are ordinary text (tokens the user's
 * vocabulary added that are not special are found either way). At most LIMIT_TEXT_BYTES. */
err tokenizer_encode(struct tokens *out, const struct tokenizer *t, const char *text, size_t bytes,
                     bool special);

/* Appends the text of ids, always valid UTF-8 (what is not becomes U+FFFD). Special tokens are
 * printed when `special`. The space a tokenizer puts in front of a text is taken off again. An id
 * outside the vocabulary is ERR_INPUT. */
err tokenizer_decode(struct bytes *out, const struct tokenizer *t, const int32_t *id, size_t count,
                     bool special);

/* Decoding token by token, for generation: bytes of an unfinished character are held back until it
 * is whole. A zeroed one with `tokenizer` set goes on after other text; with `start` also set it
 * decodes as tokenizer_decode() does from the first token. */
struct tokenizer_stream {
    const struct tokenizer *tokenizer;
    bool start, special;
    uint8_t held[4];
    uint32_t held_count;
};
err tokenizer_stream_add(struct bytes *out, struct tokenizer_stream *s, int32_t id);
err tokenizer_stream_end(struct bytes *out, struct tokenizer_stream *s); /* what is still held */

size_t tokenizer_vocab(const struct tokenizer *t);     /* largest id + 1 */
const char *tokenizer_kind(const struct tokenizer *t); /* "byte-level BPE, pre-tokenizer qwen2" */
int32_t tokenizer_bos(const struct tokenizer *t);      /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t);      /* -1: none */
/* Does this id end an answer: eos, the end of a chat turn, or another end the model declares. */
bool tokenizer_ends(const struct tokenizer *t, int32_t id);
/* The token as its vocabulary writes it ("Ġthe", "▁the", "<|im_end|>"); NULL: an unused id. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id);
int32_t tokenizer_find(const struct tokenizer *t, const char *token); /* -1: none */
/* The chat template the model carries, as Jinja text, or NULL. chat.h recognises it. */
const char *tokenizer_template(const struct tokenizer *t);

#endif
