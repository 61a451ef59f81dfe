/* Memory by lifetime: take from an arena, free it all at once. Not thread-safe; one owner.
 * A zeroed struct arena is empty and ready; arena_close() accepts it. */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include "base/err.h"

#include <stddef.h>

struct arena_block;
struct arena {
    struct arena_block *last;
    size_t bytes_used;
    size_t bytes_max; /* 0: bounded by memory only */
};

/* count * size bytes, zeroed, aligned to 64; ERR_LIMIT over bytes_max or on overflow, ERR_MACHINE
 * without memory. *out is untouched on failure. A request of zero bytes gives a valid pointer. */
err arena_take(void *out /* T ** */, struct arena *arena, size_t count, size_t size);
err arena_text(const char **out, struct arena *arena, const char *text, size_t bytes);
void arena_close(struct arena *arena);

#endif
