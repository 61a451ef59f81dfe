/* The shim itself: that it computes what a GPU computes, and refuses what a GPU refuses. */
#include "shim_test.h"

enum { N = 300, THREADS = 96 };

/* y[block] = sum of x, in an order that is the same under all schedules */
__global__ void __launch_bounds__(THREADS) add_up(float *y, const float *x, int n)
{
    DYNAMIC_SHARED(float, part);
    float sum = 0;
    for (int i = threadIdx.x; i < n; i += THREADS)
        sum += x[i];
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    if (threadIdx.x == 0) y[blockIdx.x] = part[0] + part[1] + part[2];
}
__global__ void twice(float *x)
{
    x[threadIdx.x] *= 2;
}

Test(shim, a_right_kernel_gives_equal_bits_under_all_schedules)
{
    std::vector<float> x(N), first;
    for (size_t i = 0; i < N; i++)
        x[i] = value(i);
    cudaStream_t s = stream_open();
    float *in = device_copy(x, s), *out = device_take<float>(7);
    for (unsigned k = 0; k < 2 * SHIM_SCHEDULES; k++) {
        shim_schedule_number(k);
        launch(add_up, dim3(7), dim3(THREADS), 3 * sizeof(float), s, out, in, (int)N);
        std::vector<float> y = host_copy(out, 7, s);
        if (k == 0) first = y;
        cr_expect(!memcmp(y.data(), first.data(), 7 * sizeof(float)), "schedule %u", k);
        cr_expect(y[0] == y[6]);
    }
    shim_verify(true);
    launch(add_up, dim3(7), dim3(THREADS), 3 * sizeof(float), s, out, in, (int)N);
    cr_expect(host_copy(out, 1, s)[0] == first[0]);
    shim_verify(false);
    cudaFree(in);
    cudaFree(out);
    cudaStreamDestroy(s);
}

/* Every function of a warp or a block that the shim has; one bit of `wrong` for each mistake. */
__global__ void collectives(unsigned *wrong)
{
    unsigned lane = threadIdx.x % 32, bad = 0;
    bad |= (__shfl_sync(0xffffffffu, lane, 5) != 5) << 0;
    bad |= (__shfl_down_sync(0xffffffffu, lane, 3) != (lane < 29 ? lane + 3 : lane)) << 1;
    bad |= (__shfl_up_sync(0xffffffffu, lane, 3) != (lane >= 3 ? lane - 3 : lane)) << 2;
    bad |= (__shfl_xor_sync(0xffffffffu, (double)lane, 1) != (double)(lane ^ 1)) << 3;
    bad |= (__ballot_sync(0xffffffffu, lane & 1) != 0xaaaaaaaau) << 4;
    bad |= (__any_sync(0xffffffffu, lane == 9) != 1 || __any_sync(0xffffffffu, 0) != 0) << 5;
    bad |= (__all_sync(0xffffffffu, lane < 32) != 1 || __all_sync(0xffffffffu, lane) != 0) << 6;
    bad |= (__syncthreads_count(threadIdx.x < 40) != 40) << 7;
    bad |= (__syncthreads_or(threadIdx.x == 63) != 1 || __syncthreads_or(0) != 0) << 8;
    bad |= (__syncthreads_and(1) != 1 || __syncthreads_and(threadIdx.x) != 0) << 9;
    bad |= (warp_sum((double)lane) != 496 || warp_max((float)lane) != 31) << 10;
    __syncwarp();
    atomicOr(wrong, bad);
    atomicAdd(wrong + 1, 1u);
}
Test(shim, collectives_do_what_cuda_says)
{
    cudaStream_t s = stream_open();
    unsigned *wrong = device_take<unsigned>(2);
    good(cudaMemsetAsync(wrong, 0, 8, s));
    launch(collectives, dim3(3), dim3(64), 0, s, wrong);
    std::vector<unsigned> got = host_copy(wrong, 2, s);
    cr_expect(got[0] == 0, "bits %x", got[0]);
    cr_expect(got[1] == 3 * 64);
    cudaFree(wrong);
    cudaStreamDestroy(s);
}

/* c (16, 8) = a (16, 16) b^T (8, 16): fragments through shared memory, as in attention. */
__global__ void tensor_core(float *c, const bf16 *a, const bf16 *b)
{
    SHARED(uint4, tile, 48); /* rows of 16 values, two uint4 each: a, then b */
    unsigned lane = threadIdx.x, fa[4], fb[4];
    for (unsigned i = lane; i < 48; i += 32)
        cp_async_16(&tile[i], (i < 32 ? a : b - 256) + 8 * i, true);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    ldmatrix_x4(fa, &tile[lane % 16 * 2 + lane / 16]);
    ldmatrix_x4(fb, &tile[32 + lane % 8 * 2 + lane / 8 % 2]);
    float sum[4] = {};
    mma_16816(sum, fa, fb);
    for (unsigned i = 0; i < 4; i++)
        c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}
Test(shim, tensor_cores_multiply_as_the_ptx_manual_says)
{
    std::vector<bf16> a(256), b(128);
    for (size_t i = 0; i < 256; i++)
        a[i] = bf16_from_f32(value(i));
    for (size_t i = 0; i < 128; i++)
        b[i] = bf16_from_f32(value(i + 1000));
    cudaStream_t s = stream_open();
    bf16 *da = device_copy(a, s), *db = device_copy(b, s);
    float *dc = device_take<float>(128);
    for (unsigned k = 0; k < SHIM_SCHEDULES; k++) {
        shim_schedule_number(k);
        launch(tensor_core, dim3(1), dim3(32), 0, s, dc, da, db);
        std::vector<float> c = host_copy(dc, 128, s);
        for (size_t i = 0; i < 128; i++) {
            double want = 0;
            for (size_t p = 0; p < 16; p++)
                want += (double)f32_from_bf16(a[i / 8 * 16 + p]) * f32_from_bf16(b[i % 8 * 16 + p]);
            cr_assert_float_eq(c[i], want, 1e-5, "value %zu", i);
        }
    }
    cudaFree(da);
    cudaFree(db);
    cudaFree(dc);
    cudaStreamDestroy(s);
}

Test(shim, bf16_is_rounded_as_on_the_cpu)
{
    for (uint64_t i = 0; i < 0x100000000; i += 40503) {
        float f = __uint_as_float((unsigned)i);
        if (f == f) cr_assert(float_bf16(f) == bf16_from_f32(f), "%a", f);
    }
    cr_expect(bf16_float(float_bf16(NAN)) != bf16_float(float_bf16(NAN)));
    unsigned pair = pack_bf16(1.5f, -2.0f);
    cr_expect(low_half(pair) == 1.5f && high_half(pair) == -2.0f);
    cr_expect(exp2f_fast(-130.0f) == 0 && exp2f_fast(3.0f) == 8);
}

Test(shim, work_is_done_when_the_host_waits)
{
    std::vector<float> x(THREADS, 1.0f), y(THREADS, 7.0f);
    cudaStream_t s = stream_open();
    float *p = device_copy(x, s), *fresh = device_take<float>(1);
    launch(twice, dim3(1), dim3(THREADS), 0, s, p);
    good(cudaMemcpyAsync(y.data(), p, THREADS * 4, cudaMemcpyDeviceToHost, s));
    cr_expect(y[0] == 7.0f);
    cr_expect(cudaStreamQuery(s) == cudaErrorNotReady);
    good(cudaStreamSynchronize(s));
    cr_expect(y[0] == 2.0f && cudaStreamQuery(s) == cudaSuccess);
    float nan = host_copy(fresh, 1, s)[0];
    cr_expect(nan != nan, "device memory starts as a NaN");
    cudaFree(p);
    cudaFree(fresh);
    cudaStreamDestroy(s);
}

Test(shim, streams_run_apart_unless_an_event_orders_them)
{
    std::vector<float> x(THREADS, 1.0f), y(1);
    cudaStream_t a = stream_open(), b = stream_open();
    cudaEvent_t begin, end;
    good(cudaEventCreate(&begin));
    good(cudaEventCreateWithFlags(&end, cudaEventDefault));
    float *p = device_copy(x, a), ms = -1;
    good(cudaEventRecord(begin, a));
    launch(twice, dim3(1), dim3(THREADS), 0, a, p);
    good(cudaEventRecord(end, a));
    cr_expect(host_copy(p, 1, b)[0] == 1.0f);
    cr_expect(cudaEventElapsedTime(&ms, begin, end) == cudaErrorNotReady);
    good(cudaStreamWaitEvent(b, end, 0));
    cr_expect(host_copy(p, 1, b)[0] == 2.0f);
    good(cudaEventSynchronize(end));
    good(cudaEventElapsedTime(&ms, begin, end));
    cr_expect(ms >= 0);
    cudaEventDestroy(begin);
    cudaEventDestroy(end);
    cudaFree(p);
    cudaStreamDestroy(a);
    cudaStreamDestroy(b);
}

Test(shim, a_graph_runs_again_with_new_input)
{
    std::vector<float> x(THREADS, 1.0f);
    float *pinned;
    cudaStream_t s = stream_open();
    cudaGraph_t graph;
    cudaGraphExec_t exec;
    size_t nodes = 0;
    float *p = device_copy(x, s);
    good(cudaMallocHost(&pinned, THREADS * 4));
    good(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    launch(twice, dim3(1), dim3(THREADS), 0, s, p);
    good(cudaMemcpyAsync(pinned, p, THREADS * 4, cudaMemcpyDeviceToHost, s));
    good(cudaStreamEndCapture(s, &graph));
    good(cudaGraphGetNodes(graph, nullptr, &nodes));
    cr_expect(nodes == 2);
    good(cudaGraphInstantiate(&exec, graph));
    good(cudaGraphDestroy(graph));
    cr_expect(host_copy(p, 1, s)[0] == 1.0f, "a capture runs nothing");
    for (unsigned i = 1; i < 4; i++) {
        good(cudaGraphLaunch(exec, s));
        good(cudaStreamSynchronize(s));
        cr_expect(pinned[THREADS - 1] == (float)(1 << i));
    }
    good(cudaGraphExecDestroy(exec));
    good(cudaFreeHost(pinned));
    cudaFree(p);
    cudaStreamDestroy(s);
}

static void refused_in_capture(cudaStream_t s, cudaError_t (*call)(cudaStream_t, float *),
                               const char *name)
{
    cudaGraph_t graph;
    float *p = device_take<float>(4);
    good(cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal));
    cr_expect(call(s, p) == cudaErrorStreamCaptureUnsupported, "%s", name);
    cr_expect(cudaStreamEndCapture(s, &graph) == cudaErrorStreamCaptureInvalidated, "%s", name);
    cr_expect(!graph);
    cudaGetLastError();
    cudaFree(p);
}
Test(shim, a_capture_refuses_what_waits_or_allocates)
{
    static float pageable[4];
    cudaStream_t s = stream_open();
    refused_in_capture(
        s, [](cudaStream_t c, float *) { return cudaStreamSynchronize(c); }, "synchronize");
    refused_in_capture(
        s, [](cudaStream_t, float *) { return cudaDeviceSynchronize(); }, "device synchronize");
    refused_in_capture(
        s,
        [](cudaStream_t, float *) {
            void *p;
            return cudaMalloc(&p, 1);
        },
        "malloc");
    refused_in_capture(
        s, [](cudaStream_t, float *p) { return cudaFree(p); }, "free");
    refused_in_capture(
        s,
        [](cudaStream_t c, float *p) {
            return cudaMemcpyAsync(p, pageable, 16, cudaMemcpyHostToDevice, c);
        },
        "a copy of pageable memory");
    cudaStreamDestroy(s);
}

Test(shim, the_nth_call_fails_when_asked)
{
    static float host[THREADS];
    float *p = device_take<float>(THREADS), *q;
    cudaStream_t s = stream_open();
    shim_fault_at(SHIM_FAULT_MALLOC, 2);
    good(cudaMalloc(&q, 4));
    cudaFree(q);
    cr_expect(cudaMalloc(&q, 4) == cudaErrorMemoryAllocation);
    cr_expect(cudaGetLastError() == cudaErrorMemoryAllocation);
    cr_expect(cudaGetLastError() == cudaSuccess);
    shim_fault_at(SHIM_FAULT_COPY, 1);
    cr_expect(cudaMemcpyAsync(p, host, 4, cudaMemcpyHostToDevice, s) == cudaErrorInvalidValue);
    cudaGetLastError();
    shim_fault_at(SHIM_FAULT_LAUNCH, 3);
    for (unsigned i = 1; i < 5; i++) {
        launch(twice, dim3(1), dim3(THREADS), 0, s, p);
        cr_expect(cudaGetLastError() == (i == 3 ? cudaErrorLaunchOutOfResources : cudaSuccess));
    }
    good(cudaStreamSynchronize(s));
    shim_fault_at(SHIM_FAULT_KERNEL, 1);
    launch(twice, dim3(1), dim3(THREADS), 0, s, p);
    good(cudaGetLastError());
    cr_expect(cudaStreamSynchronize(s) == cudaErrorIllegalAddress);
    cr_expect(cudaMalloc(&q, 4) == cudaErrorIllegalAddress, "a fault stays");
    shim_fault_clear();
    good(cudaFree(p));
    cudaStreamDestroy(s);
}

Test(shim, memory_has_the_size_that_is_set)
{
    size_t available, total;
    void *p, *q;
    cr_assert(shim_memory_used(0) == 0 && shim_memory_used(1) == 0);
    shim_memory_set(1, 1 << 20);
    good(cudaSetDevice(1));
    good(cudaMalloc(&p, 600 << 10));
    cr_expect(cudaMalloc(&q, 600 << 10) == cudaErrorMemoryAllocation);
    good(cudaMemGetInfo(&available, &total));
    cr_expect(total == 1 << 20 && available == 424 << 10);
    good(cudaSetDevice(0));
    good(cudaMalloc(&q, 600 << 10));
    cr_expect(shim_memory_used(0) > 0);
    good(cudaFree(p));
    good(cudaFree(q));
    cr_expect(shim_memory_used(0) == 0 && shim_memory_used(1) == 0);
    cr_expect(cudaFree(&total) == cudaErrorInvalidValue);
}

Test(shim, there_are_as_many_devices_as_set)
{
    int count = -1, can = 0;
    cudaDeviceProp prop;
    good(cudaGetDeviceCount(&count));
    cr_expect(count == 2);
    good(cudaGetDeviceProperties(&prop, 1));
    cr_expect(prop.major == 9 && prop.sharedMemPerBlockOptin == 227 << 10);
    cr_expect(cudaSetDevice(2) == cudaErrorInvalidDevice);
    good(cudaDeviceCanAccessPeer(&can, 0, 1));
    cr_expect(can == 1);
    shim_devices_set(0);
    cr_expect(cudaGetDeviceCount(&count) == cudaErrorNoDevice && count == 0);
    shim_devices_set(-1);
    cr_expect(cudaGetDeviceCount(&count) == cudaErrorInsufficientDriver);
    shim_devices_set(2);
}

Test(shim, copies_check_their_addresses)
{
    static float host[8];
    cudaStream_t s = stream_open();
    float *p = device_take<float>(8);
    cr_expect(cudaMemcpyAsync(p + 1, host, 32, cudaMemcpyHostToDevice, s) == cudaErrorInvalidValue);
    cr_expect(cudaMemcpyAsync(p, p, 32, cudaMemcpyDeviceToHost, s) == cudaErrorInvalidValue);
    cr_expect(cudaMemcpyAsync(host, p, 32, cudaMemcpyHostToDevice, s) == cudaErrorInvalidValue);
    cr_expect(cudaMemsetAsync(p + 8, 0, 1, s) == cudaErrorInvalidValue);
    cr_expect(cudaMemcpy2DAsync(p, 16, host, 8, 8, 3, cudaMemcpyHostToDevice, s) ==
              cudaErrorInvalidValue);
    for (size_t i = 0; i < 8; i++)
        host[i] = (float)i;
    good(cudaMemcpy2DAsync(p, 16, host, 8, 8, 2, cudaMemcpyHostToDevice, s));
    cr_expect(host_copy(p, 6, s)[5] == 3.0f);
    good(cudaMemset(p, 0, 32));
    good(cudaMemcpy(host, p, 32, cudaMemcpyDeviceToHost));
    cr_expect(host[7] == 0);
    cudaFree(p);
    cudaStreamDestroy(s);
}

Test(shim, devices_copy_to_each_other)
{
    std::vector<float> x(4, 3.0f);
    cudaStream_t s = stream_open();
    float *p = device_copy(x, s), *q;
    good(cudaSetDevice(1));
    good(cudaMalloc(&q, 16));
    cudaStream_t t = stream_open();
    good(cudaMemcpyPeerAsync(q, 1, p, 0, 16, t));
    cr_expect(host_copy(q, 4, t)[3] == 3.0f);
    launch(twice, dim3(1), dim3(4), 0, s, p);
    cr_expect(cudaGetLastError() == cudaErrorInvalidResourceHandle, "a stream of device 0");
    cudaFree(p);
    cudaFree(q);
    cudaStreamDestroy(s);
    cudaStreamDestroy(t);
    good(cudaSetDevice(0));
}

Test(shim, counts_what_the_host_asks_for)
{
    struct shim_counts c;
    cudaStream_t s = stream_open();
    float *p = device_take<float>(THREADS);
    shim_counts_reset();
    good(cudaMemsetAsync(p, 0, THREADS * 4, s));
    launch(twice, dim3(1), dim3(THREADS), 0, s, p);
    launch(twice, dim3(1), dim3(THREADS), 0, s, p);
    shim_counts_get(&c);
    cr_expect(c.launches == 2 && c.kernels == 0 && c.memsets == 1 && c.waits == 0);
    host_copy(p, 1, s);
    shim_counts_get(&c);
    cr_expect(c.launches == 2 && c.kernels == 2 && c.copies == 1 && c.waits == 1);
    cr_expect(c.threads == 2 * THREADS && c.allocations == 0);
    cr_expect(shim_launches_of("twi") == 2 && shim_launches_of("thrice") == 0);
    cudaFree(p);
    cudaStreamDestroy(s);
}
