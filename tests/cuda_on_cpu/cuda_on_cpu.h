/* CUDA's device language as host C++: every thread of a block is a fiber, blocks run one after the
 * other in the order of the schedule (shim.h).
 *
 * It finds these mistakes of a kernel, each of which has a planted example in plants.cu:
 *   - races between barriers and between blocks: -fsanitize=thread, because a fiber is a thread to
 *     it. Only barriers, __syncwarp() and the ends of a launch order memory; shuffles do not
 *   - races that change a result, in any build: schedules must agree bit for bit
 *   - barriers that some threads do not reach, or reach at another place; warp collectives that
 *     do not match, or have no full mask
 *   - accesses out of bounds, also of shared memory: -fsanitize=address,undefined
 *   - reads of memory that nothing has written: shared and device memory start as NaNs
 *   - cp.async copies that are read before the wait, or land on data that is still read
 *   - limits: 1,024 threads, 48 KiB static and 227 KiB shared memory a block, grid sizes
 * A mistake ends the process with one line that names kernel, block and thread. */
#ifndef TESTS_CUDA_ON_CPU_CUDA_ON_CPU_H
#define TESTS_CUDA_ON_CPU_CUDA_ON_CPU_H

#include "cuda_runtime.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
/* clang-format off */
#define SHIM_VECTORS(name, T)                                                                      \
    struct alignas(2 * sizeof(T)) name##2 { T x, y; };                                             \
    struct name##3 { T x, y, z; };                                                                 \
    struct alignas(4 * sizeof(T) < 16 ? 4 * sizeof(T) : 16) name##4 { T x, y, z, w; };             \
    static inline name##2 make_##name##2(T x, T y) { return {x, y}; }                              \
    static inline name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }                      \
    static inline name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
SHIM_VECTORS(char, signed char)
SHIM_VECTORS(uchar, unsigned char)
SHIM_VECTORS(short, short)
SHIM_VECTORS(ushort, unsigned short)
SHIM_VECTORS(int, int)
SHIM_VECTORS(uint, unsigned)
SHIM_VECTORS(longlong, long long)
SHIM_VECTORS(ulonglong, unsigned long long)
SHIM_VECTORS(float, float)
SHIM_VECTORS(double, double)
/* clang-format on */

extern dim3 threadIdx, blockIdx, blockDim, gridDim; /* of the fiber that runs */
enum { warpSize = 32 };

/* ---- Functions of the scheduler (cuda_on_cpu.cpp, compiled without instrumentation). A `site` is
 * an address that stands for one place in the source. */
#define SHIM_SITE                                                                                  \
    ({                                                                                             \
        static const char shim_site_ = 0;                                                          \
        (const void *)&shim_site_;                                                                 \
    })
/* Returns how many threads of the block gave true. */
unsigned shim_syncthreads(bool value, const void *site);
void shim_syncwarp(unsigned mask, const void *site);
/* Every lane gives one word and sees those of all lanes (32) until its next collective. */
const uint64_t *shim_exchange(uint64_t mine, unsigned mask, const void *site);
void *shim_shared(const void *site, size_t bytes);
void *shim_dynamic_shared();
void shim_mma(float c[4], const unsigned a[4], const unsigned b[2], const void *site);
bool shim_cp_async(void *to, const void *from, bool valid); /* true: copy now */
void shim_cp_async_commit();
/* The copies that a wait ends; from[i] is NULL for zeros. */
size_t shim_cp_async_due(size_t keep, void ***to, const void ***from);
void shim_run_grid(const char *name, dim3 grid, dim3 block, size_t dynamic,
                   const std::function<void()> &thread);
[[noreturn]] void shim_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* ---- The runtime's side of a launch (cuda_runtime.cpp). */
enum shim_kind { SHIM_KERNEL, SHIM_PRODUCT, SHIM_COPY, SHIM_MEMSET, SHIM_HOST };
/* Queues `work`, unless the stream or an injected fault forbids it. */
cudaError_t shim_enqueue(cudaStream_t s, const char *name, enum shim_kind kind,
                         std::function<void()> work);
/* Fails unless [p, p + bytes) lies in one allocation of a device. */
void shim_device_range(const char *what, const void *p, size_t bytes);
void shim_workspace(void *p, size_t bytes); /* the same, and kernels do not use it */

#define __syncthreads() ((void)shim_syncthreads(false, SHIM_SITE))
#define __syncthreads_count(p) ((int)shim_syncthreads((p) != 0, SHIM_SITE))
#define __syncthreads_or(p) ((int)(shim_syncthreads((p) != 0, SHIM_SITE) > 0))
#define __syncthreads_and(p) ((int)(shim_syncthreads((p) == 0, SHIM_SITE) == 0))
#define __syncwarp(...) shim_syncwarp(0xffffffffu __VA_OPT__(&(__VA_ARGS__)), SHIM_SITE)

#define SHARED(T, name, n)                                                                         \
    static char name##_site;                                                                       \
    T(&name)[n] = *reinterpret_cast<T(*)[n]>(shim_shared(&name##_site, sizeof(T) * (n)))
#define DYNAMIC_SHARED(T, name) T *name = static_cast<T *>(shim_dynamic_shared())

template <class T> inline T shim_shuffle(unsigned mask, T v, int lane, const void *site)
{
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    uint64_t word = 0;
    memcpy(&word, &v, sizeof v);
    const uint64_t *all = shim_exchange(word, mask, site);
    if (lane >= 0 && lane < 32) memcpy(&v, &all[lane], sizeof v);
    return v;
}
#define SHIM_LANE ((int)(threadIdx.x & 31))
#define __shfl_sync(mask, v, l) shim_shuffle(mask, v, (int)(l)&31, SHIM_SITE)
#define __shfl_xor_sync(mask, v, d) shim_shuffle(mask, v, SHIM_LANE ^ (int)(d), SHIM_SITE)
#define __shfl_down_sync(mask, v, d) shim_shuffle(mask, v, SHIM_LANE + (int)(d), SHIM_SITE)
#define __shfl_up_sync(mask, v, d) shim_shuffle(mask, v, SHIM_LANE - (int)(d), SHIM_SITE)
static inline unsigned shim_ballot(unsigned mask, bool p, const void *site)
{
    const uint64_t *all = shim_exchange(p, mask, site);
    unsigned bits = 0;
    for (unsigned i = 0; i < 32; i++)
        bits |= (unsigned)all[i] << i;
    return bits;
}
#define __ballot_sync(mask, p) shim_ballot(mask, (p) != 0, SHIM_SITE)
#define __any_sync(mask, p) ((int)(shim_ballot(mask, (p) != 0, SHIM_SITE) != 0))
#define __all_sync(mask, p) ((int)(shim_ballot(mask, (p) == 0, SHIM_SITE) == 0))

/* ---- Functions of the device language. */
using std::max;
using std::min;
static inline float __uint_as_float(unsigned u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline unsigned __float_as_uint(float f)
{
    unsigned u;
    memcpy(&u, &f, 4);
    return u;
}
/* clang-format off */
static inline float __int_as_float(int i) { return __uint_as_float((unsigned)i); }
static inline int __float_as_int(float f) { return (int)__float_as_uint(f); }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); } /* the GPU's has other bits */
static inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
static inline float __fadd_rn(float a, float b) { return a + b; }
static inline float __fmul_rn(float a, float b) { return a * b; }
static inline float __fdiv_rn(float a, float b) { return a / b; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __double2float_rn(double x) { return (float)x; }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __umulhi(unsigned a, unsigned b) { return (uint64_t)a * b >> 32; }
static inline uint64_t __umul64hi(uint64_t a, uint64_t b)
{
    return (uint64_t)((unsigned __int128)a * b >> 64);
}
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
/* clang-format on */
static inline void __threadfence() {}
/* Integers only, because a sum of floats would depend on the order. */
template <class T> static inline T atomicAdd(T *p, T v)
{
    static_assert(std::is_integral<T>::value, "no atomics on floats");
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicOr(T *p, T v)
{
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}

/* ---- Twins of the PTX functions of cuda_common.cuh. */
static inline float exp2f_fast(float x)
{
    float y = exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
static inline float reciprocal_fast(float x)
{
    return 1.0f / x;
}
static inline void ldmatrix_x4(unsigned r[4], const void *row, bool transposed = false)
{
    unsigned lane = threadIdx.x & 31;
    if (reinterpret_cast<uintptr_t>(row) & 15) shim_fail("ldmatrix: address %p: not 16 n", row);
    const uint64_t *all = shim_exchange(reinterpret_cast<uintptr_t>(row), 0xffffffffu, SHIM_SITE);
    for (unsigned i = 0; i < 4; i++) {
        unsigned half[2];
        for (unsigned k = 0; k < 2; k++) {
            unsigned across = lane >> 2, along = 2 * (lane & 3) + k;
            const void *from =
                reinterpret_cast<const void *>(all[8 * i + (transposed ? along : across)]);
            half[k] = static_cast<const uint16_t *>(from)[transposed ? across : along];
        }
        r[i] = half[0] | half[1] << 16;
    }
}
static inline void mma_16816(float c[4], const unsigned a[4], const unsigned b[2])
{
    shim_mma(c, a, b, SHIM_SITE);
}
static inline void shim_copy_16(void *to, const void *from)
{
    uint4 v = {0, 0, 0, 0};
    if (from) v = *static_cast<const uint4 *>(from);
    *static_cast<uint4 *>(to) = v;
}
static inline void cp_async_16(void *to, const void *from, bool valid)
{
    if (shim_cp_async(to, from, valid)) shim_copy_16(to, valid ? from : nullptr);
}
static inline void cp_async_commit()
{
    shim_cp_async_commit();
}
/* The copies are made here, so that sanitizers see them as accesses of this thread. */
template <int keep> static inline void cp_async_wait()
{
    void **to;
    const void **from;
    size_t n = shim_cp_async_due(keep, &to, &from);
    for (size_t i = 0; i < n; i++)
        shim_copy_16(to[i], from[i]);
}
static inline unsigned pack_bf16(float low, float high)
{
    unsigned half[2] = {__float_as_uint(low), __float_as_uint(high)};
    for (unsigned &u : half)
        u = (u & 0x7fffffff) > 0x7f800000 ? 0x7fff : (u + 0x7fff + (u >> 16 & 1)) >> 16;
    return half[0] | half[1] << 16;
}

template <class... P, class... A>
void shim_launch(const char *name, void (*kernel)(P...), dim3 grid, dim3 block, size_t shared,
                 cudaStream_t s, A... a)
{
    std::tuple<P...> args(a...);
    shim_enqueue(s, name, SHIM_KERNEL, [=] {
        shim_run_grid(name, grid, block, shared, [&] { std::apply(kernel, args); });
    });
}
#define launch(kernel, ...) shim_launch(#kernel, kernel, __VA_ARGS__)
#endif
