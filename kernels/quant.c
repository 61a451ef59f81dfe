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

/* d, m (f16), 32 fifth bits, 16 bytes as in Q4_0; x = q d + m */
CLONES static void from_q5_1(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 24, out += BLOCK) {
        float d = load_half(data), m = load_half(data + 2);
        uint32_t high;
        memcpy(&high, data + 4, sizeof high);
        const uint8_t *q = data + 8;
        for (int j = 0; j < 16; j++) {
            int low_half = (q[j] & 15) | (int)((high >> j & 1) << 4);
            int high_half = (q[j] >> 4) | (int)((high >> (j + 16) & 1) << 4);
            out[j] = (float)low_half * d + m;
            out[j + 16] = (float)high_half * d + m;
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

/* 16 bytes with the 4 bits of a scale and of a minimum for 16 values each, 64 bytes of bit pairs,
 * d, dmin (f16). 32 bytes hold 128 values: those of bits 0 and 1 first, then those of bits 2 and 3,
 * ... x = (d sc) q - (dmin m) */
CLONES static void from_q2_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 84) {
        const uint8_t *scale = data, *q = data + 16;
        float d = load_half(data + 80), dmin = load_half(data + 82);
        for (int half = 0; half < 2; half++, q += 32)
            for (int shift = 0; shift < 8; shift += 2, scale += 2, out += 32)
                for (int j = 0; j < 32; j++) {
                    uint8_t s = scale[j / 16];
                    float scaled = d * (float)(s & 15), min = dmin * (float)(s >> 4);
                    out[j] = scaled * (float)(q[j] >> shift & 3) - min;
                }
    }
}

/* Scale number j of sixteen, 6 bits in 12 bytes: the low 4 bits of scale j are in the low half of
 * byte j, for j >= 8 in the high half of byte j - 8; the upper 2 bits are in byte 8 + j % 4. */
static int scale_q3_k(const uint8_t *s, int j)
{
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    return (low | (s[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
}

/* 32 bytes of third bits, 64 bytes of bit pairs as in Q2_K, 12 bytes of scales, d (f16). The third
 * bits of 32 values that lie together have the same place in their bytes; a bit that is not set
 * subtracts 4. x = (d sc) q */
CLONES static void from_q3_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 110) {
        const uint8_t *high = data, *q = data + 32, *scales = data + 96;
        float d = load_half(data + 108);
        for (int part = 0; part < 8; part++, out += 32) {
            int shift = 2 * (part % 4);
            float scaled[2] = {d * (float)scale_q3_k(scales, 2 * part),
                               d * (float)scale_q3_k(scales, 2 * part + 1)};
            for (int j = 0; j < 32; j++) {
                int pair = q[32 * (part / 4) + j] >> shift & 3;
                out[j] = scaled[j / 16] * (float)(pair - (high[j] >> part & 1 ? 0 : 4));
            }
        }
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

/* d, dmin (f16), 12 bytes of scales, 32 bytes of fifth bits, 128 bytes as in Q4_K;
 * x = (d sc) q - (dmin m) */
CLONES static void from_q5_k(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 176) {
        float d = load_half(data), dmin = load_half(data + 2);
        const uint8_t *scales = data + 4, *high = data + 16, *q = data + 48;
        for (int part = 0; part < 8; part++, q += part % 2 ? 0 : 32, out += 32) {
            float sc, m;
            scale_min_k4(&sc, &m, scales, part);
            float scaled = d * sc, min = dmin * m;
            for (int j = 0; j < 32; j++) {
                int low = part % 2 ? q[j] >> 4 : q[j] & 15;
                out[j] = scaled * (float)(low | (high[j] >> part & 1) << 4) - min;
            }
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

/* The values of the four bits in the formats IQ4. */
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};

/* The 32 values of 16 bytes as in Q4_0: x = scale value[q] */
static inline void from_nibbles(float *out, const uint8_t *q, const int8_t value[16], float scale)
{
    for (int j = 0; j < 16; j++) {
        out[j] = scale * (float)value[q[j] & 15];
        out[j + 16] = scale * (float)value[q[j] >> 4];
    }
}

/* d (f16), 16 bytes; x = d value[q] */
CLONES static void from_iq4_nl(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / BLOCK; b++, data += 18, out += BLOCK)
        from_nibbles(out, data + 2, iq4_values, load_half(data));
}

/* d (f16), 16 upper bit pairs of eight scales, 4 bytes with their low 4 bits, 128 bytes in parts of
 * 16 as in IQ4_NL; x = (d (sc - 32)) value[q] */
CLONES static void from_iq4_xs(float *out, const uint8_t *data, size_t n)
{
    for (size_t b = 0; b < n / SUPER; b++, data += 136) {
        float d = load_half(data);
        unsigned high = data[2] | (unsigned)data[3] << 8;
        for (int part = 0; part < 8; part++, out += BLOCK) {
            int low = data[4 + part / 2] >> 4 * (part % 2) & 15;
            int sc = low | (int)(high >> 2 * part & 3) << 4;
            from_nibbles(out, data + 8 + 16 * part, iq4_values, d * (float)(sc - 32));
        }
    }
}

/* Half of a power of two, 2^(e - 128), whose smallest values are subnormal. */
static inline float half_e8m0(uint8_t e)
{
    uint32_t bits = e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23;
    float d;
    memcpy(&d, &bits, sizeof d);
    return d;
}

/* e (E8M0), 16 bytes; x = 2^(e - 128) value[q] with twice the values of E2M1 */
CLONES static void from_mxfp4(float *out, const uint8_t *data, size_t n)
{
    static const int8_t values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    for (size_t b = 0; b < n / BLOCK; b++, data += 17, out += BLOCK)
        from_nibbles(out, data + 1, values, half_e8m0(data[0]));
}

static void from_f32(float *out, const uint8_t *data, size_t n)
{
    if (n > 0) memcpy(out, data, n * sizeof *out);
}

/* The known types. */
static void (*const from[DTYPE_COUNT])(float *out, const uint8_t *data, size_t n) = {
    [DTYPE_F32] = from_f32,     [DTYPE_F16] = from_f16,       [DTYPE_BF16] = from_bf16,
    [DTYPE_Q4_0] = from_q4_0,   [DTYPE_Q4_1] = from_q4_1,     [DTYPE_Q5_0] = from_q5_0,
    [DTYPE_Q5_1] = from_q5_1,   [DTYPE_Q8_0] = from_q8_0,     [DTYPE_Q2_K] = from_q2_k,
    [DTYPE_Q3_K] = from_q3_k,   [DTYPE_Q4_K] = from_q4_k,     [DTYPE_Q5_K] = from_q5_k,
    [DTYPE_Q6_K] = from_q6_k,   [DTYPE_IQ4_NL] = from_iq4_nl, [DTYPE_IQ4_XS] = from_iq4_xs,
    [DTYPE_MXFP4] = from_mxfp4,
};

bool quant_known(enum dtype t)
{
    return t < DTYPE_COUNT && from[t] != NULL;
}

void quant_to_f32(float *out, const void *data, enum dtype t, size_t n)
{
    REQUIRE(quant_known(t));
    from[t](out, data, n);
}
