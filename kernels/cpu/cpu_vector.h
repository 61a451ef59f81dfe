/* Loops over rows of float32 or bfloat16, written so that compilers vectorise them, and compiled
 * for several instruction sets. Sums use 16 lanes in a fixed order, so they have the same bits on
 * every processor. */
#ifndef KERNELS_CPU_CPU_VECTOR_H
#define KERNELS_CPU_CPU_VECTOR_H

#include "base/limits.h"
#include "kernels/backend.h"
#include "kernels/formula.h"

#include <string.h>

#define CPU_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#define CPU_INLINE static inline __attribute__((always_inline))

enum { CPU_CHUNK = 1024, CPU_LANES = 16 };
_Static_assert(CPU_CHUNK >= LIMIT_HEAD_DIM, "a head fits into a chunk");

CPU_INLINE uint16_t cpu_bf16(float x) /* rounds to nearest even; a NaN stays a NaN */
{
    union {
        float f;
        uint32_t u;
    } v = {x};
    uint32_t quiet = (v.u >> 16) | 0x40;
    uint32_t near = (v.u + 0x7fff + ((v.u >> 16) & 1)) >> 16;
    return (uint16_t)((v.u & 0x7fffffff) > 0x7f800000 ? quiet : near);
}
CPU_INLINE float cpu_f32(uint16_t h)
{
    union {
        uint32_t u;
        float f;
    } v = {(uint32_t)h << 16};
    return v.f;
}

/* The n values of a row from column `col` on, as float32: in place if they are float32, else
 * converted into buffer. */
CPU_INLINE const float *cpu_row(float *buffer, struct mat m, size_t row, size_t col, size_t n)
{
    if (m.type == DTYPE_F32) return (const float *)m.data + row * m.ld + col;
    const uint16_t *from = (const uint16_t *)m.data + row * m.ld + col;
    for (size_t i = 0; i < n; i++)
        buffer[i] = cpu_f32(from[i]);
    return buffer;
}
/* The place to write values of a row to: the row itself, or buffer for bfloat16. cpu_row_done()
 * then converts the buffer into the row. */
CPU_INLINE float *cpu_row_out(float *buffer, struct mat m, size_t row, size_t col)
{
    return m.type == DTYPE_F32 ? (float *)m.data + row * m.ld + col : buffer;
}
CPU_INLINE void cpu_row_done(struct mat m, size_t row, size_t col, const float *values, size_t n)
{
    if (m.type == DTYPE_F32) return;
    uint16_t *to = (uint16_t *)m.data + row * m.ld + col;
    for (size_t i = 0; i < n; i++)
        to[i] = cpu_bf16(values[i]);
}

/* Writes n values to a row. */
CPU_INLINE void cpu_row_put(struct mat m, size_t row, size_t col, const float *values, size_t n)
{
    if (m.type == DTYPE_F32) memcpy((float *)m.data + row * m.ld + col, values, n * sizeof(float));
    cpu_row_done(m, row, col, values, n);
}

CPU_INLINE float cpu_lanes_sum(const float lane[CPU_LANES])
{
    float half[8], quarter[4];
    for (int i = 0; i < 8; i++)
        half[i] = lane[i] + lane[i + 8];
    for (int i = 0; i < 4; i++)
        quarter[i] = half[i] + half[i + 4];
    return (quarter[0] + quarter[2]) + (quarter[1] + quarter[3]);
}
/* lane[i % 16] += x[i] * y[i] */
CPU_INLINE void cpu_lanes_dot(float lane[CPU_LANES], const float *x, const float *y, size_t n)
{
    size_t i = 0;
    for (; i + CPU_LANES <= n; i += CPU_LANES)
        for (int j = 0; j < CPU_LANES; j++)
            lane[j] += x[i + j] * y[i + j];
    for (int j = 0; i < n; i++, j++)
        lane[j] += x[i] * y[i];
}

/* e^x / 2^power by the polynomial of formula_exp(), for any x whose result is at most about 1.
 * Results below 2^-126 become 0. */
CPU_INLINE float cpu_exp_scaled(float x, int32_t power)
{
    union {
        float f;
        int32_t i;
    } t = {x * 1.44269504088896341f + 12582912.0f}, two;
    float n = t.f - 12582912.0f;
    float r = x - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = formula_exp_small(r);
    int32_t k = t.i - 0x4b400000 - power;
    two.i = (int32_t)((uint32_t)(k + 127) << 23);
    float low = x == x ? 0.0f : x; /* NaN stays NaN */
    return k < -126 ? low : p * two.f;
}

#endif
