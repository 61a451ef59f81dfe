/* safetensors files: an 8-byte little-endian header length, a JSON header, tensors back to back.
 * Reading borrows the caller's bytes (a memory map) and rejects what the reference reader rejects:
 * see enum safetensors_verdict. Writing is canonical: names and metadata sorted, header padded with
 * spaces to 8 bytes, no times; the same content is always the same bytes. */
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

/* The errors' texts begin with the reference reader's names (HeaderTooLarge, InvalidOffset, ...).
 */
err safetensors_parse(struct safetensors *out, const void *data, size_t size);
err safetensors_open(struct safetensors *out, const char *path); /* error text names the path */
void safetensors_close(struct safetensors *st);
const struct tensor *safetensors_find(const struct safetensors *st, const char *name); /* or NULL */
const char *safetensors_metadata(const struct safetensors *st, const char *key);       /* or NULL */

/* Appends the whole file to *out. Names must be unique; any order of the inputs gives the same
 * bytes. */
err safetensors_write(struct bytes *out, const struct tensor *tensor, size_t count,
                      const struct metadata *metadata, size_t metadata_count);
/* The same, streamed to a file; `out` is open and is not committed here. */
err safetensors_write_file(struct file_out *out, const struct tensor *tensor, size_t count,
                           const struct metadata *metadata, size_t metadata_count);

/* What comes before the values, for those who make these one at a time: sorts `tensor` in place
 * (its data is not looked at); the caller then appends each one's `size` bytes in that order. */
err safetensors_write_header(struct file_out *out, struct tensor *tensor, size_t count,
                             const struct metadata *metadata, size_t metadata_count);

#endif
