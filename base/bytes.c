#include "base/bytes.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Makes room for `more` bytes and the zero behind them, by doubling, so that appending n bytes one
 * by one takes O(n) time. */
static err bytes_grow(struct bytes *b, size_t more)
{
    REQUIRE(b->max > 0);
    size_t need;
    if (!size_add(&need, b->size, more) || need > b->max)
        return err_make(ERR_LIMIT,
                        "a buffer of at most %zu bytes has no room for %zu more than its %zu",
                        b->max, more, b->size);
    if (b->data && need < b->capacity) return ERR_NONE;
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity <= need) {
        if (!size_mul(&capacity, capacity, 2))
            return err_sys(ENOMEM, "a buffer of %zu bytes", need);
    }
    uint8_t *data = realloc(b->data, capacity);
    if (!data) return err_sys(ENOMEM, "a buffer of %zu bytes", capacity);
    b->data = data;
    b->capacity = capacity;
    return ERR_NONE;
}

err bytes_append(struct bytes *b, const void *data, size_t size)
{
    TRY(bytes_grow(b, size));
    if (size) memcpy(b->data + b->size, data, size);
    b->size += size;
    b->data[b->size] = 0;
    return ERR_NONE;
}

/* Formats twice: the first time only to learn the length, which has no known bound. */
err bytes_printf(struct bytes *b, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(NULL, 0, format, args);
    va_end(args);
    if (n < 0) return err_make(ERR_INPUT, "a text could not be formatted");
    TRY(bytes_grow(b, (size_t)n));
    va_start(args, format);
    vsnprintf((char *)b->data + b->size, (size_t)n + 1, format, args);
    va_end(args);
    b->size += (size_t)n;
    return ERR_NONE;
}

void bytes_clear(struct bytes *b)
{
    b->size = 0;
    if (b->data) b->data[0] = 0;
}

void bytes_close(struct bytes *b)
{
    free(b->data);
    *b = (struct bytes){.max = b->max};
}
