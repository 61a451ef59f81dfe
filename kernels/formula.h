/* Formulas that give the same bits on every device. C compiles them for the CPU and nvcc for GPUs;
 * products and sums must not be fused (-ffp-contract=off, --fmad=false). */
#ifndef KERNELS_FORMULA_H
#define KERNELS_FORMULA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus /* sources of kernels/cuda, after cuda_common.cuh */
#define FORMULA static __host__ __device__ __forceinline__
#else
#define FORMULA static inline __attribute__((always_inline))
#endif

/* e^r for |r| <= ln(2) / 2, by a polynomial of degree 6. */
FORMULA float formula_exp_small(float r)
{
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p;
}

/* e^x with a relative error of about 1e-7 for x in [-87, 88]; 0 for smaller x. x is reduced by a
 * multiple of ln 2, subtracted in two parts so that no bits are lost; adding 1.5 * 2^23 rounds to
 * the nearest integer. Then the polynomial of degree 6. */
FORMULA float formula_exp(float x)
{
    float limited = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float t = limited * 1.44269504088896341f + 12582912.0f;
    float n = t - 12582912.0f;
    float r = limited - n * 0.693359375f;
    r = r + n * 2.12194440e-4f;
    float p = formula_exp_small(r);
    union {
        float f;
        uint32_t u;
    } two;
    two.f = t;
    two.u = (two.u + 127) << 23; /* the low bits of t are n, because of 1.5 * 2^23 */
    return x < -87.0f ? 0.0f : p * two.f;
}

/* tanh(x) with a relative error of about 2e-7: an odd polynomial near 0 (Cephes, tanhf), where 1 -
 * 2 / (e^2x + 1) would lose its leading bits. */
FORMULA float formula_tanh(float x)
{
    float positive = x < 0.0f ? -x : x, z = x * x;
    float p = -5.70498872745e-3f;
    p = p * z + 2.06390887954e-2f;
    p = p * z - 5.37397155531e-2f;
    p = p * z + 1.33314422036e-1f;
    p = p * z - 3.33332819422e-1f;
    p = p * z * x + x;
    float far = 1.0f - 2.0f / (formula_exp(2.0f * positive) + 1.0f);
    return positive < 0.625f ? p : x < 0.0f ? -far : far;
}

/* x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))), the approximation of GELU, and its derivative.
 * With z = 2 sqrt(2 / pi) (x + 0.044715 x^3) this is x sigmoid(z), which keeps the leading bits of
 * small results and needs no tanh. The derivative is s + x s (1 - s) dz/dx, s = sigmoid(z). */
FORMULA float formula_gelu(float *derivative, float x)
{
    float z = 1.59576912f * (x + 0.044715f * x * x * x);
    float e = formula_exp(-z), s = 1.0f / (1.0f + e);
    float dz = 1.59576912f * (1.0f + 0.134145f * x * x);
    *derivative = s + x * s * (e * s) * dz; /* 1 - s would lose bits where s is near 1 */
    return x * s;
}

/* float32 of the float16 with the bits h: the same value as f32_from_f16(), but without branches,
 * so that loops over it become vector code: the exponent is shifted into place, the value is
 * multiplied by 2^112, and infinities and NaNs are restored. */
FORMULA float formula_half(uint32_t h)
{
    uint32_t magnitude = (h & 0x7fffu) << 13;
    union {
        uint32_t u;
        float f;
    } v, scale;
    v.u = magnitude;
    scale.u = 0x77800000u; /* 2^112 */
    v.f *= scale.f;
    if (magnitude >= 0x0f800000u) v.u = magnitude | 0x7f800000u;
    v.u |= (h & 0x8000u) << 16;
    return v.f;
}

/* The row of the file that has row `row` of W (rows, k) in the order of Hugging Face. Files written
 * for interleaved rotation keep the two values of a rotated pair side by side. With head dimension
 * d = rows / heads and row t of head h,
 *
 *   half = t / (d / 2),  j = t % (d / 2),  row in the file = h d + 2 j + half
 *
 * heads 0: the rows are not permuted. */
FORMULA uint32_t formula_file_row(uint32_t row, uint32_t rows, uint32_t heads)
{
    if (heads == 0) return row;
    uint32_t d = rows / heads, t = row % d;
    return row - t + 2 * (t % (d / 2)) + t / (d / 2);
}

/* Dropout on the input of A. Each value has a 32-bit random number from its place and the key of
 * the mask (the finalizer of splitmix64), so the backward pass needs no stored mask. Each module
 * has its own mask, as in PEFT, and so has each use, by its first token in the batch; odd factors
 * spread these small numbers over all bits. */
struct formula_mask {
    uint64_t key, threshold;
    float keep; /* factor of the values that are kept: 1 / (1 - probability) */
};
FORMULA struct formula_mask formula_mask_of(float probability, uint64_t key, uint32_t place,
                                            size_t first)
{
    struct formula_mask m;
    m.key = (key ^ (((uint64_t)place + 1) * 0xd1342543de82ef95u)) + first * 0x632be59bd9b4e019u;
    m.threshold = (uint64_t)((double)probability * 4294967296.0);
    m.keep = 1.0f / (1.0f - probability);
    return m;
}
/* x behind the mask; `at`: its number among the values of the use, row by row. */
FORMULA float formula_masked(struct formula_mask m, float x, size_t at)
{
    uint64_t z = m.key + (at + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return (z >> 32) < m.threshold ? 0.0f : x * m.keep;
}

#endif
