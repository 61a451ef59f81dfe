/* Weights in the formats of model files, converted to float32 or bfloat16 on the device. The same
 * bits as quant_to_f32() of kernels/quant.c, which explains the formats, because each product and
 * sum is rounded to float32 in the same order. A thread converts eight values of a row. */
#include "kernels/cuda/cuda_vector.cuh"

struct quant_args {
    struct rows8 to;
    const uint8_t *data;
    size_t stride; /* bytes of a row */
    enum dtype type;
    bool aligned;      /* rows of float32, float16 or bfloat16 start at multiples of 16 bytes */
    bool narrow;       /* round to bfloat16 first, as a packed weight has its values */
    const int32_t *id; /* the rows to convert, or NULL: row, row + 1, ... */
    uint32_t row;
    size_t rows, k;
    /* Ids outside of [first, first + part_rows) belong to other parts of the weight. */
    uint32_t first, part_rows, rope_heads;
};

/* Blocks start at even addresses, so two bytes is the widest load that all formats allow. */
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
static __device__ __forceinline__ void block_q8_0(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block));
    uint32_t q[2];
    load_eight(q, block + 2 + at);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = (float)(int8_t)(q[i / 4] >> 8 * (i % 4) & 255u) * d;
}

/* Values [at, at + 8) of a block of 256. */
static __device__ __forceinline__ void block_q4_k(float v[8], const uint8_t *block, unsigned at)
{
    float d = formula_half(load2(block)), dmin = formula_half(load2(block + 2));
    const uint8_t *s = block + 4;
    unsigned j = at / 32; /* number of the scale */
    uint32_t scale, min, q[2];
    if (j < 4) {
        scale = s[j] & 63u;
        min = s[j + 4] & 63u;
    } else {
        scale = (s[j + 4] & 15u) | (uint32_t)(s[j - 4] >> 6) << 4;
        min = (uint32_t)(s[j + 4] >> 4) | (uint32_t)(s[j] >> 6) << 4;
    }
    d = d * (float)scale;
    float less = dmin * (float)min;
    load_eight(q, block + 16 + j / 2 * 32 + at % 32);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = d * (float)nibble(q, i, j % 2 * 4) - less;
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
    unsigned in32 = col % 32, in256 = col % 256;
    float v[8];
    switch (a.type) {
    case DTYPE_Q4_0:
        block_q4_0(v, from + col / 32 * 18, in32);
        break;
    case DTYPE_Q4_1:
        block_q4_1(v, from + col / 32 * 20, in32);
        break;
    case DTYPE_Q5_0:
        block_q5_0(v, from + col / 32 * 22, in32);
        break;
    case DTYPE_Q8_0:
        block_q8_0(v, from + col / 32 * 34, in32);
        break;
    case DTYPE_Q4_K:
        block_q4_k(v, from + col / 256 * 144, in256);
        break;
    case DTYPE_Q6_K:
        block_q6_k(v, from + col / 256 * 210, in256);
        break;
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
