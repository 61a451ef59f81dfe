/* Typed look-ups in an open GGUF file (gguf.h). gguf.c reads the file and has checked that all
 * values lie inside it, so nothing here can read beyond its end. */
#include "engine/model/gguf.h"

#include <math.h>
#include <string.h>

/* Binary search in the sorted indices: a file may have thousands of keys, and opening a model asks
 * for dozens. */
const struct gguf_kv *gguf_find(const struct gguf *g, const char *key)
{
    size_t low = 0, high = g->kv_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const struct gguf_kv *kv = &g->kv[g->kv_sorted[middle]];
        int order = strcmp(key, kv->key);
        if (order == 0) return kv;
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

static err absent(const char *key)
{
    return err_make(ERR_INPUT, "key %s is missing", key);
}

/* The names are in the order of enum gguf_type. */
static err unexpected(const struct gguf_kv *kv, const char *expected)
{
    static const char *const names[GGUF_TYPE_COUNT] = {"u8",  "i8",  "u16",  "i16",    "u32",
                                                       "i32", "f32", "bool", "string", "array",
                                                       "u64", "i64", "f64"};
    return err_make(ERR_INPUT, "key %s: expected %s, found %s%s", kv->key, expected,
                    kv->is_array ? "an array of " : "", names[kv->type]);
}

/* Element i of an integer type, widened. Returns false for other types and for u64 values beyond
 * int64. Values in the file are unaligned, so they are copied with memcpy(). */
static bool read_integer(int64_t *out, const struct gguf_kv *kv, uint64_t i)
{
    union {
        uint8_t u8;
        int8_t i8;
        uint16_t u16;
        int16_t i16;
        uint32_t u32;
        int32_t i32;
        uint64_t u64;
        int64_t i64;
    } v;
#define READ(field)                                                                                \
    memcpy(&v.field, kv->data + i * sizeof v.field, sizeof v.field);                               \
    *out = (int64_t)v.field
    switch (kv->type) {
    case GGUF_U8:
        READ(u8);
        return true;
    case GGUF_I8:
        READ(i8);
        return true;
    case GGUF_U16:
        READ(u16);
        return true;
    case GGUF_I16:
        READ(i16);
        return true;
    case GGUF_U32:
        READ(u32);
        return true;
    case GGUF_I32:
        READ(i32);
        return true;
    case GGUF_I64:
        READ(i64);
        return true;
    case GGUF_U64:
        READ(u64);
        return v.u64 <= INT64_MAX;
    default:
        return false;
    }
#undef READ
}

/* F64 is accepted because some converters write Python floats; the rounding to float32 is what the
 * reference loader does. */
static bool read_real(float *out, const struct gguf_kv *kv, uint64_t i)
{
    if (kv->type == GGUF_F32) {
        memcpy(out, kv->data + i * sizeof *out, sizeof *out);
        return true;
    }
    if (kv->type != GGUF_F64) return false;
    double wide;
    memcpy(&wide, kv->data + i * sizeof wide, sizeof wide);
    *out = (float)wide;
    return true;
}

/* Moves *at behind the string. take_value() has checked the length. */
static struct gguf_str read_str(const uint8_t **at)
{
    uint64_t size;
    memcpy(&size, *at, sizeof size);
    struct gguf_str s = {.data = (const char *)*at + sizeof size, .size = (size_t)size};
    *at += sizeof size + s.size;
    return s;
}

/* Converters write the same key as u32, i32 or u64, so only the value counts and not the type. */
err gguf_opt_u32(uint32_t *out, const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    int64_t value;
    if (kv == NULL) return ERR_NONE;
    if (kv->is_array || !read_integer(&value, kv, 0)) return unexpected(kv, "an integer");
    if (value < 0 || value > UINT32_MAX)
        return err_make(ERR_INPUT, "key %s: %lld is out of range", key, (long long)value);
    *out = (uint32_t)value;
    return ERR_NONE;
}

/* Infinities and NaN are refused: no parameter of a model may have them, and they would spread
 * silently. */
err gguf_opt_f32(float *out, const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    float value;
    if (kv == NULL) return ERR_NONE;
    if (kv->is_array || !read_real(&value, kv, 0)) return unexpected(kv, "a real number");
    if (!isfinite(value)) return err_make(ERR_INPUT, "key %s: not a finite number", key);
    *out = value;
    return ERR_NONE;
}

/* Any byte other than 0 is true, as in C. */
err gguf_opt_bool(bool *out, const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (kv == NULL) return ERR_NONE;
    if (kv->is_array || kv->type != GGUF_BOOL) return unexpected(kv, "a bool");
    *out = kv->data[0] != 0;
    return ERR_NONE;
}

err gguf_opt_str(struct gguf_str *out, const struct gguf *g, const char *key)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (kv == NULL) return ERR_NONE;
    if (kv->is_array || kv->type != GGUF_STRING) return unexpected(kv, "a string");
    const uint8_t *at = kv->data;
    *out = read_str(&at);
    return ERR_NONE;
}

err gguf_get_u32(uint32_t *out, const struct gguf *g, const char *key)
{
    return gguf_find(g, key) == NULL ? absent(key) : gguf_opt_u32(out, g, key);
}

err gguf_get_f32(float *out, const struct gguf *g, const char *key)
{
    return gguf_find(g, key) == NULL ? absent(key) : gguf_opt_f32(out, g, key);
}

err gguf_get_str(struct gguf_str *out, const struct gguf *g, const char *key)
{
    return gguf_find(g, key) == NULL ? absent(key) : gguf_opt_str(out, g, key);
}

/* A single value is not accepted in place of an array of one. */
static err find_array(const struct gguf_kv **out, const struct gguf *g, const char *key,
                      const char *expected)
{
    const struct gguf_kv *kv = gguf_find(g, key);
    if (kv == NULL) return absent(key);
    if (!kv->is_array) return unexpected(kv, expected);
    *out = kv;
    return ERR_NONE;
}

/* The strings point into the file; only the list of them is allocated, 16 bytes for each string. */
err gguf_get_strings(const struct gguf_str **out, size_t *count, const struct gguf *g,
                     const char *key, struct arena *arena)
{
    const struct gguf_kv *kv = NULL;
    struct gguf_str *strings;
    TRY(find_array(&kv, g, key, "an array of strings"));
    if (kv->type != GGUF_STRING) return unexpected(kv, "an array of strings");
    TRY(arena_take(&strings, arena, (size_t)kv->count, sizeof *strings));
    const uint8_t *at = kv->data;
    for (uint64_t i = 0; i < kv->count; i++)
        strings[i] = read_str(&at);
    *out = strings;
    *count = (size_t)kv->count;
    return ERR_NONE;
}

err gguf_get_i32s(const int32_t **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena)
{
    const struct gguf_kv *kv = NULL;
    int32_t *values;
    TRY(find_array(&kv, g, key, "an array of integers"));
    TRY(arena_take(&values, arena, (size_t)kv->count, sizeof *values));
    for (uint64_t i = 0; i < kv->count; i++) {
        int64_t value;
        if (!read_integer(&value, kv, i)) return unexpected(kv, "an array of integers");
        if (value < INT32_MIN || value > INT32_MAX)
            return err_make(ERR_INPUT, "key %s: element %llu is out of range", key,
                            (unsigned long long)i);
        values[i] = (int32_t)value;
    }
    *out = values;
    *count = (size_t)kv->count;
    return ERR_NONE;
}

err gguf_get_f32s(const float **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena)
{
    const struct gguf_kv *kv = NULL;
    float *values;
    TRY(find_array(&kv, g, key, "an array of real numbers"));
    TRY(arena_take(&values, arena, (size_t)kv->count, sizeof *values));
    for (uint64_t i = 0; i < kv->count; i++)
        if (!read_real(&values[i], kv, i)) return unexpected(kv, "an array of real numbers");
    *out = values;
    *count = (size_t)kv->count;
    return ERR_NONE;
}

bool gguf_str_is(struct gguf_str s, const char *text)
{
    return s.size == strlen(text) && memcmp(s.data, text, s.size) == 0;
}
