/* A growable byte buffer with a maximum. A zeroed struct with `max` set is empty and ready. */
#ifndef BASE_BYTES_H
#define BASE_BYTES_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct bytes {
    uint8_t *data; /* NULL, or followed by a zero byte, so that text can be printed as it is */
    size_t size, capacity;
    size_t max; /* in bytes, without that zero; must not be 0 */
};

err bytes_append(struct bytes *b, const void *data, size_t size); /* ERR_LIMIT past max */
err bytes_printf(struct bytes *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
void bytes_clear(struct bytes *b); /* keeps the memory */
void bytes_close(struct bytes *b);

/* a * b and a + b with overflow reported; true when *out holds the exact result. */
static inline bool size_mul(size_t *out, size_t a, size_t b)
{
    return !__builtin_mul_overflow(a, b, out);
}
static inline bool size_add(size_t *out, size_t a, size_t b)
{
    return !__builtin_add_overflow(a, b, out);
}

#endif
