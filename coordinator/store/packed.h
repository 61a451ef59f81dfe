/* Texts that are kept for ever, such as the reports of rounds, as zlib streams. Pure. */
#ifndef COORDINATOR_PACKED_H
#define COORDINATOR_PACKED_H

#include "base/arena.h"
#include "base/bytes.h"

enum { PACKED_TEXT_BYTES_MAX = 64 << 20 };
/* Appends four bytes with the size of the text (little-endian), then the zlib stream. */
err packed_text(struct bytes *out, const char *text);
/* The text with its zero, in the arena. ERR_INPUT: these bytes are not such a stream. */
err packed_open(const char **out, const void *data, size_t size, struct arena *arena);

#endif
