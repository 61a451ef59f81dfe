#include "engine/tokens/bpe_table.h"

#include "base/limits.h"
#include "base/list.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Eight bytes at a time; not a cryptographic hash. A hostile vocabulary can only make its own
 * look-ups slow. */
uint64_t bpe_table_hash(const char *text, size_t size)
{
    uint64_t h = 0x9E3779B97F4A7C15u ^ size, w;
    for (; size >= 8; text += 8, size -= 8) {
        memcpy(&w, text, 8);
        h = (h ^ w) * 0xFF51AFD7ED558CCDu;
        h ^= h >> 32;
    }
    w = 0;
    memcpy(&w, text, size);
    h = (h ^ w) * 0xFF51AFD7ED558CCDu;
    h ^= h >> 29;
    h *= 0xC4CEB9FE1A85EC53u;
    return h ^ h >> 32;
}

/* The slot that holds this text, or the free one where it belongs. The table is never more than
 * half full, so the search ends. */
static size_t find_slot(const struct bpe *b, const char *text, size_t size)
{
    for (size_t i = bpe_table_hash(text, size) & (b->slots - 1);; i = (i + 1) & (b->slots - 1)) {
        if (b->slot[i] == BPE_NONE) return i;
        const struct bpe_symbol *s = &b->symbol[b->slot[i]];
        if (s->size == size && memcmp(b->text + s->at, text, size) == 0) return i;
    }
}

uint32_t bpe_table_find(const struct bpe *b, const char *text, size_t size)
{
    return b->slots ? b->slot[find_slot(b, text, size)] : BPE_NONE;
}

/* Called before each insertion, so a free slot always exists. Slots hold indices, so the symbols
 * themselves do not move. */
static err grow_slots(struct bpe *b)
{
    if (2 * (b->count + 1) <= b->slots) return ERR_NONE;
    size_t slots = b->slots ? 2 * b->slots : 1024;
    uint32_t *table = malloc(slots * sizeof *table);
    if (!table) return err_sys(ENOMEM, "vocabulary");
    memset(table, 0xFF, slots * sizeof *table);
    free(b->slot);
    b->slot = table;
    b->slots = slots;
    for (size_t i = 0; i < b->count; i++)
        b->slot[find_slot(b, b->text + b->symbol[i].at, b->symbol[i].size)] = (uint32_t)i;
    return ERR_NONE;
}

/* The index of a symbol, added if it is new. Limits: four symbols per token leave room for the
 * intermediate symbols of merges, and offsets must fit in 32 bits. */
err bpe_table_symbol(uint32_t *out, struct bpe *b, const char *text, size_t size)
{
    if (size > BPE_TABLE_TOKEN_BYTES)
        return err_make(ERR_INPUT, "vocabulary: a token of %zu bytes, at most %d are supported",
                        size, BPE_TABLE_TOKEN_BYTES);
    uint32_t found = bpe_table_find(b, text, size);
    if (found != BPE_NONE) return *out = found, ERR_NONE;
    if (b->count >= 4 * (size_t)LIMIT_VOCAB || b->text_size + size > UINT32_MAX / 2)
        return err_make(ERR_INPUT, "vocabulary: more than %u symbols", 4 * LIMIT_VOCAB);
    TRY(list_grow(&b->symbol, &b->capacity, b->count + 1, sizeof *b->symbol));
    TRY(list_grow(&b->text, &b->text_capacity, b->text_size + size + 1, 1));
    TRY(grow_slots(b));
    memcpy(b->text + b->text_size, text, size);
    b->symbol[b->count] =
        (struct bpe_symbol){.at = (uint32_t)b->text_size, .size = (uint32_t)size, .token = -1};
    b->slot[find_slot(b, text, size)] = (uint32_t)b->count;
    b->text_size += size;
    *out = (uint32_t)b->count++;
    return ERR_NONE;
}

/* As grow_slots(), for the table of pairs. */
static err grow_pairs(struct bpe *b)
{
    if (2 * (b->pairs + 1) <= b->pair_slots) return ERR_NONE;
    struct bpe_pair *old = b->pair;
    size_t old_slots = b->pair_slots, slots = old_slots ? 2 * old_slots : 1024;
    struct bpe_pair *table = malloc(slots * sizeof *table);
    if (!table) return err_sys(ENOMEM, "merges");
    memset(table, 0xFF, slots * sizeof *table);
    b->pair = table;
    b->pair_slots = slots;
    for (size_t i = 0; i < old_slots; i++)
        if (old[i].left != BPE_NONE) *bpe_table_pair(b, old[i].left, old[i].right) = old[i];
    free(old);
    return ERR_NONE;
}

/* The references differ on two merges of the same pair: Hugging Face keeps the last, llama.cpp the
 * first. */
err bpe_table_put(struct bpe *b, const struct bpe_pair *pair, bool replace)
{
    TRY(grow_pairs(b));
    struct bpe_pair *slot = bpe_table_pair(b, pair->left, pair->right);
    if (slot->left == BPE_NONE)
        b->pairs++;
    else if (!replace)
        return ERR_NONE;
    *slot = *pair;
    return ERR_NONE;
}
