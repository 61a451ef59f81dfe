#include "base/arena.h"

#include <errno.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* 64 bytes is a cache line and the widest vector register. */
enum { ARENA_ALIGN = 64, ARENA_BLOCK = 64 * 1024 };

struct arena_block {
    struct arena_block *previous;
    uint8_t *free; /* aligned; the memory after it is zero and not yet taken */
    size_t left;
};

/* calloc(), because the kernel gives large blocks as zero pages that cost nothing until touched. */
static struct arena_block *arena_block_make(size_t need)
{
    size_t room = need > ARENA_BLOCK ? need : ARENA_BLOCK;
    if (room > SIZE_MAX - sizeof(struct arena_block) - ARENA_ALIGN) return NULL;
    struct arena_block *block = calloc(1, sizeof *block + ARENA_ALIGN + room);
    if (!block) return NULL;
    uintptr_t first = (uintptr_t)(block + 1);
    first = (first + ARENA_ALIGN - 1) & ~(uintptr_t)(ARENA_ALIGN - 1);
    block->free = (uint8_t *)first;
    block->left = room;
    return block;
}

err arena_take(void *out, struct arena *arena, size_t count, size_t size)
{
    size_t need, total;
    if (__builtin_mul_overflow(count, size, &need) || need > SIZE_MAX - ARENA_ALIGN)
        return err_make(ERR_LIMIT, "memory: %zu x %zu bytes cannot be addressed", count, size);
    need = need == 0 ? ARENA_ALIGN : (need + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    if (__builtin_add_overflow(arena->bytes_used, need, &total) ||
        (arena->bytes_max && total > arena->bytes_max))
        return err_make(ERR_LIMIT,
                        "memory: %zu more bytes than the %zu in use exceed the limit of %zu", need,
                        arena->bytes_used, arena->bytes_max);
    struct arena_block *block = arena->last;
    if (!block || block->left < need) {
        block = arena_block_make(need);
        if (!block) return err_sys(ENOMEM, "memory: %zu bytes", need);
        /* A large request gets a separate block behind the current one, which still has room. */
        if (arena->last && need > ARENA_BLOCK / 4 && arena->last->left > ARENA_BLOCK / 4) {
            block->previous = arena->last->previous;
            arena->last->previous = block;
        } else {
            block->previous = arena->last;
            arena->last = block;
        }
    }
    void *taken = block->free;
    block->free += need;
    block->left -= need;
    arena->bytes_used = total;
    memcpy(out, &taken, sizeof taken);
    return ERR_NONE;
}

err arena_text(const char **out, struct arena *arena, const char *text, size_t bytes)
{
    if (bytes == SIZE_MAX)
        return err_make(ERR_LIMIT, "memory: a text of %zu bytes cannot be copied", bytes);
    char *copy = NULL;
    TRY(arena_take(&copy, arena, bytes + 1, 1));
    if (bytes) memcpy(copy, text, bytes);
    *out = copy;
    return ERR_NONE;
}

void arena_close(struct arena *arena)
{
    struct arena_block *block = arena->last;
    while (block) {
        struct arena_block *previous = block->previous;
        free(block);
        block = previous;
    }
    *arena = (struct arena){.bytes_max = arena->bytes_max};
}
