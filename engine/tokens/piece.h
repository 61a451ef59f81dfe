/* A stretch of text on its way through a tokenizer, which remembers where in the caller's text each
 * of its bytes came from, and a buffer that builds changed ones. Pieces borrow. */
#ifndef CLIENT_PIECE_H
#define CLIENT_PIECE_H

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
/* Bytes [begin, end) of p. */
struct piece piece_part(const struct piece *p, uint32_t begin, uint32_t end);

struct piece_buffer { /* zeroed is ready */
    char *text;
    uint32_t *origin;
    uint32_t size, capacity;
};
/* All `size` bytes come from the byte at `origin`. */
err piece_put(struct piece_buffer *b, const char *text, size_t size, uint32_t origin);
err piece_copy(struct piece_buffer *b, const struct piece *p, uint32_t begin, uint32_t end);
struct piece piece_of(const struct piece_buffer *b); /* valid until the buffer changes */
void piece_close(struct piece_buffer *b);

/* The code point at text[at] (valid UTF-8) and, in *size, its length in bytes. */
uint32_t piece_char(const char *text, uint32_t *size);
/* Copies text to *b with each byte that is in no valid UTF-8 sequence replaced by U+FFFD. */
err piece_repair(struct piece_buffer *b, const char *text, uint32_t size);
bool piece_space(uint32_t c); /* Unicode's White_Space */
/* Length of the valid sequence at text[0], 1 to 4; 0 when there is none. */
uint32_t piece_valid(const char *text, size_t size);

#endif
