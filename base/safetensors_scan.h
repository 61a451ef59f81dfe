/* A quick reader for headers in the form that safetensors_write() makes. A coordinator reads three
 * headers for each update, and jansson's tree of objects cost more than all its other checks.
 * Used only by safetensors.c, which checks the entries and reads every other header by jansson. */
#ifndef BASE_SAFETENSORS_SCAN_H
#define BASE_SAFETENSORS_SCAN_H

#include "base/safetensors.h"

/* A tensor and its range of bytes behind the header. */
struct safetensors_entry {
    struct tensor tensor; /* name, dtype, dims, shape */
    uint64_t range[2];
};

/* Fills the entries and st->metadata. False: the header is not in this form, it may be right or
 * wrong, and nothing but st->arena was changed. Keys in ascending order have no duplicates. */
bool safetensors_scan(struct safetensors *st, struct safetensors_entry **entry, size_t *count,
                      const char *text, size_t size);
/* jansson needs up to 75 bytes of memory for a byte of text. So this counts first: false if the
 * text has more values, or longer names, than the header of LIMIT_TENSORS tensors. It says nothing
 * else about the text. */
bool safetensors_is_bounded(const char *text, size_t size);
/* DTYPE_NONE for an unknown name. */
enum dtype safetensors_dtype(const char *name);

#endif
