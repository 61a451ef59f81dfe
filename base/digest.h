/* BLAKE2b-256 (libsodium), which names every blob, base and frozen factor by its content.
 * Text form: 64 lower-case hexadecimal digits. */
#ifndef BASE_DIGEST_H
#define BASE_DIGEST_H

#include "base/err.h"

#include <sodium.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { DIGEST_BYTES = 32, DIGEST_TEXT_BYTES = 65 };

struct digest {
    uint8_t byte[DIGEST_BYTES];
};
struct digest_stream {
    crypto_generichash_state state;
};

/* Data that comes in parts: begin, add..., end. */
void digest_begin(struct digest_stream *s);
void digest_add(struct digest_stream *s, const void *data, size_t size);
struct digest digest_end(struct digest_stream *s);

struct digest digest_of(const void *data, size_t size);
/* Of `domain`, then data. Different domains keep a text of one kind from passing for one of another
 * kind. domain_size counts the final zero where the domain is a text. */
struct digest digest_of_in(const char *domain, size_t domain_size, const void *data, size_t size);
err digest_of_file(struct digest *out, const char *path);
bool digest_equal(const struct digest *a, const struct digest *b);
void digest_text(char out[DIGEST_TEXT_BYTES], const struct digest *d);
err digest_parse(struct digest *out, const char *text); /* ERR_INPUT unless 64 hex digits */

#endif
