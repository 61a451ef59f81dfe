#include "base/dtype.h"

#include <string.h>

/* One row for each type. */
static const struct {
    const char *name;
    uint16_t block, bytes; /* `block` values take `bytes` bytes */
} dtype_row[DTYPE_COUNT] = {
    [DTYPE_NONE] = {"none", 0, 0},
    [DTYPE_F32] = {"F32", 1, 4},
    [DTYPE_F16] = {"F16", 1, 2},
    [DTYPE_BF16] = {"BF16", 1, 2},
    [DTYPE_F64] = {"F64", 1, 8},
    [DTYPE_BOOL] = {"BOOL", 1, 1},
    [DTYPE_U8] = {"U8", 1, 1},
    [DTYPE_I8] = {"I8", 1, 1},
    [DTYPE_U16] = {"U16", 1, 2},
    [DTYPE_I16] = {"I16", 1, 2},
    [DTYPE_U32] = {"U32", 1, 4},
    [DTYPE_I32] = {"I32", 1, 4},
    [DTYPE_U64] = {"U64", 1, 8},
    [DTYPE_I64] = {"I64", 1, 8},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1, 1},
    [DTYPE_F8_E5M2] = {"F8_E5M2", 1, 1},
    [DTYPE_F8_E8M0] = {"F8_E8M0", 1, 1},
    [DTYPE_F6_E2M3] = {"F6_E2M3", 4, 3},
    [DTYPE_F6_E3M2] = {"F6_E3M2", 4, 3},
    [DTYPE_F4] = {"F4", 2, 1},
    [DTYPE_C64] = {"C64", 1, 8},
    [DTYPE_Q4_0] = {"Q4_0", 32, 18},
    [DTYPE_Q4_1] = {"Q4_1", 32, 20},
    [DTYPE_Q5_0] = {"Q5_0", 32, 22},
    [DTYPE_Q5_1] = {"Q5_1", 32, 24},
    [DTYPE_Q8_0] = {"Q8_0", 32, 34},
    [DTYPE_Q2_K] = {"Q2_K", 256, 84},
    [DTYPE_Q3_K] = {"Q3_K", 256, 110},
    [DTYPE_Q4_K] = {"Q4_K", 256, 144},
    [DTYPE_Q5_K] = {"Q5_K", 256, 176},
    [DTYPE_Q6_K] = {"Q6_K", 256, 210},
    [DTYPE_IQ4_NL] = {"IQ4_NL", 32, 18},
    [DTYPE_IQ4_XS] = {"IQ4_XS", 256, 136},
    [DTYPE_MXFP4] = {"MXFP4", 32, 17},
    [DTYPE_OTHER_BLOCK] = {"other", 0, 0},
};

const char *dtype_name(enum dtype t)
{
    return (unsigned)t < DTYPE_COUNT ? dtype_row[t].name : "unknown";
}

/* A block of 0 marks types without a known size, for which the answer is always false. */
bool dtype_bytes(size_t *out, enum dtype t, size_t n)
{
    REQUIRE((unsigned)t < DTYPE_COUNT);
    size_t block = dtype_row[t].block, bytes;
    if (!block || n % block || __builtin_mul_overflow(n / block, dtype_row[t].bytes, &bytes))
        return false;
    *out = bytes;
    return true;
}

static float f32_from_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t f32_bits(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float f32_from_f16(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = (h >> 10) & 0x1f, fraction = h & 0x3ff;
    if (exponent == 0) { /* zero and subnormals: fraction * 2^-24, exact in float32 */
        float value = (float)fraction * 0x1p-24f;
        return sign ? -value : value;
    }
    if (exponent == 31) return f32_from_bits(sign | 0x7f800000 | fraction << 13);
    return f32_from_bits(sign | (exponent + 112) << 23 | fraction << 13);
}

/* Drops the low `shift` bits, rounding to nearest, ties to even. */
static uint32_t shift_rounded(uint32_t x, unsigned shift)
{
    uint32_t kept = x >> shift, rest = x & ((1u << shift) - 1), half = 1u << (shift - 1);
    return kept + (rest > half || (rest == half && (kept & 1)));
}

/* A NaN whose payload is in the low bits only would be rounded to infinity, so a quiet bit is
 * set. */
uint16_t bf16_from_f32(float x)
{
    uint32_t bits = f32_bits(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return (uint16_t)(bits >> 16 | 0x40);
    return (uint16_t)shift_rounded(bits, 16);
}

err dtype_to_f32(float *out, const void *data, enum dtype t, size_t n)
{
    const uint8_t *p = data;
    uint16_t h;
    double d;
    switch (t) {
    case DTYPE_F32:
        if (n) memcpy(out, data, n * sizeof *out);
        return ERR_NONE;
    case DTYPE_F16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = f32_from_f16(h);
        }
        return ERR_NONE;
    case DTYPE_BF16:
        for (size_t i = 0; i < n; i++) {
            memcpy(&h, p + 2 * i, 2);
            out[i] = f32_from_bf16(h);
        }
        return ERR_NONE;
    case DTYPE_F64:
        for (size_t i = 0; i < n; i++) {
            memcpy(&d, p + 8 * i, 8);
            out[i] = (float)d;
        }
        return ERR_NONE;
    default:
        return err_make(ERR_INPUT, "type %s: expected F32, F16, BF16 or F64", dtype_name(t));
    }
}
