/* Names the kind of a file by its first bytes, for files that turn out not to be of the format that
 * is read: a Git LFS pointer, a saved error page, a PyTorch file. Pure. Readers call
 * file_kind_refuse() when their own check of the first bytes has failed, so that users read what
 * the file is and what to do instead of a number that was read from text. */
#ifndef BASE_FILE_KIND_H
#define BASE_FILE_KIND_H

#include "base/err.h"

#include <stddef.h>

enum file_kind {
    FILE_KIND_UNKNOWN,
    FILE_KIND_EMPTY,
    FILE_KIND_LFS,  /* a Git LFS pointer: a few lines of text in place of the file */
    FILE_KIND_HTML, /* also XML, in which storage services answer errors */
    FILE_KIND_ZIP,  /* PyTorch's .bin, .pt and .ckpt since 1.6; NumPy's .npz */
    FILE_KIND_PICKLE,
    FILE_KIND_GGUF,
    FILE_KIND_GGML, /* before GGUF */
    FILE_KIND_SAFETENSORS,
    FILE_KIND_GZIP,
    FILE_KIND_ZSTD,
    FILE_KIND_XZ,
    FILE_KIND_TAR,
    FILE_KIND_HDF5,
    FILE_KIND_NUMPY,
    FILE_KIND_PARQUET,
    FILE_KIND_UTF16,
    FILE_KIND_JSON,
    FILE_KINDS
};

/* By the first bytes, or by all of them. A file that begins as safetensors is FILE_KIND_SAFETENSORS
 * also if the rest of it is missing. */
enum file_kind file_kind_of(const void *data, size_t size);

/* ERR_INPUT if the bytes are of a known kind other than `wanted`: "is a Git LFS pointer, expected a
 * GGUF file; ...", with what to do. ERR_NONE if they are of the wanted kind or of an unknown one,
 * for which the reader's own error is better. The caller puts the path in front. */
err file_kind_refuse(enum file_kind wanted, const void *data, size_t size);

#endif
