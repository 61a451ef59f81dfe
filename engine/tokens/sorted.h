/* Lists of tokens that are sorted by text and searched byte by byte, so that all tokens which start
 * at one place of a text are found in one pass. */
#ifndef ENGINE_SORTED_H
#define ENGINE_SORTED_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* The first fields of the items of such a list. */
struct sorted_text {
    const char *text;
    uint32_t size;
};
#define SORTED_ITEM(type)                                                                          \
    _Static_assert(offsetof(type, text) == offsetof(struct sorted_text, text) &&                   \
                       offsetof(type, size) == offsetof(struct sorted_text, size),                 \
                   "an item begins with its text")

static inline struct sorted_text sorted_text(const void *list, size_t stride, size_t i)
{
    struct sorted_text t;
    memcpy(&t, (const char *)list + i * stride, sizeof t);
    return t;
}

/* The order of two items: by bytes, a text before the longer ones that start with it. */
static inline int sorted_compare(const void *left, const void *right)
{
    const struct sorted_text a = sorted_text(left, 0, 0), b = sorted_text(right, 0, 0);
    int order = memcmp(a.text, b.text, a.size < b.size ? a.size : b.size);
    return order ? order : (a.size > b.size) - (a.size < b.size);
}

/* Narrows the range [*lo, *hi) of items of `stride` bytes, which agree in their first `depth`
 * bytes, to those whose next byte is c. A text that ends before counts as having byte -1. */
static inline void sorted_narrow(const void *list, size_t stride, size_t *lo, size_t *hi,
                                 uint32_t depth, uint8_t c)
{
    size_t bound[2];
    for (int side = 0; side < 2; side++) { /* first with byte >= c, then first with byte > c */
        size_t low = *lo, high = *hi;
        while (low < high) {
            size_t middle = low + (high - low) / 2;
            const struct sorted_text t = sorted_text(list, stride, middle);
            int byte = t.size > depth ? (uint8_t)t.text[depth] : -1;
            if (byte < c + side)
                low = middle + 1;
            else
                high = middle;
        }
        bound[side] = low;
    }
    *lo = bound[0];
    *hi = bound[1];
}

#endif
