#include "engine/tokens/piece.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

struct piece piece_part(const struct piece *p, uint32_t begin, uint32_t end)
{
    return (struct piece){
        .text = p->text + begin,
        .size = end - begin,
        .origin = p->origin ? p->origin + begin : NULL,
        .base = p->base + begin,
    };
}

/* Sizes are 32 bits to halve the memory of `origin`; LIMIT_TEXT_BYTES and this check keep them from
 * overflowing, also when a normaliser makes text longer. */
static err piece_reserve(struct piece_buffer *b, size_t more)
{
    size_t need = (size_t)b->size + more;
    if (need <= b->capacity) return ERR_NONE;
    if (need > UINT32_MAX / 2)
        return err_make(ERR_LIMIT, "text: larger than 2 GiB after normalisation");
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < need)
        capacity *= 2;
    char *text = realloc(b->text, capacity);
    if (text) b->text = text;
    uint32_t *origin = realloc(b->origin, capacity * sizeof *origin);
    if (origin) b->origin = origin;
    if (!text || !origin) return err_sys(ENOMEM, "text: %zu bytes", capacity);
    b->capacity = (uint32_t)capacity;
    return ERR_NONE;
}

/* All bytes get one origin: a replaced text counts as coming from the place of the first byte it
 * replaces. */
err piece_put(struct piece_buffer *b, const char *text, size_t size, uint32_t origin)
{
    TRY(piece_reserve(b, size));
    memcpy(b->text + b->size, text, size);
    for (size_t i = 0; i < size; i++)
        b->origin[b->size + i] = origin;
    b->size += (uint32_t)size;
    return ERR_NONE;
}

/* Bytes keep their own origins. */
err piece_copy(struct piece_buffer *b, const struct piece *p, uint32_t begin, uint32_t end)
{
    REQUIRE(begin <= end && end <= p->size);
    TRY(piece_reserve(b, end - begin));
    if (end > begin) memcpy(b->text + b->size, p->text + begin, end - begin);
    for (uint32_t i = begin; i < end; i++)
        b->origin[b->size + i - begin] = piece_origin(p, i);
    b->size += end - begin;
    return ERR_NONE;
}

struct piece piece_of(const struct piece_buffer *b)
{
    return (struct piece){.text = b->text ? b->text : "", .size = b->size, .origin = b->origin};
}

void piece_close(struct piece_buffer *b)
{
    free(b->text);
    free(b->origin);
    *b = (struct piece_buffer){0};
}

/* No checks: every text is repaired before it comes here. */
uint32_t piece_char(const char *text, uint32_t *size)
{
    const uint8_t *s = (const uint8_t *)text;
    if (s[0] < 0x80) return *size = 1, s[0];
    if (s[0] < 0xE0) return *size = 2, (s[0] & 0x1Fu) << 6 | (s[1] & 0x3Fu);
    if (s[0] < 0xF0) return *size = 3, (s[0] & 0x0Fu) << 12 | (s[1] & 0x3Fu) << 6 | (s[2] & 0x3Fu);
    *size = 4;
    return (s[0] & 0x07u) << 18 | (s[1] & 0x3Fu) << 12 | (s[2] & 0x3Fu) << 6 | (s[3] & 0x3Fu);
}

/* Below 128 the properties are fixed; beyond that the separator categories Zs, Zl and Zp and U+0085
 * are exactly White_Space. */
bool piece_space(uint32_t c)
{
    if (c <= 32 || c == 0x85) return c == 32 || (c >= 9 && c <= 13) || c == 0x85;
    utf8proc_category_t k = utf8proc_category((utf8proc_int32_t)c);
    return k == UTF8PROC_CATEGORY_ZS || k == UTF8PROC_CATEGORY_ZL || k == UTF8PROC_CATEGORY_ZP;
}

/* The table of well-formed sequences of the Unicode standard: no overlong forms, no surrogates,
 * nothing above U+10FFFF. */
uint32_t piece_valid(const char *text, size_t size)
{
    const uint8_t *s = (const uint8_t *)text;
    if (size == 0) return 0;
    if (s[0] < 0x80) return 1;
    uint32_t n = s[0] >= 0xF0 ? 4 : s[0] >= 0xE0 ? 3 : 2;
    if (s[0] < 0xC2 || s[0] > 0xF4 || n > size) return 0;
    for (uint32_t i = 1; i < n; i++)
        if ((s[i] & 0xC0) != 0x80) return 0;
    /* Overlong forms, surrogates, and code points past U+10FFFF. */
    if (s[0] == 0xE0 && s[1] < 0xA0) return 0;
    if (s[0] == 0xED && s[1] > 0x9F) return 0;
    if (s[0] == 0xF0 && s[1] < 0x90) return 0;
    if (s[0] == 0xF4 && s[1] > 0x8F) return 0;
    return n;
}

/* One U+FFFD for each byte that is in no valid sequence. Only one byte is skipped at a time, so a
 * valid character behind a broken one is kept. */
err piece_repair(struct piece_buffer *b, const char *text, uint32_t size)
{
    struct piece whole = {.text = text, .size = size};
    uint32_t good = 0, at = 0;
    while (at < size) {
        uint32_t n = piece_valid(text + at, size - at);
        if (n > 0) {
            at += n;
            continue;
        }
        TRY(piece_copy(b, &whole, good, at));
        TRY(piece_put(b, "\xEF\xBF\xBD", 3, at));
        good = ++at;
    }
    return piece_copy(b, &whole, good, size);
}
