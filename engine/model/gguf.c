#include "engine/model/gguf.h"

#include "base/bytes.h"
#include "base/file_kind.h"
#include "base/limits.h"

#include <stdlib.h>
#include <string.h>

enum { TENSOR_NAME_MAX = 64, DIMS_MAX = 4, ALIGNMENT_DEFAULT = 32 };
enum { VERSION_OLDEST = 2, VERSION_NEWEST = 3 }; /* the same on little-endian machines */

/* Tensor types of ggml with the values in a block and the bytes of a block. Missing numbers were
 * removed from ggml or never assigned. Types with DTYPE_OTHER_BLOCK are listed so that `fedlora
 * inspect` can name them; a model with them is refused. */
static const struct format {
    uint32_t id, block, bytes;
    enum dtype dtype;
    const char *name;
} formats[] = {
    {0, 1, 4, DTYPE_F32, "F32"},
    {1, 1, 2, DTYPE_F16, "F16"},
    {2, 32, 18, DTYPE_Q4_0, "Q4_0"},
    {3, 32, 20, DTYPE_Q4_1, "Q4_1"},
    {6, 32, 22, DTYPE_Q5_0, "Q5_0"},
    {7, 32, 24, DTYPE_Q5_1, "Q5_1"},
    {8, 32, 34, DTYPE_Q8_0, "Q8_0"},
    {9, 32, 36, DTYPE_OTHER_BLOCK, "Q8_1"},
    {10, 256, 84, DTYPE_Q2_K, "Q2_K"},
    {11, 256, 110, DTYPE_Q3_K, "Q3_K"},
    {12, 256, 144, DTYPE_Q4_K, "Q4_K"},
    {13, 256, 176, DTYPE_Q5_K, "Q5_K"},
    {14, 256, 210, DTYPE_Q6_K, "Q6_K"},
    {15, 256, 292, DTYPE_OTHER_BLOCK, "Q8_K"},
    {16, 256, 66, DTYPE_OTHER_BLOCK, "IQ2_XXS"},
    {17, 256, 74, DTYPE_OTHER_BLOCK, "IQ2_XS"},
    {18, 256, 98, DTYPE_OTHER_BLOCK, "IQ3_XXS"},
    {19, 256, 50, DTYPE_OTHER_BLOCK, "IQ1_S"},
    {20, 32, 18, DTYPE_IQ4_NL, "IQ4_NL"},
    {21, 256, 110, DTYPE_OTHER_BLOCK, "IQ3_S"},
    {22, 256, 82, DTYPE_OTHER_BLOCK, "IQ2_S"},
    {23, 256, 136, DTYPE_IQ4_XS, "IQ4_XS"},
    {24, 1, 1, DTYPE_I8, "I8"},
    {25, 1, 2, DTYPE_I16, "I16"},
    {26, 1, 4, DTYPE_I32, "I32"},
    {27, 1, 8, DTYPE_I64, "I64"},
    {28, 1, 8, DTYPE_F64, "F64"},
    {29, 256, 56, DTYPE_OTHER_BLOCK, "IQ1_M"},
    {30, 1, 2, DTYPE_BF16, "BF16"},
    {34, 256, 54, DTYPE_OTHER_BLOCK, "TQ1_0"},
    {35, 256, 66, DTYPE_OTHER_BLOCK, "TQ2_0"},
    {39, 32, 17, DTYPE_MXFP4, "MXFP4"},
};

/* The table is short and read once per tensor, so the search is linear. */
static const struct format *find_format(uint32_t id)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++)
        if (formats[i].id == id) return &formats[i];
    return NULL;
}

/* Bytes of one value of a scalar type; 0 for strings and arrays, which contain their own length. */
static size_t type_bytes(enum gguf_type t)
{
    static const uint8_t bytes[GGUF_TYPE_COUNT] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,  [GGUF_U16] = 2, [GGUF_I16] = 2,
        [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
        [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
    return bytes[t];
}

/* The read position. Invariant: at <= size, so `size - at` cannot wrap. */
struct cursor {
    const uint8_t *data;
    size_t size, at;
};

static err cut_short(const struct cursor *c, const char *what)
{
    return err_make(ERR_INPUT, "the file ends at byte %zu, inside %s", c->size, what);
}

static err take_bytes(const uint8_t **out, struct cursor *c, uint64_t size, const char *what)
{
    if (size > c->size - c->at) return cut_short(c, what);
    *out = c->data + c->at;
    c->at += (size_t)size;
    return ERR_NONE;
}

static err take_u32(uint32_t *out, struct cursor *c, const char *what)
{
    const uint8_t *p = NULL;
    TRY(take_bytes(&p, c, sizeof *out, what));
    memcpy(out, p, sizeof *out);
    return ERR_NONE;
}

static err take_u64(uint64_t *out, struct cursor *c, const char *what)
{
    const uint8_t *p = NULL;
    TRY(take_bytes(&p, c, sizeof *out, what));
    memcpy(out, p, sizeof *out);
    return ERR_NONE;
}

/* Reads a u64 length and the bytes. The name is kept zero-terminated in the arena; a name with a
 * zero byte inside is refused, since the rest of the code would see only its beginning. */
static err take_name(const char **out, struct cursor *c, struct arena *arena, size_t bytes_max,
                     const char *what)
{
    uint64_t size;
    const uint8_t *p = NULL;
    TRY(take_u64(&size, c, what));
    if (size >= bytes_max)
        return err_make(ERR_INPUT, "%s at byte %zu: %llu bytes long, at most %zu are allowed", what,
                        c->at, (unsigned long long)size, bytes_max - 1);
    TRY(take_bytes(&p, c, size, what));
    if (memchr(p, 0, (size_t)size) != NULL)
        return err_make(ERR_INPUT, "%s at byte %zu holds a zero byte", what, c->at);
    return arena_text(out, arena, (const char *)p, (size_t)size);
}

/* Checks that a value lies inside of the file and remembers where. Strings are walked once, so that
 * later readers may trust their lengths. The count of an array is divided, not multiplied, in the
 * check, since count * each may overflow. */
static err take_value(struct gguf_kv *kv, struct cursor *c)
{
    size_t start = c->at, each = type_bytes(kv->type);
    const uint8_t *p = c->data + c->at;
    if (each > 0) {
        if (kv->count > (c->size - c->at) / each)
            return err_in(cut_short(c, "its value"), "%s", kv->key);
        TRY(take_bytes(&p, c, kv->count * each, kv->key));
    }
    for (uint64_t i = 0; each == 0 && i < kv->count; i++) {
        uint64_t size;
        const uint8_t *ignored;
        TRY(take_u64(&size, c, kv->key));
        TRY(take_bytes(&ignored, c, size, kv->key));
    }
    kv->data = p;
    kv->size = c->at - start;
    return ERR_NONE;
}

/* 64 KiB is the longest key that the format allows. Arrays of arrays belong to the format, but
 * no writer makes them and the reference loader refuses them. */
static err take_kv(struct gguf_kv *kv, struct cursor *c, struct arena *arena)
{
    uint32_t type;
    TRY(take_name(&kv->key, c, arena, 65536, "a key"));
    TRY(take_u32(&type, c, kv->key));
    kv->count = 1;
    if (type == GGUF_ARRAY) {
        kv->is_array = true;
        TRY(take_u32(&type, c, kv->key));
        TRY(take_u64(&kv->count, c, kv->key));
    }
    if (type >= GGUF_TYPE_COUNT || type == GGUF_ARRAY)
        return err_make(ERR_INPUT, "%s: value type %u, expected 0 to 12 and no array of arrays",
                        kv->key, type);
    kv->type = (enum gguf_type)type;
    return take_value(kv, c);
}

/* The number of elements must fit in int64 and the bytes in size_t, and a row must be whole blocks.
 * Sides of 0 are allowed. Overflow is checked at each multiplication, because files made for
 * attacks choose sides whose product wraps to a small number. */
static err check_shape(struct gguf_tensor *t, const struct format *format)
{
    uint64_t count = 1;
    for (int i = 0; i < DIMS_MAX; i++) {
        if (t->ne[i] > INT64_MAX)
            return err_make(ERR_INPUT, "tensor %s: side %d is negative", t->name, i);
        if (__builtin_mul_overflow(count, t->ne[i], &count) || count > INT64_MAX)
            return err_make(ERR_INPUT, "tensor %s: more elements than 64 bits hold", t->name);
    }
    if (t->ne[0] % format->block != 0)
        return err_make(ERR_INPUT, "tensor %s: rows of %llu values, %s needs a multiple of %u",
                        t->name, (unsigned long long)t->ne[0], format->name, format->block);
    if (!size_mul(&t->size, (size_t)(count / format->block), format->bytes))
        return err_make(ERR_INPUT, "tensor %s: more bytes than 64 bits hold", t->name);
    return ERR_NONE;
}

/* Sides that the file does not list are 1, so all later code can treat a tensor as
 * four-dimensional. */
static err take_tensor(struct gguf_tensor *t, struct cursor *c, struct arena *arena)
{
    uint32_t dims;
    TRY(take_name(&t->name, c, arena, TENSOR_NAME_MAX, "a tensor's name"));
    TRY(take_u32(&dims, c, t->name));
    if (dims > DIMS_MAX)
        return err_make(ERR_INPUT, "tensor %s: %u dimensions, at most 4 are allowed", t->name,
                        dims);
    t->dims = (int)dims;
    for (uint32_t i = 0; i < DIMS_MAX; i++) {
        t->ne[i] = 1;
        if (i < dims) TRY(take_u64(&t->ne[i], c, t->name));
    }
    TRY(take_u32(&t->type_id, c, t->name));
    TRY(take_u64(&t->offset, c, t->name));
    const struct format *format = find_format(t->type_id);
    if (format == NULL)
        return err_make(ERR_INPUT, "tensor %s: unknown type %u", t->name, t->type_id);
    t->dtype = format->dtype;
    return check_shape(t, format);
}

/* The alignment places the tensors, so a wrong one shifts all weights without any other sign. The
 * mask arithmetic of place_tensors() needs a power of two. */
static err read_alignment(struct gguf *g)
{
    g->alignment = ALIGNMENT_DEFAULT;
    const struct gguf_kv *kv = gguf_find(g, "general.alignment");
    if (kv == NULL) return ERR_NONE;
    uint32_t value = 0;
    if (kv->type == GGUF_U32 && !kv->is_array) memcpy(&value, kv->data, sizeof value);
    if (value == 0 || (value & (value - 1)) != 0)
        return err_make(ERR_INPUT, "general.alignment: expected a 32-bit power of two");
    g->alignment = value;
    return ERR_NONE;
}

/* Tensors must lie one after another in the order of the list, each padded to the alignment. The
 * offsets in the file are therefore redundant, and they are only compared: overlapping tensors or
 * gaps are refused as the reference loader does. */
static err place_tensors(struct gguf *g, const struct cursor *c, enum gguf_extent extent)
{
    size_t mask = g->alignment - 1, expected = 0;
    g->data_offset = (c->at + mask) & ~mask;
    for (size_t i = 0; i < g->tensor_count; i++) {
        struct gguf_tensor *t = &g->tensor[i];
        if (t->offset != expected)
            return err_make(ERR_INPUT, "tensor %s: offset %llu, expected %zu", t->name,
                            (unsigned long long)t->offset, expected);
        size_t padded, end;
        if (!size_add(&padded, expected, t->size) || !size_add(&padded, padded, mask) ||
            !size_add(&end, padded & ~mask, g->data_offset))
            return err_make(ERR_INPUT, "tensor %s: ends beyond 64 bits", t->name);
        expected = padded & ~mask;
        if (extent == GGUF_HEADER_ONLY) continue;
        if (end > c->size) /* including the padding of the last one, as in the reference loader */
            return err_make(ERR_INPUT,
                            "tensor %s: ends at byte %zu with its padding, the file has %zu",
                            t->name, end, c->size);
        if (t->size > 0) t->data = c->data + g->data_offset + t->offset;
    }
    return ERR_NONE;
}

static int compare_kv(const void *a, const void *b, void *context)
{
    const struct gguf *g = context;
    return strcmp(g->kv[*(const size_t *)a].key, g->kv[*(const size_t *)b].key);
}

static int compare_tensor(const void *a, const void *b, void *context)
{
    const struct gguf *g = context;
    return strcmp(g->tensor[*(const size_t *)a].name, g->tensor[*(const size_t *)b].name);
}

/* Sorted indices make look-ups binary and duplicates adjacent. A duplicate key is refused, since
 * two readers could choose different values. */
static err sort_kv(struct gguf *g)
{
    TRY(arena_take(&g->kv_sorted, &g->arena, g->kv_count, sizeof *g->kv_sorted));
    for (size_t i = 0; i < g->kv_count; i++)
        g->kv_sorted[i] = i;
    qsort_r(g->kv_sorted, g->kv_count, sizeof *g->kv_sorted, compare_kv, g);
    for (size_t i = 1; i < g->kv_count; i++)
        if (compare_kv(&g->kv_sorted[i - 1], &g->kv_sorted[i], g) == 0)
            return err_make(ERR_INPUT, "key %s appears twice", g->kv[g->kv_sorted[i]].key);
    return ERR_NONE;
}

static err sort_tensors(struct gguf *g)
{
    TRY(arena_take(&g->tensor_sorted, &g->arena, g->tensor_count, sizeof *g->tensor_sorted));
    for (size_t i = 0; i < g->tensor_count; i++)
        g->tensor_sorted[i] = i;
    qsort_r(g->tensor_sorted, g->tensor_count, sizeof *g->tensor_sorted, compare_tensor, g);
    for (size_t i = 1; i < g->tensor_count; i++)
        if (compare_tensor(&g->tensor_sorted[i - 1], &g->tensor_sorted[i], g) == 0)
            return err_make(ERR_INPUT, "tensor %s appears twice",
                            g->tensor[g->tensor_sorted[i]].name);
    return ERR_NONE;
}

/* The counts come first in the file and size the allocations, so they are limited before anything
 * is allocated. A big-endian file has its version bytes swapped, which makes a multiple of
 * 65536. */
static err take_counts(struct gguf *g, struct cursor *c)
{
    const uint8_t *magic = NULL;
    uint32_t version;
    uint64_t tensors, kvs;
    TRY(file_kind_refuse(FILE_KIND_GGUF, c->data, c->size));
    TRY(take_bytes(&magic, c, 4, "the magic number"));
    if (memcmp(magic, "GGUF", 4) != 0)
        return err_make(ERR_INPUT, "not a GGUF file: it does not begin with \"GGUF\"");
    TRY(take_u32(&version, c, "the version"));
    if (version < VERSION_OLDEST || version > VERSION_NEWEST)
        return err_make(ERR_INPUT, "GGUF version %u, expected %d or %d%s", version, VERSION_OLDEST,
                        VERSION_NEWEST,
                        (version & 0xffff) == 0
                            ? " (a big-endian file; convert the model again for this machine)"
                        : version == 1 ? " (a file of 2023; convert the model again)"
                                       : "");
    TRY(take_u64(&tensors, c, "the tensor count"));
    TRY(take_u64(&kvs, c, "the key count"));
    if (tensors > LIMIT_TENSORS || kvs > LIMIT_GGUF_KV)
        return err_make(ERR_INPUT, "%llu tensors and %llu keys, at most %d and %d are allowed",
                        (unsigned long long)tensors, (unsigned long long)kvs, LIMIT_TENSORS,
                        LIMIT_GGUF_KV);
    g->tensor_count = (size_t)tensors;
    g->kv_count = (size_t)kvs;
    return ERR_NONE;
}

/* The alignment is a key, so the keys have to be sorted before tensors can be placed. */
static err read_all(struct gguf *g, struct cursor *c, enum gguf_extent extent)
{
    TRY(take_counts(g, c));
    TRY(arena_take(&g->kv, &g->arena, g->kv_count, sizeof *g->kv));
    for (size_t i = 0; i < g->kv_count; i++)
        TRY(take_kv(&g->kv[i], c, &g->arena));
    TRY(sort_kv(g));
    TRY(read_alignment(g));
    TRY(arena_take(&g->tensor, &g->arena, g->tensor_count, sizeof *g->tensor));
    for (size_t i = 0; i < g->tensor_count; i++)
        TRY(take_tensor(&g->tensor[i], c, &g->arena));
    TRY(sort_tensors(g));
    return place_tensors(g, c, extent);
}

/* *out is set only on success; the arena of a failed read is freed here. */
err gguf_parse(struct gguf *out, const void *data, size_t size, enum gguf_extent extent)
{
    struct gguf g = {0};
    struct cursor c = {.data = data, .size = size};
    err e = read_all(&g, &c, extent);
    if (err_is(e))
        gguf_close(&g);
    else
        *out = g;
    return e;
}

/* The larger list comes from the arena of the first file and replaces the one there. */
err gguf_join(struct gguf *g, const struct gguf *part, size_t parts)
{
    struct gguf all = *g;
    for (size_t i = 0; i < parts; i++)
        all.tensor_count += part[i].tensor_count;
    if (all.tensor_count > LIMIT_TENSORS)
        return err_make(ERR_INPUT, "%zu tensors in all files, at most %d are allowed",
                        all.tensor_count, LIMIT_TENSORS);
    err e;
    TRY_OUT(e, arena_take(&all.tensor, &all.arena, all.tensor_count, sizeof *all.tensor));
    TRY_OUT(e, arena_take(&all.part, &all.arena, parts, sizeof *all.part));
    size_t at = g->tensor_count;
    if (at > 0) memcpy(all.tensor, g->tensor, at * sizeof *all.tensor);
    for (size_t i = 0; i < parts; i++) {
        if (part[i].tensor_count > 0)
            memcpy(all.tensor + at, part[i].tensor, part[i].tensor_count * sizeof *all.tensor);
        at += part[i].tensor_count;
    }
    TRY_OUT(e, sort_tensors(&all));
    if (parts > 0) memcpy(all.part, part, parts * sizeof *part);
    all.parts = parts;
    *g = all;
out:
    if (err_is(e)) g->arena = all.arena;
    return e;
}

const struct file_map *gguf_map(const struct gguf *g, size_t i)
{
    return i == 0 ? &g->map : i <= g->parts ? &g->part[i - 1].map : NULL;
}

void gguf_close(struct gguf *g)
{
    for (size_t i = 0; i < g->parts; i++)
        gguf_close(&g->part[i]);
    file_map_close(&g->map);
    arena_close(&g->arena);
    *g = (struct gguf){0};
}

/* Binary search in the sorted indices. */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name)
{
    size_t low = 0, high = g->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct gguf_tensor *t = &g->tensor[g->tensor_sorted[middle]];
        int order = strcmp(name, t->name);
        if (order == 0) return t;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

const char *gguf_type_name(uint32_t type_id)
{
    const struct format *format = find_format(type_id);
    return format != NULL ? format->name : NULL;
}
