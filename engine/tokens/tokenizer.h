/* Text to token ids and back, with the same result as the model's own tokenizer.
 *
 * A tokenizer is opened from a Hugging Face directory (tokenizer.json, tokenizer_config.json,
 * config.json) or from a .gguf file. Supported: byte-level BPE with any pre-tokenizer that
 * tokenizer.json can express or that llama.cpp names in GGUF files; BPE with byte fallback (Llama
 * 2, Mistral), by merges or by SentencePiece scores. Any other kind is refused by name. Ids equal
 * those of Hugging Face tokenizers for a directory, and those of llama.cpp for a GGUF file.
 *
 * A tokenizer is immutable once open, so threads share it. It never adds bos or eos tokens. Text is
 * UTF-8; each byte outside a valid sequence counts as U+FFFD. */
#ifndef ENGINE_TOKENIZER_H
#define ENGINE_TOKENIZER_H

#include "base/bytes.h"
#include "base/err.h"

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct tokenizer;

/* A list of tokens. A zeroed one is valid; the caller may reuse it after tokens_clear(). */
struct tokens {
    int32_t *id;     /* (count) */
    uint32_t *start; /* (count) offset of the token's first byte in the text */
    size_t count, capacity;
};
void tokens_clear(struct tokens *tokens); /* keeps the memory */
err tokens_push(struct tokens *tokens, int32_t id, uint32_t start);
void tokens_close(struct tokens *tokens);

err tokenizer_open(struct tokenizer **out, const char *base_path);
/* The same, but *out is left as it is, without an error, if the base is a directory without a
 * tokenizer: rows of token ids need none. */
err tokenizer_open_if_any(struct tokenizer **out, const char *base_path);
void tokenizer_close(struct tokenizer *t); /* accepts NULL */

/* Whether special tokens of a GGUF's vocabulary take the white space behind them, as in Phi-3; then
 * tokenizer_strips() tells which of them do. */
struct gguf;
err tokenizer_gguf_strips(bool *out, const struct gguf *g);
bool tokenizer_strips(const char *token);

/* Appends the ids of `text`, at most LIMIT_TEXT_BYTES long; on failure *out is unchanged. With
 * `special`, special tokens written in the text become their ids, else they are ordinary text.
 * Added tokens that are not special are found in both cases. */
err tokenizer_encode(struct tokens *out, const struct tokenizer *t, const char *text, size_t bytes,
                     bool special);

/* Puts the bos token first, unless it is there already (*had, which may be NULL, is then true) or
 * the tokenizer has none. */
err tokenizer_begin(struct tokens *tokens, const struct tokenizer *t, bool *had);

/* Appends the text of ids. It is always valid UTF-8: other bytes become U+FFFD. Special tokens are
 * included only with `special`. The space that some tokenizers put before a text is removed again.
 * ERR_INPUT for an id outside the vocabulary. */
err tokenizer_decode(struct bytes *out, const struct tokenizer *t, const int32_t *id, size_t count,
                     bool special);

/* Decodes token by token, for generation. The bytes of an unfinished character are held back until
 * it is complete. Set `tokenizer`; set `start` too if the first id begins a text, so that the space
 * before it is removed as in tokenizer_decode(). */
struct tokenizer_stream {
    const struct tokenizer *tokenizer;
    bool start, special;
    uint8_t held[4];
    uint32_t held_count;
};
err tokenizer_stream_add(struct bytes *out, struct tokenizer_stream *s, int32_t id);
/* Appends U+FFFD if an unfinished character is held back. */
err tokenizer_stream_end(struct bytes *out, struct tokenizer_stream *s);

size_t tokenizer_vocab(const struct tokenizer *t);     /* largest id + 1 */
const char *tokenizer_kind(const struct tokenizer *t); /* "byte-level BPE, pre-tokenizer qwen2" */
int32_t tokenizer_bos(const struct tokenizer *t);      /* -1: none */
int32_t tokenizer_eos(const struct tokenizer *t);      /* -1: none */
/* Whether this id ends an answer: eos, the end of a chat turn, or another end that the model
 * declares. */
bool tokenizer_ends(const struct tokenizer *t, int32_t id);
/* The token as the vocabulary writes it ("Ġthe", "▁the", "<|im_end|>"), or NULL. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id);
int32_t tokenizer_find(const struct tokenizer *t, const char *token); /* -1: none */
/* A chat template of the model as Jinja text, or NULL: "default", "tool_use", ... (chat.h). */
const char *tokenizer_template(const struct tokenizer *t, const char *name);
/* An object with the texts of special tokens by the names that chat templates use for them:
 * bos_token, eos_token, ... Borrowed. */
const json_t *tokenizer_specials(const struct tokenizer *t);

#endif
