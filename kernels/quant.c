#include "kernels/quant.h"
#include "kernels/formula.h"

#include <string.h>

/* Compiled for several instruction sets, because weights may be converted at each use. Products and
 * sums are not fused, so the bits are the same. */
#define CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))

enum { BLOCK = 32, SUPER = 256 };

static inline float load_half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return formula_half(h);
}

CLONES static void from_f16(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = load_half(data + 2 * i);
}

CLONES static void from_bf16(float *out, const uint8_t *data, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, data + 2 * i, sizeof h);
        out[i] = f32_from_bf16(h);
    }
}

/* d (f16), 16 bytes: value j in the low half of byte j, value j + 16 in its high half;
 * x = (q - 8) d */
CLONES static void from_q4_0(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 18, out += BLOCK) {
        float d = load_half(data);
        const uint8_t *q = data + 2;
        for (int j = 0; j < 16; j++) {
            out[j] = (float)((q[j] & 15) - 8) * d;
            out[j + 16] = (float)((q[j] >> 4) - 8) * d;
        }
    }
}

/* d, m (f16), 16 bytes as in Q4_0; x = q d + m */
CLONES static void from_q4_1(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 20, out += BLOCK) {
        float d = load_half(data), m = load_half(data + 2);
        const uint8_t *q = data + 4;
        for (int j = 0; j < 16; j++) {
            out[j] = (float)(q[j] & 15) * d + m;
            out[j + 16] = (float)(q[j] >> 4) * d + m;
        }
    }
}

/* d (f16), 32 fifth bits, 16 bytes as in Q4_0; x = (q - 16) d */
CLONES static void from_q5_0(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 22, out += BLOCK) {
        float d = load_half(data);
        uint32_t high;
        memcpy(&high, data + 2, sizeof high);
        const uint8_t *q = data + 6;
        for (int j = 0; j < 16; j++) {
            int low_half = (q[j] & 15) | (int)((high >> j & 1) << 4);
            int high_half = (q[j] >> 4) | (int)((high >> (j + 16) & 1) << 4);
            out[j] = (float)(low_half - 16) * d;
            out[j + 16] = (float)(high_half - 16) * d;
        }
    }
}

/* d (f16), 32 signed bytes; x = q d */
CLONES static void from_q8_0(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 34, out += BLOCK) {
        float d = load_half(data);
        const int8_t *q = (const int8_t *)(data + 2);
        for (int j = 0; j < BLOCK; j++)
            out[j] = (float)q[j] * d;
    }
}

/* Scale and minimum number j of eight, 6 bits each, in 12 bytes. The first four are whole in bytes
 * 0 .. 7. The others have their low 4 bits in bytes 8 .. 11 and their upper 2 bits in the upper
 * bits of bytes 0 .. 7. */
static void scale_min_k4(float *scale, float *min, const uint8_t *s, int j)
{
    if (j < 4) {
        *scale = (float)(s[j] & 63);
        *min = (float)(s[j + 4] & 63);
        return;
    }
    *scale = (float)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
    *min = (float)((s[j + 4] >> 4) | (s[j] >> 6) << 4);
}

/* d, dmin (f16), 12 bytes of scales, 128 bytes: each 32 bytes hold 32 low halves, then 32 high
 * ones; x = (d sc) q - (dmin m) */
CLONES static void from_q4_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 144) {
        float d = load_half(data), dmin = load_half(data + 2);
        const uint8_t *scales = data + 4, *q = data + 16;
        for (int pair = 0; pair < 4; pair++, q += 32, out += 64) {
            float sc0, m0, sc1, m1;
            scale_min_k4(&sc0, &m0, scales, 2 * pair);
            scale_min_k4(&sc1, &m1, scales, 2 * pair + 1);
            float d0 = d * sc0, min0 = dmin * m0, d1 = d * sc1, min1 = dmin * m1;
            for (int j = 0; j < 32; j++)
                out[j] = d0 * (float)(q[j] & 15) - min0;
            for (int j = 0; j < 32; j++)
                out[j + 32] = d1 * (float)(q[j] >> 4) - min1;
        }
    }
}

/* 128 bytes of low nibbles, 64 of upper bit pairs, 16 signed scales (one for 16 values), d (f16);
 * x = (d sc) (q - 32) */
CLONES static void from_q6_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 210) {
        const uint8_t *low = data, *high = data + 128;
        const int8_t *scale = (const int8_t *)(data + 192);
        float d = load_half(data + 208);
        for (int half = 0; half < 2; half++, low += 64, high += 32, scale += 8, out += 128) {
            for (int j = 0; j < 32; j++) {
                int s = j / 16;
                int q0 = (low[j] & 15) | (high[j] & 3) << 4;
                int q1 = (low[j + 32] & 15) | (high[j] >> 2 & 3) << 4;
                int q2 = (low[j] >> 4) | (high[j] >> 4 & 3) << 4;
                int q3 = (low[j + 32] >> 4) | (high[j] >> 6) << 4;
                out[j] = d * (float)scale[s] * (float)(q0 - 32);
                out[j + 32] = d * (float)scale[s + 2] * (float)(q1 - 32);
                out[j + 64] = d * (float)scale[s + 4] * (float)(q2 - 32);
                out[j + 96] = d * (float)scale[s + 6] * (float)(q3 - 32);
            }
        }
    }
}

bool quant_known(enum dtype t)
{
    switch (t) {
    case DTYPE_F32:
    case DTYPE_F16:
    case DTYPE_BF16:
    case DTYPE_Q4_0:
    case DTYPE_Q4_1:
    case DTYPE_Q5_0:
    case DTYPE_Q8_0:
    case DTYPE_Q4_K:
    case DTYPE_Q6_K:
        return true;
    default:
        return false;
    }
}

void quant_to_f32(float *out, const void *data, enum dtype t, size_t n)
{
    switch (t) {
    case DTYPE_F32:
        if (n > 0) memcpy(out, data, n * sizeof(float));
        return;
    case DTYPE_F16:
        from_f16(out, data, n);
        return;
    case DTYPE_BF16:
        from_bf16(out, data, n);
        return;
    case DTYPE_Q4_0:
        from_q4_0(out, data, n);
        return;
    case DTYPE_Q4_1:
        from_q4_1(out, data, n);
        return;
    case DTYPE_Q5_0:
        from_q5_0(out, data, n);
        return;
    case DTYPE_Q8_0:
        from_q8_0(out, data, n);
        return;
    case DTYPE_Q4_K:
        from_q4_k(out, data, n);
        return;
    case DTYPE_Q6_K:
        from_q6_k(out, data, n);
        return;
    default:
        REQUIRE(!"quant_to_f32: a type that quant_known() refuses");
    }
}
