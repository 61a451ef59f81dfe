/* For kernels that work on rows: views of float32 or bfloat16 tensors that are read and written
 * eight values at a time, and the sum over a block. */
#ifndef KERNELS_CUDA_CUDA_VECTOR_CUH
#define KERNELS_CUDA_CUDA_VECTOR_CUH

#include "kernels/cuda/cuda.h"

/* A tensor whose rows are read in groups of eight values. Type and alignment are the same for all
 * threads of a launch, so branching on them costs almost nothing, and each kernel exists once. */
struct rows8 {
    void *data; /* NULL: there is no such tensor */
    size_t ld;
    bool is_f32, wide; /* wide: groups start at multiples of 16 bytes */
};

/* `step`: groups start at columns that are a sum of multiples of 8 and of `step`. */
static __host__ __device__ inline struct rows8 rows8_of(struct mat m, size_t step)
{
    size_t size = cuda_size(m.type);
    size_t odd = (uintptr_t)m.data | m.ld * size | step * size;
    return {m.data, m.ld, m.type == DTYPE_F32, odd % 16 == 0};
}
static inline struct rows8 rows8_vector(const float *x) /* one row of float32 */
{
    return rows8_of({const_cast<float *>(x), DTYPE_F32, 0}, 0);
}

/* One value of a tensor, which is a struct mat or a struct rows8. */
static __device__ __forceinline__ bool is_f32(const struct mat &m)
{
    return m.type == DTYPE_F32;
}
static __device__ __forceinline__ bool is_f32(const struct rows8 &m)
{
    return m.is_f32;
}
template <class M> static __device__ __forceinline__ float load1(const M &m, size_t row, size_t col)
{
    size_t at = row * m.ld + col;
    return is_f32(m) ? static_cast<const float *>(m.data)[at]
                     : bf16_float(static_cast<const bf16 *>(m.data)[at]);
}
template <class M>
static __device__ __forceinline__ void store1(const M &m, size_t row, size_t col, float v)
{
    size_t at = row * m.ld + col;
    if (is_f32(m))
        static_cast<float *>(m.data)[at] = v;
    else
        static_cast<bf16 *>(m.data)[at] = float_bf16(v);
}

/* Reads the min(have, 8) values of a row from column `col` on; the others are 0. */
static __device__ __forceinline__ void load8(float v[8], const struct rows8 &m, size_t row,
                                             size_t col, size_t have)
{
    if (m.is_f32) {
        const float *from = static_cast<const float *>(m.data) + row * m.ld + col;
        if (m.wide && have >= 8) {
            float4 a = reinterpret_cast<const float4 *>(from)[0];
            float4 b = reinterpret_cast<const float4 *>(from)[1];
            v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
            v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
            return;
        }
#pragma unroll
        for (size_t i = 0; i < 8; i++)
            v[i] = i < have ? from[i] : 0.0f;
        return;
    }
    const bf16 *from = static_cast<const bf16 *>(m.data) + row * m.ld + col;
    if (m.wide && have >= 8) {
        uint4 a = *reinterpret_cast<const uint4 *>(from);
        v[0] = low_half(a.x), v[1] = high_half(a.x), v[2] = low_half(a.y), v[3] = high_half(a.y);
        v[4] = low_half(a.z), v[5] = high_half(a.z), v[6] = low_half(a.w), v[7] = high_half(a.w);
        return;
    }
#pragma unroll
    for (size_t i = 0; i < 8; i++)
        v[i] = i < have ? bf16_float(from[i]) : 0.0f;
}

/* Writes the first min(have, 8) values. */
static __device__ __forceinline__ void store8(const struct rows8 &m, size_t row, size_t col,
                                              size_t have, const float v[8])
{
    if (m.is_f32) {
        float *to = static_cast<float *>(m.data) + row * m.ld + col;
        if (m.wide && have >= 8) {
            reinterpret_cast<float4 *>(to)[0] = {v[0], v[1], v[2], v[3]};
            reinterpret_cast<float4 *>(to)[1] = {v[4], v[5], v[6], v[7]};
            return;
        }
#pragma unroll
        for (size_t i = 0; i < 8; i++)
            if (i < have) to[i] = v[i];
        return;
    }
    bf16 *to = static_cast<bf16 *>(m.data) + row * m.ld + col;
    if (m.wide && have >= 8) {
        *reinterpret_cast<uint4 *>(to) = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]),
                                          pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7])};
        return;
    }
#pragma unroll
    for (size_t i = 0; i < 8; i++)
        if (i < have) to[i] = float_bf16(v[i]);
}

/* Like store8(), of four values; `col` is a multiple of 4 where store8() expects one of 8. */
static __device__ __forceinline__ void store4(const struct rows8 &m, size_t row, size_t col,
                                              size_t have, const float v[4])
{
    if (m.wide && have >= 4) {
        size_t at = row * m.ld + col;
        if (m.is_f32)
            *reinterpret_cast<float4 *>(static_cast<float *>(m.data) + at) = {v[0], v[1], v[2],
                                                                              v[3]};
        else
            *reinterpret_cast<uint2 *>(static_cast<bf16 *>(m.data) + at) = {pack_bf16(v[0], v[1]),
                                                                            pack_bf16(v[2], v[3])};
        return;
    }
#pragma unroll
    for (size_t i = 0; i < 4; i++)
        if (i < have) store1(m, row, col + i, v[i]);
}

/* The sum over THREADS threads: a warp, or a whole block. All threads get the same bits. */
template <int THREADS, class T> static __device__ __forceinline__ T threads_sum(T v)
{
    v = warp_sum(v);
    if (THREADS == 32) return v;
    SHARED(T, part, THREADS / 32);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
#pragma unroll
    for (int i = 0; i < THREADS / 32; i++)
        v += part[i];
    __syncthreads(); /* the next call writes there */
    return v;
}

/* The place of a thread among (rows, groups of eight columns), one group a thread. */
enum { GROUP_THREADS = 256 };
static __device__ __forceinline__ bool group_place(size_t *row, size_t *col, size_t rows,
                                                   size_t cols)
{
    unsigned across = (unsigned)((cols + 7) / 8), i = blockIdx.x * GROUP_THREADS + threadIdx.x;
    *row = i / across;
    *col = (size_t)(i % across) * 8;
    return *row < rows;
}
/* The grid for group_place(). A launch needs at least one block, so nothing is launched for no
 * values. */
static inline bool group_grid(dim3 *grid, struct backend_context *c, size_t rows, size_t cols)
{
    size_t groups = rows * ((cols + 7) / 8);
    if (groups > UINT32_MAX - GROUP_THREADS)
        cuda_fail(c, err_make(ERR_LIMIT, "cuda: %zu x %zu values in one operation", rows, cols));
    *grid = dim3((unsigned)((groups + GROUP_THREADS - 1) / GROUP_THREADS));
    return groups > 0 && groups <= UINT32_MAX - GROUP_THREADS;
}
#endif
