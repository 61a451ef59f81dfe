/* GGUF files of version 2 or 3, read from a memory map: typed key-value pairs, then tensors.
 * Everything found in a file points into the map or the arena and is valid until gguf_close(). The
 * file is not trusted: bytes that the reference loader (llama.cpp) rejects are ERR_INPUT here too,
 * with a text that names the place and the fault. Files of version 1 and big-endian files are
 * refused.
 *
 * A model may be split into files NAME-00001-of-00003.gguf ...: the first one has the keys, each
 * has some of the tensors. gguf_open() opens all of them by the name of any.
 *
 *   struct gguf g;
 *   TRY(gguf_open(&g, "model.gguf", GGUF_WITH_DATA));
 *   uint32_t layers;
 *   e = gguf_get_u32(&layers, &g, "llama.block_count"); */
#ifndef ENGINE_GGUF_H
#define ENGINE_GGUF_H

#include "base/arena.h"
#include "base/dtype.h"
#include "base/file.h"

/* Numbers of the file format. */
enum gguf_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
    GGUF_TYPE_COUNT,
};

struct gguf_str {
    const char *data; /* any bytes, not zero-terminated */
    size_t size;
};

struct gguf_kv {
    const char *key;
    enum gguf_type type; /* of the value or, with is_array, of each element; never GGUF_ARRAY */
    bool is_array;
    uint64_t count;      /* elements; 1 if not an array */
    const uint8_t *data; /* little-endian and unaligned; a string is a u64 size and its bytes */
    size_t size;         /* bytes */
};

struct gguf_tensor {
    const char *name;
    uint32_t type_id; /* number in ggml, see gguf_type_name() */
    enum dtype dtype; /* DTYPE_OTHER_BLOCK: a format that can be listed but not computed with */
    int dims;
    uint64_t ne[4];      /* fastest-varying first: a weight of (rows, cols) has ne = {cols, rows} */
    uint64_t offset;     /* bytes from the start of the data section */
    size_t size;         /* bytes */
    const uint8_t *data; /* NULL if the file was opened with GGUF_HEADER_ONLY or size is 0 */
};

struct gguf {
    struct arena arena;
    struct file_map map;
    size_t kv_count, tensor_count;
    struct gguf_kv *kv;                /* in the order of the file */
    struct gguf_tensor *tensor;        /* in the order of the file */
    size_t *kv_sorted, *tensor_sorted; /* indices sorted by name, for binary search */
    uint32_t alignment;                /* of tensors in the data section, bytes */
    size_t data_offset;                /* of the data section in the file */
    /* (parts) the further files of a split model; their tensors are in `tensor`, their maps and
     * arenas here */
    struct gguf *part;
    size_t parts;
};

/* GGUF_HEADER_ONLY also opens a file whose tensor data is cut off; tensors then have no data. */
enum gguf_extent { GGUF_HEADER_ONLY, GGUF_WITH_DATA };

/* With all files of a split model. Error texts name the path. */
err gguf_open(struct gguf *out, const char *path, enum gguf_extent extent);
/* The same from bytes in memory, which must outlive *out. */
err gguf_parse(struct gguf *out, const void *data, size_t size, enum gguf_extent extent);
void gguf_close(struct gguf *g);
/* Moves the tensors of further files into g, which then owns part[0 .. parts - 1]; the list stays
 * the caller's. ERR_INPUT for a name that appears twice; then nothing has moved. */
err gguf_join(struct gguf *g, const struct gguf *part, size_t parts);
/* Map i of the file and its parts, or NULL after the last one. */
const struct file_map *gguf_map(const struct gguf *g, size_t i);

const struct gguf_kv *gguf_find(const struct gguf *g, const char *key);             /* or NULL */
const struct gguf_tensor *gguf_find_tensor(const struct gguf *g, const char *name); /* or NULL */

/* Required scalars. gguf_get_u32() accepts every integer type whose value is in range, as the
 * reference loader does. A key that is absent or of another type is ERR_INPUT naming the key. */
err gguf_get_u32(uint32_t *out, const struct gguf *g, const char *key);
err gguf_get_f32(float *out, const struct gguf *g, const char *key);
err gguf_get_str(struct gguf_str *out, const struct gguf *g, const char *key);
/* Optional scalars: if the key is absent, *out keeps its value and the result is ERR_NONE. */
err gguf_opt_u32(uint32_t *out, const struct gguf *g, const char *key);
err gguf_opt_f32(float *out, const struct gguf *g, const char *key);
err gguf_opt_bool(bool *out, const struct gguf *g, const char *key);
err gguf_opt_str(struct gguf_str *out, const struct gguf *g, const char *key);

/* Required arrays, decoded into the arena of the caller. i32s accepts any integer element type,
 * f32s accepts F32 and F64. */
err gguf_get_strings(const struct gguf_str **out, size_t *count, const struct gguf *g,
                     const char *key, struct arena *arena);
err gguf_get_i32s(const int32_t **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena);
err gguf_get_f32s(const float **out, size_t *count, const struct gguf *g, const char *key,
                  struct arena *arena);

bool gguf_str_is(struct gguf_str s, const char *text);
/* "Q4_K", "IQ2_XS" and so on; NULL for an unknown number. */
const char *gguf_type_name(uint32_t type_id);

#endif
