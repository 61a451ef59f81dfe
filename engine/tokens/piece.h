/* A stretch of text inside a tokenizer, with the place in the caller's text from which each byte
 * came, and a buffer that builds changed text. A piece borrows its bytes. */
#ifndef ENGINE_PIECE_H
#define ENGINE_PIECE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct piece {
    const char *text;
    uint32_t size;
    const uint32_t *origin; /* (size) offsets in the caller's text; NULL: base, base + 1, ... */
    uint32_t base;
};

static inline uint32_t piece_origin(const struct piece *p, uint32_t at)
{
    return p->origin ? p->origin[at] : p->base + at;
}
/* Bytes begin .. end - 1 of p. */
struct piece piece_part(const struct piece *p, uint32_t begin, uint32_t end);

struct piece_buffer { /* a zeroed one is valid */
    char *text;
    uint32_t *origin;
    uint32_t size, capacity;
};
/* Appends text; all its bytes count as coming from the byte at `origin`. */
err piece_put(struct piece_buffer *b, const char *text, size_t size, uint32_t origin);
err piece_copy(struct piece_buffer *b, const struct piece *p, uint32_t begin, uint32_t end);
struct piece piece_of(const struct piece_buffer *b); /* valid until the buffer changes */
void piece_close(struct piece_buffer *b);

/* The code point at text[0], which must be valid UTF-8; *size is its length in bytes. */
uint32_t piece_char(const char *text, uint32_t *size);
/* Appends text; each byte outside a valid UTF-8 sequence becomes U+FFFD. */
err piece_repair(struct piece_buffer *b, const char *text, uint32_t size);
bool piece_space(uint32_t c); /* the Unicode property White_Space */
/* Length of the valid UTF-8 sequence at text[0], 1 to 4; 0 if there is none. */
uint32_t piece_valid(const char *text, size_t size);

#endif
