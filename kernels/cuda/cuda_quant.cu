/* Weights in the formats of model files, converted to float32 or bfloat16 on the device. The same
 * bits as quant_to_f32() of kernels/quant.c, which explains the formats, because each product and
 * sum is rounded to float32 in the same order. A thread converts eight values of a row. */
#include "kernels/cuda/cuda_vector.cuh"

struct quant_args {
    struct rows8 to;
    const uint8_t *data;
    size_t stride, bytes256; /* bytes of a row, and of 256 values */
    enum dtype type;
    bool aligned;      /* rows of float32, float16 or bfloat16 start at multiples of 16 bytes */
    bool narrow;       /* round to bfloat16 first, as a packed weight has its values */
    const int32_t *id; /* the rows to convert, or NULL: row, row + 1, ... */
    uint32_t row;
    size_t rows, k;
    /* Ids outside of [first, first + part_rows) belong to other parts of the weight. */
    uint32_t first, part_rows, rope_heads;
};

/* Blocks of all formats but MXFP4 start at even addresses, so two bytes is the widest load that
 * these allow. */
static __device__ __forceinline__ uint32_t load2(const uint8_t *p)
{
    return *reinterpret_cast<const uint16_t *>(p);
}
static __device__ __forceinline__ uint32_t load4(const uint8_t *p)
{
    return load2(p) | load2(p + 2) << 16;
}

/* Bits [shift, shift + 4) of byte i of eight bytes. */
static __device__ __forceinline__ int nibble(const uint32_t word[2], int i, int shift)
{
    return (int)(word[i / 4] >> (8 * (i % 4) + shift) & 15u);
}
static __device__ __forceinline__ void load_eight(uint32_t word[2], const uint8_t *p)
{
    word[0] = load4(p);
    word[1] = load4(p + 4);
}

/* Four bits as an index of sixteen values of a signed byte, the first eight of which are in `low`.
 * A table in memory would need a stack frame. */
struct values16 {
    uint64_t low, high;
};
static __device__ __forceinline__ float value_of(struct values16 t, int index)
{
    uint64_t half = index < 8 ? t.low : t.high;
    return (float)(int8_t)(half >> index % 8 * 8 & 255u);
}
static constexpr struct values16 IQ4_VALUES = {0xf6eaddcfbfad9881, 0x7159453526190d01};
static constexpr struct values16 MXFP4_VALUES = {0x0c08060403020100, 0xf4f8fafcfdfeff00};

/* Values [at, at + 8) of a block of 32; `at` is a multiple of 8. The upper half of the block is in
 * the upper nibbles of the same 16 bytes. */
static __device__ __forceinline__ void block_q4_0(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block));
    uint32_t q[2];
    load_eight(q, block + 2 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = (float)(nibble(q, i, at / 16 * 4) - 8) * d;
}
static __device__ __forceinline__ void block_q4_1(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block)), m = formula_half(load2(block + 2));
    uint32_t q[2];
    load_eight(q, block + 4 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = (float)nibble(q, i, at / 16 * 4) * d + m;
}
static __device__ __forceinline__ void block_q5_0(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block));
    uint32_t fifth = load4(block + 2) >> at, q[2];
    load_eight(q, block + 6 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int value = nibble(q, i, at / 16 * 4) | (int)((fifth >> i & 1u) << 4);
        v[i] = (float)(value - 16) * d;
    }
}
static __device__ __forceinline__ void block_q5_1(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block)), m = formula_half(load2(block + 2));
    uint32_t fifth = load4(block + 4) >> at, q[2];
    load_eight(q, block + 8 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int value = nibble(q, i, at / 16 * 4) | (int)((fifth >> i & 1u) << 4);
        v[i] = (float)value * d + m;
    }
}
static __device__ __forceinline__ void block_q8_0(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block));
    uint32_t q[2];
    load_eight(q, block + 2 + at);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = (float)(int8_t)(q[i / 4] >> 8 * (i % 4) & 255u) * d;
}

static __device__ __forceinline__ void block_iq4_nl(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block));
    uint32_t q[2];
    load_eight(q, block + 2 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = d * value_of(IQ4_VALUES, nibble(q, i, at / 16 * 4));
}
/* The scale is 2^(e - 128), whose smallest values are subnormal. */
static __device__ __forceinline__ void block_mxfp4(float v[8], const uint8_t *block, unsigned at)
{
    uint32_t e = block[0], bits = e < 2 ? 0x00200000u << e : (e - 1) << 23;
    float d = __uint_as_float(bits);
#pragma unroll
    for (unsigned i = 0; i < 8; i++)
        v[i] = d * value_of(MXFP4_VALUES, block[1 + at % 16 + i] >> at / 16 * 4 & 15);
}

/* Values [at, at + 8) of a block of 256. */
static __device__ __forceinline__ void block_q2_k(float v[8], const uint8_t *block, unsigned at)
{
    unsigned scale = block[at / 16], shift = at % 128 / 32 * 2;
    float d = formula_half(load2(block + 80)) * (float)(scale & 15u);
    float less = formula_half(load2(block + 82)) * (float)(scale >> 4);
    uint32_t q[2];
    load_eight(q, block + 16 + at / 128 * 32 + at % 32);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = d * (float)(nibble(q, i, (int)shift) & 3) - less;
}
static __device__ __forceinline__ void block_q3_k(float v[8], const uint8_t *block, unsigned at)
{
    const uint8_t *s = block + 96;
    unsigned j = at / 16, part = at / 32; /* j: number of the scale */
    int low = j < 8 ? s[j] & 15 : s[j - 8] >> 4;
    int scale = (low | (s[8 + j % 4] >> 2 * (j / 4) & 3) << 4) - 32;
    float d = formula_half(load2(block + 108)) * (float)scale;
    uint32_t q[2], third[2];
    load_eight(q, block + 32 + part / 4 * 32 + at % 32);
    load_eight(third, block + at % 32);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int pair = nibble(q, i, (int)(2 * (part % 4))) & 3;
        v[i] = d * (float)(pair - (nibble(third, i, (int)part) & 1 ? 0 : 4));
    }
}
/* d times scale number j of eight, and dmin times the minimum, of Q4_K and Q5_K. */
static __device__ __forceinline__ float scale_min(float *less, const uint8_t *block, unsigned j)
{
    float d = formula_half(load2(block)), dmin = formula_half(load2(block + 2));
    const uint8_t *s = block + 4;
    uint32_t scale, min;
    if (j < 4) {
        scale = s[j] & 63u;
        min = s[j + 4] & 63u;
    } else {
        scale = (s[j + 4] & 15u) | (uint32_t)(s[j - 4] >> 6) << 4;
        min = (uint32_t)(s[j + 4] >> 4) | (uint32_t)(s[j] >> 6) << 4;
    }
    *less = dmin * (float)min;
    return d * (float)scale;
}
static __device__ __forceinline__ void block_q4_k(float v[8], const uint8_t *block, unsigned at)
{
    unsigned j = at / 32;
    float less, d = scale_min(&less, block, j);
    uint32_t q[2];
    load_eight(q, block + 16 + j / 2 * 32 + at % 32);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = d * (float)nibble(q, i, j % 2 * 4) - less;
}
static __device__ __forceinline__ void block_q5_k(float v[8], const uint8_t *block, unsigned at)
{
    unsigned j = at / 32;
    float less, d = scale_min(&less, block, j);
    uint32_t q[2], fifth[2];
    load_eight(q, block + 48 + j / 2 * 32 + at % 32);
    load_eight(fifth, block + 16 + at % 32);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int value = nibble(q, i, j % 2 * 4) | (nibble(fifth, i, (int)j) & 1) << 4;
        v[i] = d * (float)value - less;
    }
}
static __device__ __forceinline__ void block_iq4_xs(float v[8], const uint8_t *block, unsigned at)
{
    unsigned part = at / 32;
    int low = block[4 + part / 2] >> 4 * (part % 2) & 15;
    int scale = (low | (int)(load2(block + 2) >> 2 * part & 3u) << 4) - 32;
    float d = formula_half(load2(block)) * (float)scale;
    uint32_t q[2];
    load_eight(q, block + 8 + part * 16 + at % 16);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = d * value_of(IQ4_VALUES, nibble(q, i, at % 32 / 16 * 4));
}
static __device__ __forceinline__ void block_q6_k(float v[8], const uint8_t *block, unsigned at)
{
    unsigned half = at / 128, quarter = at % 128 / 32, j = at % 32;
    uint32_t low[2], high[2];
    load_eight(low, block + half * 64 + quarter % 2 * 32 + j);
    load_eight(high, block + 128 + half * 32 + j);
    int8_t scale = (int8_t)block[192 + half * 8 + quarter * 2 + j / 16];
    float d = formula_half(load2(block + 208)) * (float)scale;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int value = nibble(low, i, quarter / 2 * 4) | (nibble(high, i, quarter * 2) & 3) << 4;
        v[i] = d * (float)(value - 32);
    }
}

/* A float32 in the file may start at an even address only. */
static __device__ __forceinline__ void plain(float v[8], const struct quant_args &a, size_t row,
                                             size_t col, size_t have)
{
    const uint8_t *from = a.data + row * a.stride;
    if (a.aligned && a.type != DTYPE_F16) {
        struct rows8 m = {const_cast<uint8_t *>(from), 0, a.type == DTYPE_F32, true};
        load8(v, m, 0, col, have);
        return;
    }
#pragma unroll
    for (size_t i = 0; i < 8; i++) {
        v[i] = 0.0f;
        if (i >= have) continue;
        if (a.type == DTYPE_F32) v[i] = __uint_as_float(load4(from + (col + i) * 4));
        if (a.type == DTYPE_F16) v[i] = formula_half(load2(from + (col + i) * 2));
        if (a.type == DTYPE_BF16) v[i] = __uint_as_float(load2(from + (col + i) * 2) << 16);
    }
}

static __global__ void __launch_bounds__(GROUP_THREADS) quant_kernel(struct quant_args a)
{
    size_t i, col;
    if (!group_place(&i, &col, a.rows, a.k)) return;
    uint32_t row = a.id ? (uint32_t)a.id[i] - a.first : a.row + (uint32_t)i;
    if (row >= a.part_rows) return;
    size_t at = formula_file_row(row, a.part_rows, a.rope_heads);
    const uint8_t *from = a.data + at * a.stride;
    float v[8];
    switch (a.type) {
#define BLOCKS(type, name, values)                                                                 \
    case DTYPE_##type:                                                                             \
        block_##name(v, from + col / values * (a.bytes256 * values / 256),                         \
                     (unsigned)(col % values));                                                    \
        break;
        BLOCKS(Q4_0, q4_0, 32)
        BLOCKS(Q4_1, q4_1, 32)
        BLOCKS(Q5_0, q5_0, 32)
        BLOCKS(Q5_1, q5_1, 32)
        BLOCKS(Q8_0, q8_0, 32)
        BLOCKS(Q2_K, q2_k, 256)
        BLOCKS(Q3_K, q3_k, 256)
        BLOCKS(Q4_K, q4_k, 256)
        BLOCKS(Q5_K, q5_k, 256)
        BLOCKS(Q6_K, q6_k, 256)
        BLOCKS(IQ4_NL, iq4_nl, 32)
        BLOCKS(IQ4_XS, iq4_xs, 256)
        BLOCKS(MXFP4, mxfp4, 32)
#undef BLOCKS
    default:
        plain(v, a, at, col, a.k - col);
    }
    for (int n = 0; n < 8 && a.narrow; n++)
        v[n] = bf16_float(float_bf16(v[n]));
    store8(a.to, i, col, a.k - col, v);
}

static void quant_launch(struct backend_context *c, struct mat to, const void *device_bytes,
                         const struct weight_part *part, struct quant_args a)
{
    dim3 grid;
    if (!group_grid(&grid, c, a.rows, a.k)) return;
    REQUIRE(dtype_bytes(&a.bytes256, part->type, 256));
    REQUIRE(dtype_bytes(&a.stride, part->type, a.k) && (uintptr_t)device_bytes % 2 == 0);
    a.to = rows8_of(to, 8);
    a.data = static_cast<const uint8_t *>(device_bytes);
    a.type = part->type;
    a.aligned = ((uintptr_t)device_bytes | a.stride) % 16 == 0;
    a.part_rows = part->rows;
    a.rope_heads = part->rope_heads;
    launch(quant_kernel, grid, dim3(GROUP_THREADS), 0, c->stream, a);
    cuda_good(c, cudaGetLastError(), "dequantise");
}

void cuda_dequantise(struct backend_context *c, struct mat to, const void *device_bytes,
                     const struct weight_part *part, size_t k, size_t row, size_t rows)
{
    REQUIRE(row <= part->rows && rows <= part->rows - row);
    struct quant_args a = {};
    a.row = (uint32_t)row;
    a.rows = rows;
    a.k = k;
    quant_launch(c, to, device_bytes, part, a);
}

void cuda_dequantise_ids(struct backend_context *c, struct mat to, const struct backend_weight *w,
                         const int32_t *id, size_t rows)
{
    struct quant_args a = {};
    a.id = id;
    a.narrow = c->precision == DTYPE_BF16;
    a.rows = rows;
    a.k = w->k;
    for (size_t i = 0; i < w->parts; i++) {
        quant_launch(c, to, w->part[i].data, &w->part[i], a);
        a.first += w->part[i].rows;
    }
}
