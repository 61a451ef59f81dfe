#include "engine/model/gguf_write.h"

#include "base/bytes.h"
#include "base/limits.h"
#include "engine/model/gguf.h"

#include <string.h>

enum {
    VERSION = 3,
    ALIGNMENT = 32,
    NAME_MAX_BYTES = 64,
    TYPE_F32 = 0,
    HEADER_BYTES_MAX = 64 << 20
};

static err put_u32(struct bytes *b, uint32_t v)
{
    return bytes_append(b, &v, sizeof v);
}
static err put_u64(struct bytes *b, uint64_t v)
{
    return bytes_append(b, &v, sizeof v);
}

/* Strings have a u64 length and no terminating zero. */
static err put_text(struct bytes *b, const char *text)
{
    TRY(put_u64(b, strlen(text)));
    return bytes_append(b, text, strlen(text));
}

/* Values are written in the byte order of the machine, which is little-endian like the format: the
 * project builds for x86-64 only. */
static err put_kv(struct bytes *b, const struct gguf_write_kv *kv)
{
    static const uint32_t types[] = {
        [GGUF_WRITE_TEXT] = GGUF_STRING, [GGUF_WRITE_U32] = GGUF_U32, [GGUF_WRITE_F32] = GGUF_F32};
    TRY(put_text(b, kv->key));
    TRY(put_u32(b, types[kv->kind]));
    if (kv->kind == GGUF_WRITE_TEXT) return put_text(b, kv->text);
    if (kv->kind == GGUF_WRITE_U32) return put_u32(b, kv->u32);
    return bytes_append(b, &kv->f32, sizeof kv->f32);
}

/* The default alignment, so the file needs no general.alignment key. */
static uint64_t padded(uint64_t size)
{
    return (size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

static uint64_t tensor_bytes(const struct gguf_write_tensor *t)
{
    return (uint64_t)t->rows * t->cols * sizeof *t->data;
}

/* Sides are written fastest-varying first: cols, then rows. */
static err put_tensor(struct bytes *b, const struct gguf_write_tensor *t, uint64_t offset)
{
    if (strlen(t->name) >= NAME_MAX_BYTES)
        return err_make(ERR_INPUT, "tensor %s: a GGUF name has at most %d bytes", t->name,
                        NAME_MAX_BYTES - 1);
    TRY(put_text(b, t->name));
    TRY(put_u32(b, 2));
    TRY(put_u64(b, t->cols));
    TRY(put_u64(b, t->rows));
    TRY(put_u32(b, TYPE_F32));
    return put_u64(b, offset);
}

/* The offsets are relative to the data section, which starts at the next multiple of the alignment
 * after the header. */
static err put_header(struct bytes *b, const struct gguf_write_kv *kv, size_t kv_count,
                      const struct gguf_write_tensor *tensor, size_t tensor_count)
{
    uint64_t offset = 0;
    TRY(bytes_append(b, "GGUF", 4));
    TRY(put_u32(b, VERSION));
    TRY(put_u64(b, tensor_count));
    TRY(put_u64(b, kv_count));
    for (size_t i = 0; i < kv_count; i++)
        TRY(put_kv(b, &kv[i]));
    for (size_t i = 0; i < tensor_count; i++) {
        TRY(put_tensor(b, &tensor[i], offset));
        offset += padded(tensor_bytes(&tensor[i]));
    }
    while (b->size % ALIGNMENT != 0)
        TRY(bytes_append(b, "", 1));
    return ERR_NONE;
}

/* The header is built in memory (at most 64 MiB) because it contains the offsets of all tensors;
 * the data is written straight from the memory of the caller. The last tensor is padded too: the
 * reference loader expects it. */
err gguf_write_file(struct file_out *out, const struct gguf_write_kv *kv, size_t kv_count,
                    const struct gguf_write_tensor *tensor, size_t tensor_count)
{
    static const uint8_t zeros[ALIGNMENT];
    struct bytes header = {.max = HEADER_BYTES_MAX};
    err e;
    if (tensor_count > LIMIT_TENSORS || kv_count > LIMIT_GGUF_KV)
        return err_make(ERR_LIMIT, "%zu tensors and %zu keys in one file", tensor_count, kv_count);
    TRY_OUT(e, put_header(&header, kv, kv_count, tensor, tensor_count));
    TRY_OUT(e, file_out_append(out, header.data, header.size));
    for (size_t i = 0; i < tensor_count; i++) {
        uint64_t size = tensor_bytes(&tensor[i]);
        TRY_OUT(e, file_out_append(out, tensor[i].data, size));
        TRY_OUT(e, file_out_append(out, zeros, padded(size) - size));
    }
out:
    bytes_close(&header);
    return e;
}
