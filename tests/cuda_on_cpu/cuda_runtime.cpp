/* Devices, memory, injected faults and counters of the runtime. */
#include "cuda_state.h"

#include <cstdio>
#include <cstdlib>
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

using namespace shim;

shim::state shim::all;
thread_local cudaError_t shim::last;
thread_local int shim::device_now;
thread_local shim_graph *shim::capturing;

static void configure_fault(const char *text)
{
    static const char *const name[] = {"malloc", "copy", "launch", "kernel", "capture", "graph"};
    for (unsigned i = 0; i < SHIM_FAULTS; i++) {
        const char *found = strstr(text, name[i]);
        if (found && found[strlen(name[i])] == ':')
            all.fault_left[i] = strtoull(found + strlen(name[i]) + 1, nullptr, 10);
    }
}
static void print_counts()
{
    fprintf(stderr, "shim: %llu launches, %llu products, %llu memsets, %llu copies\n",
            (unsigned long long)all.counts.launches, (unsigned long long)all.counts.products,
            (unsigned long long)all.counts.memsets, (unsigned long long)all.counts.copies);
    for (const auto &one : all.launched)
        fprintf(stderr, "shim: %6llu %s\n", (unsigned long long)one.second, one.first.c_str());
}
static bool configure()
{
    const char *v;
    if ((v = getenv("SHIM_SCHEDULE"))) shim_schedule_number((unsigned)strtoul(v, nullptr, 10));
    if ((v = getenv("SHIM_VERIFY"))) all.verify = *v == '1';
    if ((v = getenv("SHIM_FAULT"))) configure_fault(v);
    if ((v = getenv("SHIM_COUNTS")) && *v == '1') atexit(print_counts);
    if ((v = getenv("SHIM_DEVICES"))) all.device_count = (int)strtol(v, nullptr, 10);
    if ((v = getenv("SHIM_PRODUCTS"))) shim_products((unsigned)strtoul(v, nullptr, 10));
    if ((v = getenv("SHIM_MEMORY")))
        for (device &d : all.devices)
            d.total = strtoull(v, nullptr, 10);
    return true;
}
static const bool configured __attribute__((unused)) = configure(); /* before main() */

bool shim::fault(enum shim_fault kind)
{
    return all.fault_left[kind] && --all.fault_left[kind] == 0;
}
cudaError_t shim::done(cudaError_t e)
{
    if (e != cudaSuccess) last = e;
    return e;
}

shim::call::call(bool not_in_capture) : held(all.lock), refused(cudaSuccess)
{
    if (all.device_count <= 0)
        refused = all.device_count ? cudaErrorInsufficientDriver : cudaErrorNoDevice;
    else if (all.broken != cudaSuccess)
        refused = all.broken;
    else if (not_in_capture && capturing) {
        capturing->invalid = true;
        refused = cudaErrorStreamCaptureUnsupported;
    }
    if (refused != cudaSuccess) last = refused;
}

size_t shim::room_of(size_t bytes)
{
    return (bytes + 255) / 256 * 256 + BEYOND;
}

/* Of one map: the allocation that holds p, or end(). */
static allocations::iterator holder(allocations *map, const void *p)
{
    char *c = static_cast<char *>(const_cast<void *>(p));
    auto after = map->upper_bound(c);
    if (after == map->begin()) return map->end();
    auto found = std::prev(after);
    return c < found->first + found->second.bytes ? found : map->end();
}
static bool on_device(const void *p)
{
    return inside(p, 0);
}
bool shim::inside(const void *p, size_t bytes, allocation **found)
{
    for (device &d : all.devices) {
        auto b = holder(&d.blocks, p);
        if (b == d.blocks.end()) continue;
        if (found) *found = &b->second;
        return bytes <= b->second.bytes - (size_t)(static_cast<const char *>(p) - b->first);
    }
    return false;
}

void shim::memory_open(device *d)
{
#ifdef SHIM_ASAN
    for (auto &b : d->blocks)
        __asan_unpoison_memory_region(b.first, b.second.bytes);
#endif
    (void)d;
}
void shim::memory_close(device *d)
{
#ifdef SHIM_ASAN
    for (auto &b : d->blocks)
        __asan_poison_memory_region(b.first, b.second.bytes);
#endif
    (void)d;
}

/* ---- Controls. */
void shim_schedule_number(unsigned k)
{
    shim_schedule_set({k < 2 ? (enum shim_order)k : SHIM_SHUFFLED, k, (k & 1) != 0});
}
void shim_verify(bool on)
{
    all.verify = on;
}
void shim_fault_at(enum shim_fault kind, uint64_t n)
{
    guard held(all.lock);
    all.fault_left[kind] = n;
}
void shim_fault_clear(void)
{
    guard held(all.lock);
    memset(all.fault_left, 0, sizeof all.fault_left);
    all.broken = last = cudaSuccess;
}
void shim_memory_set(int number, size_t bytes)
{
    guard held(all.lock);
    all.devices[number].total = bytes;
}
void shim_devices_set(int count)
{
    guard held(all.lock);
    all.device_count = count;
}
size_t shim_memory_used(int number)
{
    guard held(all.lock);
    return all.devices[number].used;
}
size_t shim_memory_peak(int number)
{
    guard held(all.lock);
    size_t peak = all.devices[number].peak;
    all.devices[number].peak = all.devices[number].used;
    return peak;
}
void shim_counts_get(struct shim_counts *out)
{
    guard held(all.lock);
    *out = all.counts;
    shim_statistics(&out->threads, &out->switches, false);
}
void shim_counts_reset(void)
{
    guard held(all.lock);
    all.counts = {};
    all.launched.clear();
    uint64_t unused;
    shim_statistics(&unused, &unused, true);
}

static allocation *must_be_inside(const char *what, const void *p, size_t bytes)
{
    allocation *found;
    guard held(all.lock);
    if (!inside(p, bytes, &found))
        shim_fail("%s: %zu bytes at %p are not in one allocation of a device", what, bytes, p);
    return found;
}
void shim_device_range(const char *what, const void *p, size_t bytes)
{
    must_be_inside(what, p, bytes);
}
void shim_workspace(void *p, size_t bytes)
{
    must_be_inside("workspace", p, bytes)->workspace = true;
}
/* ---- Errors. */
static const struct {
    cudaError_t e;
    const char *name, *text;
} error_names[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {cudaErrorInsufficientDriver, "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {cudaErrorNoDevice, "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorIllegalAddress, "cudaErrorIllegalAddress",
     "an illegal memory access was encountered"},
    {cudaErrorLaunchOutOfResources, "cudaErrorLaunchOutOfResources",
     "too many resources requested for launch"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported",
     "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
};
const char *cudaGetErrorName(cudaError_t e)
{
    for (auto &n : error_names)
        if (n.e == e) return n.name;
    return "unrecognized error code";
}
const char *cudaGetErrorString(cudaError_t e)
{
    for (auto &n : error_names)
        if (n.e == e) return n.text;
    return "unrecognized error code";
}
cudaError_t cudaGetLastError()
{
    cudaError_t e = last;
    last = all.broken;
    return e;
}
cudaError_t cudaPeekAtLastError()
{
    return last;
}

/* ---- Devices. */
cudaError_t cudaGetDeviceCount(int *count)
{
    *count = 0;
    CALL();
    *count = all.device_count < DEVICES ? all.device_count : (int)DEVICES;
    return cudaSuccess;
}
static bool is_device(int number)
{
    return number >= 0 && number < all.device_count && number < DEVICES;
}
cudaError_t cudaSetDevice(int number)
{
    CALL();
    if (!is_device(number)) return done(cudaErrorInvalidDevice);
    device_now = number;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *number)
{
    CALL();
    *number = device_now;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp *out, int number)
{
    CALL();
    if (!is_device(number)) return done(cudaErrorInvalidDevice);
    *out = {};
    snprintf(out->name, sizeof out->name, "CPU shim");
    out->totalGlobalMem = all.devices[number].total;
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = 227 << 10;
    out->major = 9;
    out->multiProcessorCount = 1; /* the backend tries products large enough for all of them */
    out->warpSize = 32;
    out->maxThreadsPerBlock = 1024;
    out->l2CacheSize = 32 << 20;
    out->maxGridSize[0] = 0x7fffffff;
    out->maxGridSize[1] = out->maxGridSize[2] = 0xffff;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *out, cudaDeviceAttr what, int number)
{
    cudaDeviceProp p;
    cudaError_t e = cudaGetDeviceProperties(&p, number);
    if (e != cudaSuccess) return e;
    switch (what) {
    case cudaDevAttrMultiProcessorCount:
        *out = p.multiProcessorCount;
        break;
    case cudaDevAttrComputeCapabilityMajor:
        *out = p.major;
        break;
    case cudaDevAttrComputeCapabilityMinor:
        *out = p.minor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
        *out = (int)p.sharedMemPerBlockOptin;
        break;
    }
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize()
{
    CALL(true);
    return wait_all(device_now);
}
cudaError_t cudaDeviceCanAccessPeer(int *can, int a, int b)
{
    CALL();
    *can = is_device(a) && is_device(b) && a != b;
    return cudaSuccess;
}
cudaError_t cudaDeviceEnablePeerAccess(int peer, unsigned)
{
    CALL();
    return done(is_device(peer) && peer != device_now ? cudaSuccess : cudaErrorInvalidDevice);
}
cudaError_t cudaDriverGetVersion(int *version)
{
    *version = all.device_count < 0 ? 11000 : 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = 13000;
    return cudaSuccess;
}

/* ---- Memory. */
cudaError_t cudaMalloc(void **out, size_t bytes)
{
    CALL(true);
    device *d = &all.devices[device_now];
    size_t room = room_of(bytes);
    all.counts.allocations++;
    if (fault(SHIM_FAULT_MALLOC) || room < bytes ||
        room - BEYOND > d->total - std::min(d->used, d->total))
        return done(cudaErrorMemoryAllocation);
    char *p = bytes ? static_cast<char *>(aligned_alloc(256, room)) : nullptr;
    if (bytes && !p) return done(cudaErrorMemoryAllocation);
    if (p) {
        memset(p, 0xff, room);
#ifdef SHIM_ASAN
        __asan_poison_memory_region(p, room);
#endif
        d->blocks[p] = {bytes, false};
        d->used += room - BEYOND;
        d->peak = std::max(d->peak, d->used);
    }
    *out = p;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p)
{
    CALL_GIVING_BACK(true);
    if (!p) return call_.refused;
    all.counts.allocations++;
    for (int i = 0; i < DEVICES; i++) {
        auto found = all.devices[i].blocks.find(static_cast<char *>(p));
        if (found == all.devices[i].blocks.end()) continue;
        wait_all(i);
        size_t room = room_of(found->second.bytes);
#ifdef SHIM_ASAN
        __asan_unpoison_memory_region(p, room);
#endif
        all.devices[i].used -= room - BEYOND;
        all.devices[i].blocks.erase(found);
        free(p);
        return call_.refused;
    }
    return done(cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    CALL();
    device *d = &all.devices[device_now];
    *total = d->total;
    *available = d->total - std::min(d->used, d->total);
    return cudaSuccess;
}
cudaError_t cudaHostAlloc(void **out, size_t bytes, unsigned)
{
    CALL(true);
    void *p = aligned_alloc(256, (bytes + 255) / 256 * 256);
    if (!p) return done(cudaErrorMemoryAllocation);
    memset(p, 0xff, bytes);
    all.pinned[static_cast<char *>(p)] = {bytes, false};
    *out = p;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    cudaError_t e = p ? cudaHostUnregister(p) : cudaSuccess;
    if (e == cudaSuccess || e == all.broken) free(p);
    return e;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    CALL(true);
    all.pinned[static_cast<char *>(p)] = {bytes, false};
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    CALL_GIVING_BACK(true);
    wait_all(device_now);
    return done(all.pinned.erase(static_cast<char *>(p)) ? call_.refused : cudaErrorInvalidValue);
}

/* One side of a copy: inside device memory, or host memory, which a capture wants all.pinned. */
static cudaError_t check_side(const void *p, size_t bytes, bool device_side, shim_stream *s)
{
    if (device_side) return inside(p, bytes) ? cudaSuccess : cudaErrorInvalidValue;
    if (on_device(p)) return cudaErrorInvalidValue;
    if (!s->capture || holder(&all.pinned, p) != all.pinned.end()) return cudaSuccess;
    s->capture->invalid = true;
    return cudaErrorStreamCaptureUnsupported;
}
cudaError_t cudaMemcpy2DAsync(void *to, size_t to_pitch, const void *from, size_t from_pitch,
                              size_t width, size_t height, cudaMemcpyKind kind, cudaStream_t s)
{
    CALL();
    if (width == 0 || height == 0) return cudaSuccess;
    if (width > to_pitch || width > from_pitch) return done(cudaErrorInvalidValue);
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (kind == cudaMemcpyDefault) {
        to_device = on_device(to);
        from_device = on_device(from);
    }
    cudaError_t e = check_side(to, (height - 1) * to_pitch + width, to_device, s);
    if (e == cudaSuccess) e = check_side(from, (height - 1) * from_pitch + width, from_device, s);
    if (e != cudaSuccess) return done(e);
    return shim_enqueue(s, "copy", SHIM_COPY, [=] {
        for (size_t i = 0; i < height; i++)
            memcpy(static_cast<char *>(to) + i * to_pitch,
                   static_cast<const char *>(from) + i * from_pitch, width);
    });
}
cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, cudaMemcpyKind kind,
                            cudaStream_t s)
{
    return cudaMemcpy2DAsync(to, n, from, n, n, 1, kind, s);
}
cudaError_t cudaMemcpyPeerAsync(void *to, int to_device, const void *from, int from_device,
                                size_t n, cudaStream_t s)
{
    CALL();
    if (!is_device(to_device) || !is_device(from_device)) return done(cudaErrorInvalidDevice);
    if (!inside(to, n) || !inside(from, n)) return done(cudaErrorInvalidValue);
    return shim_enqueue(s, "peer copy", SHIM_COPY, [=] {
        memory_open(&all.devices[to_device]);
        memory_open(&all.devices[from_device]);
        memcpy(to, from, n);
        for (int i : {to_device, from_device})
            if (i != s->device) memory_close(&all.devices[i]);
    });
}
cudaError_t cudaMemset2DAsync(void *p, size_t pitch, int value, size_t width, size_t height,
                              cudaStream_t s)
{
    CALL();
    if (width == 0 || height == 0) return cudaSuccess;
    if (width > pitch || !inside(p, (height - 1) * pitch + width))
        return done(cudaErrorInvalidValue);
    return shim_enqueue(s, "memset", SHIM_MEMSET, [=] {
        for (size_t i = 0; i < height; i++)
            memset(static_cast<char *>(p) + i * pitch, value, width);
    });
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t s)
{
    return cudaMemset2DAsync(p, n, value, n, 1, s);
}
/* The synchronous forms wait for all streams of the device. */
static cudaError_t on_own_stream(const std::function<cudaError_t(cudaStream_t)> &queue)
{
    CALL(true);
    cudaError_t e = wait_all(device_now);
    cudaStream_t s;
    if (e == cudaSuccess) e = cudaStreamCreate(&s);
    if (e != cudaSuccess) return e;
    e = queue(s);
    if (e == cudaSuccess) e = wait(s);
    cudaStreamDestroy(s);
    return e;
}
cudaError_t cudaMemcpy(void *to, const void *from, size_t n, cudaMemcpyKind kind)
{
    return on_own_stream([=](cudaStream_t s) { return cudaMemcpyAsync(to, from, n, kind, s); });
}
cudaError_t cudaMemset(void *p, int value, size_t n)
{
    return on_own_stream([=](cudaStream_t s) { return cudaMemsetAsync(p, value, n, s); });
}
