/* Shared by the tests of the shim: memory, copies and values. A failed call fails the test. */
#ifndef TESTS_CUDA_ON_CPU_SHIM_TEST_H
#define TESTS_CUDA_ON_CPU_SHIM_TEST_H

#include "kernels/cuda/cuda_common.cuh"
#include "shim.h"

extern "C" {
#include "base/dtype.h"
}
#include <criterion/criterion.h>
#include <vector>

static inline void good(cudaError_t e)
{
    cr_assert(e == cudaSuccess, "%s", cudaGetErrorName(e));
}
template <class T> static T *device_take(size_t n)
{
    T *p;
    good(cudaMalloc(&p, n * sizeof(T)));
    return p;
}
static inline cudaStream_t stream_open()
{
    cudaStream_t s;
    good(cudaStreamCreate(&s));
    return s;
}
template <class T> static T *device_copy(const std::vector<T> &v, cudaStream_t s)
{
    T *p = device_take<T>(v.size());
    good(cudaMemcpyAsync(p, v.data(), v.size() * sizeof(T), cudaMemcpyHostToDevice, s));
    good(cudaStreamSynchronize(s));
    return p;
}
template <class T> static std::vector<T> host_copy(const T *p, size_t n, cudaStream_t s)
{
    std::vector<T> v(n);
    good(cudaMemcpyAsync(v.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost, s));
    good(cudaStreamSynchronize(s));
    return v;
}
/* Values in [-1, 1), the same ones at each call. */
static inline float value(size_t i)
{
    return (float)(i * 2654435761u % 65536) / 32768.0f - 1.0f;
}
#endif
