/* Element types of tensors on disk: the plain types of safetensors and the block formats of GGUF.
 * A block format packs `block` values into `bytes` bytes. Plain types have block 1, except the
 * 4 and 6 bit floats, whose block is the smallest whole number of bytes. */
#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include "base/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum dtype {
    DTYPE_NONE,
    DTYPE_F32,
    DTYPE_F16,
    DTYPE_BF16,
    DTYPE_F64,
    DTYPE_BOOL,
    DTYPE_U8,
    DTYPE_I8,
    DTYPE_U16,
    DTYPE_I16,
    DTYPE_U32,
    DTYPE_I32,
    DTYPE_U64,
    DTYPE_I64,
    DTYPE_F8_E4M3,
    DTYPE_F8_E5M2,
    DTYPE_F8_E8M0,
    DTYPE_F6_E2M3,
    DTYPE_F6_E3M2,
    DTYPE_F4,
    DTYPE_C64,
    DTYPE_Q4_0,
    DTYPE_Q4_1,
    DTYPE_Q5_0,
    DTYPE_Q5_1,
    DTYPE_Q8_0,
    DTYPE_Q2_K,
    DTYPE_Q3_K,
    DTYPE_Q4_K,
    DTYPE_Q5_K,
    DTYPE_Q6_K,
    DTYPE_IQ4_NL,
    DTYPE_IQ4_XS,
    DTYPE_MXFP4,
    DTYPE_OTHER_BLOCK, /* a GGUF block format we can list and skip, not read */
    DTYPE_COUNT
};

const char *dtype_name(enum dtype t); /* "F32", "BF16", "Q4_K", ... */
/* The exact number of bytes of n elements; false on overflow or when n is not a multiple of the
 * block. */
bool dtype_bytes(size_t *out, enum dtype t, size_t n);

float f32_from_f16(uint16_t h); /* exact */
static inline float f32_from_bf16(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {.u = (uint32_t)h << 16};
    return v.f;
}
uint16_t bf16_from_f32(float x); /* round to nearest even; NaN stays NaN */
/* Converts n elements of F32, F16, BF16 or F64 to float32; ERR_INPUT for any other type. */
err dtype_to_f32(float *out, const void *data, enum dtype t, size_t n);

#endif
