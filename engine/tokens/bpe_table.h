/* The tables of struct bpe: symbols by their text, and pairs by their two symbols. Used only in
 * bpe.c. */
#ifndef ENGINE_BPE_TABLE_H
#define ENGINE_BPE_TABLE_H

#include "engine/tokens/bpe.h"

enum { BPE_TABLE_TOKEN_BYTES = 4096 }; /* longest token; bounds buffers on the stack */

uint64_t bpe_table_hash(const char *text, size_t size);

/* The symbol with this text, or BPE_NONE. */
uint32_t bpe_table_find(const struct bpe *b, const char *text, size_t size);
/* The symbol with this text, added if it is new. */
err bpe_table_symbol(uint32_t *out, struct bpe *b, const char *text, size_t size);

/* Adds a pair. With `replace` it replaces an earlier one of the same symbols, else it is
 * ignored. */
err bpe_table_put(struct bpe *b, const struct bpe_pair *pair, bool replace);

static inline uint64_t bpe_table_hash_pair(uint32_t left, uint32_t right)
{
    uint64_t h = ((uint64_t)left << 32 | right) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

/* The entry of a pair, or the free one where it belongs. Inline, because encoding calls it for each
 * pair of neighbours. The table must not be empty. */
static inline struct bpe_pair *bpe_table_pair(const struct bpe *b, uint32_t left, uint32_t right)
{
    size_t mask = b->pair_slots - 1;
    size_t i = bpe_table_hash_pair(left, right) & mask;
    while (b->pair[i].left != BPE_NONE && (b->pair[i].left != left || b->pair[i].right != right))
        i = (i + 1) & mask;
    return &b->pair[i];
}

#endif
