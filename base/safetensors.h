/* safetensors files: an 8-byte little-endian header length, a JSON header, tensors back to back.
 * Reading borrows the caller's bytes (a memory map) and rejects every file that the reference
 * reader (huggingface/safetensors) rejects; an error's text begins with the name that reader gives
 * to the mistake (HeaderTooLarge, InvalidOffset, ...), except that safetensors_open() names a file
 * of another known kind by its kind. Writing is canonical: names and metadata are sorted, the
 * header is padded with spaces to a multiple of 8 bytes, and nothing depends on time. The same
 * content is therefore always the same bytes. */
#ifndef BASE_SAFETENSORS_H
#define BASE_SAFETENSORS_H

#include "base/arena.h"
#include "base/bytes.h"
#include "base/dtype.h"
#include "base/file.h"

enum { SAFETENSORS_DIMS_MAX = 8 };

struct tensor {
    const char *name;
    enum dtype dtype;
    int dims;
    uint64_t shape[SAFETENSORS_DIMS_MAX];
    size_t count;     /* elements */
    size_t size;      /* bytes */
    const void *data; /* NULL when size is 0; may be unaligned when read from a foreign file */
};

struct metadata {
    const char *key, *value;
};

struct safetensors {
    struct arena arena;
    struct file_map map; /* empty when made by safetensors_parse */
    size_t count;
    struct tensor *tensor; /* sorted by name */
    size_t metadata_count;
    struct metadata *metadata; /* sorted by key */
};

err safetensors_parse(struct safetensors *out, const void *data, size_t size);
err safetensors_open(struct safetensors *out, const char *path); /* error text names the path */
/* Reads the header's length and nothing else: ERR_INPUT if it is above `most` bytes. For files of
 * peers, before they are opened, where the number and names of tensors are known. */
err safetensors_check_header(const char *path, uint64_t most);
void safetensors_close(struct safetensors *st);
const struct tensor *safetensors_find(const struct safetensors *st, const char *name); /* or NULL */
const char *safetensors_metadata(const struct safetensors *st, const char *key);       /* or NULL */

/* Appends the whole file to *out. Names must be unique; their order does not change the bytes. */
err safetensors_write(struct bytes *out, const struct tensor *tensor, size_t count,
                      const struct metadata *metadata, size_t metadata_count);
/* The same, appended to an open file; the caller commits it. */
err safetensors_write_file(struct file_out *out, const struct tensor *tensor, size_t count,
                           const struct metadata *metadata, size_t metadata_count);

/* The header alone, for callers that compute one tensor at a time instead of holding all of them:
 * sorts `tensor` in place (`data` is ignored); the caller then appends the `size` bytes of each
 * tensor in that order. */
err safetensors_write_header(struct file_out *out, struct tensor *tensor, size_t count,
                             const struct metadata *metadata, size_t metadata_count);
/* The size of that header in bytes. `data` is ignored. */
err safetensors_header_bytes(uint64_t *out, const struct tensor *tensor, size_t count,
                             const struct metadata *metadata, size_t metadata_count);

#endif
