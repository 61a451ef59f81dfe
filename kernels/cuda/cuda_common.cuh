/* The parts of CUDA that differ between nvcc and the CPU build of the tests (tests/cuda_on_cpu):
 * PTX instructions, shared memory and launches. Kernels use these names alone, so that one source
 * compiles for both. Each PTX instruction is one function here, and has a twin in cuda_on_cpu.h
 * that computes the same values lane by lane.
 *
 *   launch(kernel, grid, block, shared, stream, args...)   shared: bytes of DYNAMIC_SHARED; errors
 *                                                          are reported by cudaGetLastError()
 *   SHARED(T, name, n)         an array T name[n] of the block, once in a function
 *   DYNAMIC_SHARED(T, name)    a pointer T *name to the dynamic shared memory, aligned to 128 bytes
 *   BUCKET                     `bucket` of struct backend; batches of tests are small and slow
 *
 * House rules that the CPU build checks: blocks of one dimension; all lanes of a warp take part in
 * a collective, with a full mask; all threads of a block reach the same __syncthreads(). */
#ifndef KERNELS_CUDA_CUDA_COMMON_CUH
#define KERNELS_CUDA_CUDA_COMMON_CUH

#include <cstddef>
#include <cstdint>

typedef uint16_t bf16; /* the upper half of a float32 */

#ifdef CUDA_ON_CPU
#include "cuda_on_cpu.h"

enum { BUCKET = 64 };
#else
#include <cuda_bf16.h>
#include <cuda_runtime.h>

enum { BUCKET = 256 };

#define SHARED(T, name, n) __shared__ T name[n]
#define DYNAMIC_SHARED(T, name)                                                                    \
    extern __shared__ __align__(128) unsigned char shared_bytes[];                                 \
    T *name = reinterpret_cast<T *>(shared_bytes)

static __device__ __forceinline__ unsigned shared_address(const void *p)
{
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Four 8x8 matrices of bf16; lane i gives the address of row i % 8 of matrix i / 8, a multiple of
 * 16 bytes. r[m] of lane i is the pair (row i / 4, columns 2 (i % 4) and the next) of matrix m, or
 * of its transpose. */
static __device__ __forceinline__ void ldmatrix_x4(unsigned r[4], const void *row,
                                                   bool transposed = false)
{
    if (transposed)
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
    else
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                     : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                     : "r"(shared_address(row))
                     : "memory");
}

/* c (16, 8) += a (16, 16) b (16, 8), bf16 with float32 sums; fragments as the PTX manual has them
 * for mma.m16n8k16. */
static __device__ __forceinline__ void mma_16816(float c[4], const unsigned a[4],
                                                 const unsigned b[2])
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* Copies 16 bytes to shared memory in the background; writes zeros if not `valid`. Both addresses
 * are multiples of 16 bytes. */
static __device__ __forceinline__ void cp_async_16(void *to, const void *from, bool valid)
{
    int bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)),
                 "l"(from), "r"(bytes)
                 : "memory");
}

/* Ends a group of copies. */
static __device__ __forceinline__ void cp_async_commit()
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}

/* Waits until at most the `keep` newest groups of this thread are under way. */
template <int keep> static __device__ __forceinline__ void cp_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(keep) : "memory");
}

/* 2^x; error below 2^-22, results below 2^-126 are zero. */
static __device__ __forceinline__ float exp2f_fast(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* 1 / x; error below one unit in the last place. */
static __device__ __forceinline__ float reciprocal_fast(float x)
{
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Rounds to nearest even; the first argument becomes the lower half. */
static __device__ __forceinline__ unsigned pack_bf16(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<unsigned *>(&v);
}

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, cudaStream_t s, A... a)
{
    enum { WITHOUT_CONSENT = 48 << 10 }; /* more dynamic shared memory has to be allowed first */
    if (shared > WITHOUT_CONSENT)
        (void)cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   (int)shared); /* a failure shows as a failed launch */
    kernel<<<grid, block, shared, s>>>(static_cast<P>(a)...);
}
#endif

/* a b + c where bits may differ between a GPU, which rounds once and is twice as fast so, and the
 * CPU build, which rounds twice: in attention, which is limited by arithmetic. */
static __device__ __forceinline__ float multiply_add(float a, float b, float c)
{
#ifdef CUDA_ON_CPU
    return a * b + c;
#else
    return __fmaf_rn(a, b, c);
#endif
}

static __device__ __forceinline__ float low_half(unsigned pair)
{
    return __uint_as_float(pair << 16);
}
static __device__ __forceinline__ float high_half(unsigned pair)
{
    return __uint_as_float(pair & 0xffff0000u);
}
static __device__ __forceinline__ float bf16_float(bf16 x)
{
    return __uint_as_float((unsigned)x << 16);
}

/* Rounds to nearest even; a NaN stays a NaN. */
static __device__ __forceinline__ bf16 float_bf16(float x)
{
    return (bf16)(pack_bf16(x, 0.0f) & 0xffffu);
}

/* Sum and maximum over the warp. All lanes get the same bits. */
static __device__ __forceinline__ float warp_sum(float v)
{
    for (int d = 16; d > 0; d >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
static __device__ __forceinline__ double warp_sum(double v)
{
    for (int d = 16; d > 0; d >>= 1)
        v += __shfl_xor_sync(0xffffffffu, v, d);
    return v;
}
static __device__ __forceinline__ float warp_max(float v)
{
    for (int d = 16; d > 0; d >>= 1)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, d));
    return v;
}
#endif
