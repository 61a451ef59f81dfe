#include "coordinator/store/packed.h"

#include <stdint.h>
#include <string.h>
#include <zlib.h>

enum { SIZE_BYTES = 4 };

/* Best compression, because a report is written once and kept for ever: 3 to 10 times smaller,
 * in about a millisecond. */
err packed_text(struct bytes *out, const char *text)
{
    size_t size = strlen(text);
    uLong bound = compressBound(size);
    uint8_t *room = NULL;
    if (size > PACKED_TEXT_BYTES_MAX)
        return err_make(ERR_LIMIT, "a text of %zu bytes, at most %d are kept", size,
                        PACKED_TEXT_BYTES_MAX);
    struct arena arena = {0};
    TRY(arena_take(&room, &arena, SIZE_BYTES + bound, 1));
    for (int i = 0; i < SIZE_BYTES; i++)
        room[i] = (uint8_t)(size >> 8 * i);
    int code = compress2(room + SIZE_BYTES, &bound, (const Bytef *)text, size, Z_BEST_COMPRESSION);
    err e = code == Z_OK ? bytes_append(out, room, SIZE_BYTES + bound)
                         : err_make(ERR_MACHINE, "zlib: cannot compress %zu bytes", size);
    arena_close(&arena);
    return e;
}

/* The stated size is checked before memory is taken for it, and after: a stream that holds more or
 * less is damaged. */
err packed_open(const char **out, const void *data, size_t size, struct arena *arena)
{
    const uint8_t *byte = data;
    char *text = NULL;
    uint32_t stated = 0;
    for (int i = 0; i < SIZE_BYTES && size > SIZE_BYTES; i++)
        stated |= (uint32_t)byte[i] << 8 * i;
    if (size <= SIZE_BYTES || stated > PACKED_TEXT_BYTES_MAX)
        return err_make(ERR_INPUT, "a compressed text of %zu bytes is damaged", size);
    TRY(arena_take(&text, arena, (size_t)stated + 1, 1));
    uLongf got = stated;
    int code = uncompress((Bytef *)text, &got, byte + SIZE_BYTES, size - SIZE_BYTES);
    if (code != Z_OK || got != stated)
        return err_make(ERR_INPUT, "a compressed text of %zu bytes is damaged", size);
    text[stated] = 0;
    *out = text;
    return ERR_NONE;
}
