/* Writes GGUF v3 files with scalar keys and float32 tensors, in the order given. Keys and tensor
 * names must be unique and tensor names shorter than 64 bytes, else ERR_INPUT. The caller opens the
 * file and commits it. */
#ifndef ENGINE_GGUF_WRITE_H
#define ENGINE_GGUF_WRITE_H

#include "base/file.h"

struct gguf_write_kv { /* one value, in the member that `kind` selects */
    const char *key;
    enum { GGUF_WRITE_TEXT, GGUF_WRITE_U32, GGUF_WRITE_F32 } kind;
    const char *text;
    uint32_t u32;
    float f32;
};
struct gguf_write_tensor {
    const char *name;
    uint32_t rows, cols;
    const float *data; /* (rows, cols) */
};

err gguf_write_file(struct file_out *out, const struct gguf_write_kv *kv, size_t kv_count,
                    const struct gguf_write_tensor *tensor, size_t tensor_count);

#endif
