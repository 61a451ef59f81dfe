/* Writes a GGUF v3 file: keys and float32 tensors, in the order given. Names must be unique and
 * tensor names shorter than 64 bytes, else ERR_INPUT. The file is open and is not committed here.
 */
#ifndef CLIENT_GGUF_WRITE_H
#define CLIENT_GGUF_WRITE_H

#include "base/file.h"

struct gguf_write_kv { /* exactly one value: text, or a number of the kind */
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
