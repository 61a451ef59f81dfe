#include "base/digest.h"

#include "base/file.h"

#include <string.h>

/* sodium_init() may be called repeatedly. It is called here so that no program can forget it. */
void digest_begin(struct digest_stream *s)
{
    REQUIRE(sodium_init() >= 0);
    crypto_generichash_init(&s->state, NULL, 0, DIGEST_BYTES);
}

void digest_add(struct digest_stream *s, const void *data, size_t size)
{
    if (size) crypto_generichash_update(&s->state, data, size);
}

struct digest digest_end(struct digest_stream *s)
{
    struct digest d;
    crypto_generichash_final(&s->state, d.byte, DIGEST_BYTES);
    return d;
}

struct digest digest_of(const void *data, size_t size)
{
    struct digest_stream s;
    digest_begin(&s);
    digest_add(&s, data, size);
    return digest_end(&s);
}

struct digest digest_of_in(const char *domain, size_t domain_size, const void *data, size_t size)
{
    struct digest_stream s;
    digest_begin(&s);
    digest_add(&s, domain, domain_size);
    digest_add(&s, data, size);
    return digest_end(&s);
}

/* Pages are dropped after each slice, because hashing a model must not push other data out of
 * memory. */
enum { DIGEST_SLICE = 4 << 20 };

err digest_of_file(struct digest *out, const char *path)
{
    struct file_map map = {0};
    TRY(file_map_open(&map, path));
    struct digest_stream s;
    digest_begin(&s);
    for (size_t at = 0; at < map.size; at += DIGEST_SLICE) {
        size_t left = map.size - at;
        digest_add(&s, map.data + at, left < DIGEST_SLICE ? left : DIGEST_SLICE);
        if (left > DIGEST_SLICE) file_map_drop(&map, 0, map.size);
    }
    *out = digest_end(&s);
    file_map_close(&map);
    return ERR_NONE;
}

bool digest_equal(const struct digest *a, const struct digest *b)
{
    return memcmp(a->byte, b->byte, DIGEST_BYTES) == 0;
}

void digest_text(char out[DIGEST_TEXT_BYTES], const struct digest *d)
{
    sodium_bin2hex(out, DIGEST_TEXT_BYTES, d->byte, DIGEST_BYTES);
}

err digest_parse(struct digest *out, const char *text)
{
    struct digest d;
    size_t size = 0;
    const char *end = NULL;
    if (strlen(text) != DIGEST_TEXT_BYTES - 1 ||
        sodium_hex2bin(d.byte, DIGEST_BYTES, text, DIGEST_TEXT_BYTES - 1, NULL, &size, &end) != 0 ||
        size != DIGEST_BYTES)
        return err_make(ERR_INPUT, "\"%.80s\" is not a digest: expected 64 hexadecimal digits",
                        text);
    *out = d;
    return ERR_NONE;
}
