/* GGUF v3 files, read from a memory map: typed key-values, then tensors. Everything found in one
 * borrows the map until gguf_close(). Nothing is trusted: a file that the reference loader rejects
 * is ERR_INPUT here, and the text says what was wrong and where. Not for big-endian files, and not
 * for split models.
 *
 *   struct gguf g;
 *   TRY(gguf_open(&g, "model.gguf", GGUF_WITH_DATA));
 *   uint32_t layers;
 *   e = gguf_get_u32(&layers, &g, "llama.block_count"); */
#ifndef CLIENT_GGUF_H
#define CLIENT_GGUF_H

#include "base/arena.h"
#include "base/dtype.h"
#include "base/file.h"

enum gguf_type { /* the numbers of the file format */
                 GGUF_U8,
                 GGUF_I8,
                 GGUF_U16,
                 GGUF_I16,
                 GGUF_U32,
                 GGUF_I32,
                 GGUF_F32,
                 GGUF_BOOL,
                 GGUF_STRING,
                 GGUF_ARRAY,
                 GGUF_U64,
                 GGUF_I64,
                 GGUF_F64,
                 GGUF_TYPE_COUNT
};

struct gguf_str {
    const char *data; /* not zero-terminated; may hold any byte */
    size_t size;
};

struct gguf_kv {
    const char *key;
    enum gguf_type type; /* of the value, or of each element when is_array; never GGUF_ARRAY */
    bool is_array;
    uint64_t count;      /* elements; 1 when not an array */
    const uint8_t *data; /* little-endian values, unaligned; strings as (u64 size, bytes) each */
    size_t size;
};

struct gguf_tensor {
    const char *name;
    uint32_t type_id; /* ggml's number, see gguf_type_name() */
    enum dtype dtype; /* DTYPE_OTHER_BLOCK: a format we can list but not compute with */
    int dims;
    uint64_t ne[4];      /* fastest-varying first: a weight of (rows, cols) has ne = {cols, rows} */
    uint64_t offset;     /* in the data section */
    size_t size;         /* bytes */
    const uint8_t *data; /* NULL when opened with GGUF_HEADER_ONLY or when size is 0 */
};

struct gguf {
    struct arena arena;
    struct file_map map;
    size_t kv_count, tensor_count;
    struct gguf_kv *kv;                /* in the file's order */
    struct gguf_tensor *tensor;        /* in the file's order */
    size_t *kv_sorted, *tensor_sorted; /* indices by name */
    uint32_t alignment;
    size_t data_offset;
};

enum gguf_extent { GGUF_HEADER_ONLY, GGUF_WITH_DATA };

err gguf_open(struct gguf *out, const char *path,
              enum gguf_extent extent); /* text names the path */
/* The same from bytes that outlive *out. */
err gguf_parse(struct gguf *out, const void *data, size_t size, enum gguf_extent extent);
void gguf_close(struct gguf *g);

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);             /* or NULL */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* or NULL */

/* Required scalars. Any integer type that holds the value in range will do (the reference loader is
 * as lenient); absent or of another kind: ERR_INPUT naming the key. */
err gguf_get_u32(uint32_t *out, const struct gguf *g, const char *key);
err gguf_get_f32(float *out, const struct gguf *g, const char *key);
err gguf_get_str(struct gguf_str *out, const struct gguf *g, const char *key);
/* Absent: *out keeps its value and it is no error. */
err gguf_opt_u32(uint32_t *out, const struct gguf *g, const char *key);
err gguf_opt_f32(float *out, const struct gguf *g, const char *key);
err gguf_opt_bool(bool *out, const struct gguf *g, const char *key);
err gguf_opt_str(struct gguf_str *out, const struct gguf *g, const char *key);

/* Required arrays, decoded into the caller's arena. i32 takes any integer element type, f32 F32 or
 * F64. */
err gguf_get_strings(const struct gguf_str **out, size_t *count, const struct gguf *g,
                     const char *key, struct arena *arena);
err gguf_get_i32s(const int32_t **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena);
err gguf_get_f32s(const float **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena);

bool gguf_str_is(struct gguf_str s, const char *text);
const char *
gguf_type_name(uint32_t type_id); /* "Q4_K", "IQ2_XS", ...; NULL for a number not known */

#endif
