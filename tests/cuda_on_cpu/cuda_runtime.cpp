/* The runtime: devices, memory, streams, events, graphs, injected faults and counters.
 * One lock covers everything, because kernels run on the thread that waits and share the globals of
 * the scheduler. */
#include "cuda_on_cpu.h"
#include "shim.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>
#ifdef SHIM_ASAN
#include <sanitizer/asan_interface.h>
#endif

struct shim_schedule shim_schedule_now();
void shim_statistics(uint64_t *threads, uint64_t *switched, bool reset);

namespace
{
enum { DEVICES = 2, BEYOND = 256 };
/* Bytes of an allocation with those behind its end, which are NaNs, and must stay so. */
size_t room_of(size_t bytes)
{
    return (bytes + 255) / 256 * 256 + BEYOND;
}
struct work {
    const char *name;
    enum shim_kind kind;
    std::function<void()> run;
};
} // namespace

struct shim_graph {
    std::vector<work> list;
    std::vector<shim_stream *> streams; /* that capture into it, the first began */
    bool invalid;
};
struct shim_graph_exec {
    std::vector<work> list;
};
struct shim_stream {
    int device;
    shim_graph *capture;
    std::deque<work> queue;
    uint64_t queued, done;
};
struct shim_event {
    shim_stream *stream;
    uint64_t at;       /* complete when the stream has done so much */
    shim_graph *graph; /* recorded in a capture */
    double seconds;
};

namespace
{
std::recursive_mutex lock;
struct device {
    size_t total = (size_t)8 << 30, used = 0;
    std::map<char *, size_t> blocks;
    std::set<shim_stream *> streams;
} devices[DEVICES];
std::map<char *, size_t> pinned;
struct shim_counts counts;
uint64_t fault_left[SHIM_FAULTS]; /* 0: none; 1: the next call fails */
bool verify, configured;
int device_count = DEVICES;
cudaError_t broken;            /* what a failed kernel leaves; every later call returns it */
thread_local cudaError_t last; /* of this thread */
thread_local int device_now;
thread_local shim_graph *capturing; /* begun by this thread */

void configure_fault(const char *text)
{
    static const char *const name[] = {"malloc", "copy", "launch", "kernel"};
    for (unsigned i = 0; i < SHIM_FAULTS; i++) {
        const char *found = strstr(text, name[i]);
        if (found && found[strlen(name[i])] == ':')
            fault_left[i] = strtoull(found + strlen(name[i]) + 1, nullptr, 10);
    }
}
void configure() /* from the environment, once */
{
    if (configured) return;
    configured = true;
    const char *v;
    if ((v = getenv("SHIM_SCHEDULE"))) shim_schedule_number((unsigned)strtoul(v, nullptr, 10));
    if ((v = getenv("SHIM_VERIFY"))) verify = *v == '1';
    if ((v = getenv("SHIM_FAULT"))) configure_fault(v);
    if ((v = getenv("SHIM_DEVICES"))) device_count = (int)strtol(v, nullptr, 10);
    if ((v = getenv("SHIM_PRODUCTS"))) shim_products((unsigned)strtoul(v, nullptr, 10));
    if ((v = getenv("SHIM_MEMORY")))
        for (device &d : devices)
            d.total = strtoull(v, nullptr, 10);
}
bool fault(enum shim_fault kind)
{
    return fault_left[kind] && --fault_left[kind] == 0;
}
cudaError_t done(cudaError_t e)
{
    if (e != cudaSuccess) last = e;
    return e;
}

/* Each call begins with one: it takes the lock, and `refused` says whether the call must fail. */
struct call {
    std::lock_guard<std::recursive_mutex> guard;
    cudaError_t refused;
    explicit call(bool forbidden_in_capture = false) : guard(lock), refused(cudaSuccess)
    {
        configure();
        if (device_count <= 0)
            refused = device_count ? cudaErrorInsufficientDriver : cudaErrorNoDevice;
        else if (broken != cudaSuccess)
            refused = broken;
        else if (forbidden_in_capture && capturing) {
            capturing->invalid = true;
            refused = cudaErrorStreamCaptureUnsupported;
        }
        if (refused != cudaSuccess) last = refused;
    }
};
#define CALL(...)                                                                                  \
    call call_{__VA_ARGS__};                                                                       \
    if (call_.refused != cudaSuccess) return call_.refused

/* Lets kernels, or with `on` only themselves, touch a device's memory. */
void shield(device *d, bool on)
{
#ifdef SHIM_ASAN
    for (auto &b : d->blocks)
        if (on)
            __asan_poison_memory_region(b.first, b.second);
        else
            __asan_unpoison_memory_region(b.first, b.second);
#endif
    (void)d, (void)on;
}

/* The allocation of the map that holds p, or end(). */
std::map<char *, size_t>::iterator holder(std::map<char *, size_t> *map, const void *p)
{
    char *c = static_cast<char *>(const_cast<void *>(p));
    auto after = map->upper_bound(c);
    if (after == map->begin()) return map->end();
    auto found = std::prev(after);
    return c < found->first + found->second ? found : map->end();
}
bool on_device(const void *p)
{
    for (device &d : devices)
        if (holder(&d.blocks, p) != d.blocks.end()) return true;
    return false;
}
bool inside(const void *p, size_t bytes)
{
    for (device &d : devices) {
        auto b = holder(&d.blocks, p);
        if (b != d.blocks.end())
            return bytes <= b->second - (size_t)(static_cast<const char *>(p) - b->first);
    }
    return false;
}

void check_beyond(const char *name, char *p, size_t bytes)
{
    size_t room = room_of(bytes);
#ifdef SHIM_ASAN
    __asan_unpoison_memory_region(p + bytes, room - bytes);
#endif
    for (size_t i = bytes; i < room; i++)
        if (p[i] != -1)
            shim_fail("%s wrote %zu bytes beyond an allocation of %zu", name, i - bytes, bytes);
#ifdef SHIM_ASAN
    __asan_poison_memory_region(p + bytes, room - bytes);
#endif
}

/* From the same device memory under all schedules; the bits left must be equal. */
void run_verified(device *d, work *w)
{
    std::vector<std::string> before, first;
    for (auto &b : d->blocks)
        before.emplace_back(b.first, b.second);
    struct shim_schedule chosen = shim_schedule_now();
    for (unsigned k = 0; k < SHIM_SCHEDULES; k++) {
        size_t i = 0;
        if (k)
            for (auto &b : d->blocks)
                memcpy(b.first, before[i++].data(), b.second);
        shim_schedule_number(k);
        w->run();
        i = 0;
        for (auto &b : d->blocks) {
            if (k == 0)
                first.emplace_back(b.first, b.second);
            else if (memcmp(b.first, first[i].data(), b.second)) {
                size_t at = 0;
                while (b.first[at] == first[i][at])
                    at++;
                fprintf(stderr,
                        "cuda_on_cpu: %s: schedule %u leaves other bits than schedule 0, "
                        "at byte %zu of an allocation of %zu bytes\n",
                        w->name, k, at, b.second);
                abort();
            }
            i++;
        }
    }
    shim_schedule_set(chosen);
}

void run_until(shim_stream *s, uint64_t end)
{
    device *d = &devices[s->device];
    shield(d, false);
    while (s->done < end) {
        work w = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        if (broken != cudaSuccess) continue; /* CUDA drops what follows a fault */
        if (w.kind == SHIM_KERNEL && fault(SHIM_FAULT_KERNEL)) {
            broken = last = cudaErrorIllegalAddress;
            continue;
        }
        counts.kernels += w.kind == SHIM_KERNEL;
        if (w.kind == SHIM_KERNEL && verify)
            run_verified(d, &w);
        else
            w.run();
        for (auto &b : d->blocks)
            check_beyond(w.name, b.first, b.second);
    }
    shield(d, true);
}
void push(shim_stream *s, work w)
{
    if (s->capture)
        s->capture->list.push_back(std::move(w));
    else {
        s->queue.push_back(std::move(w));
        s->queued++;
    }
}
cudaError_t wait(shim_stream *s)
{
    counts.waits++;
    run_until(s, s->queued);
    return done(broken);
}
cudaError_t wait_all(int number)
{
    for (shim_stream *s : devices[number].streams)
        run_until(s, s->queued);
    counts.waits++;
    return done(broken);
}
double seconds()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}
} // namespace

/* ---- Controls. */
void shim_schedule_number(unsigned k)
{
    shim_schedule_set({k < 2 ? (enum shim_order)k : SHIM_SHUFFLED, k, (k & 1) != 0});
}
void shim_verify(bool on)
{
    verify = on;
}
void shim_fault_at(enum shim_fault kind, uint64_t n)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    configure();
    fault_left[kind] = n;
}
void shim_fault_clear(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    memset(fault_left, 0, sizeof fault_left);
    broken = last = cudaSuccess;
}
void shim_memory_set(int number, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    configure();
    devices[number].total = bytes;
}
void shim_devices_set(int count)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    configure();
    device_count = count;
}
size_t shim_memory_used(int number)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    return devices[number].used;
}
void shim_counts_get(struct shim_counts *out)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    *out = counts;
    shim_statistics(&out->threads, &out->switches, false);
}
void shim_counts_reset(void)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    counts = {};
    uint64_t unused;
    shim_statistics(&unused, &unused, true);
}

/* ---- What launches, and the stub of cuBLASLt, call. */
cudaError_t shim_enqueue(cudaStream_t s, const char *name, enum shim_kind kind,
                         std::function<void()> w)
{
    CALL();
    if (!s) shim_fail("%s: no stream given; the default stream is not for us", name);
    if (s->device != device_now && kind == SHIM_KERNEL) return done(cudaErrorInvalidResourceHandle);
    counts.launches += kind == SHIM_KERNEL;
    counts.products += kind == SHIM_PRODUCT;
    counts.copies += kind == SHIM_COPY;
    counts.memsets += kind == SHIM_MEMSET;
    if (kind == SHIM_KERNEL && fault(SHIM_FAULT_LAUNCH)) return done(cudaErrorLaunchOutOfResources);
    if ((kind == SHIM_COPY || kind == SHIM_MEMSET) && fault(SHIM_FAULT_COPY))
        return done(cudaErrorInvalidValue);
    push(s, {name, kind, std::move(w)});
    return cudaSuccess;
}
void shim_device_range(const char *what, const void *p, size_t bytes)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (!inside(p, bytes))
        shim_fail("%s: %zu bytes at %p are not in one allocation of a device", what, bytes, p);
}
bool shim_capturing(cudaStream_t s)
{
    return s->capture != nullptr;
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
    last = broken;
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
    *count = device_count < DEVICES ? device_count : (int)DEVICES;
    return cudaSuccess;
}
static bool is_device(int number)
{
    return number >= 0 && number < device_count && number < DEVICES;
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
    out->totalGlobalMem = devices[number].total;
    out->sharedMemPerBlock = 48 << 10;
    out->sharedMemPerBlockOptin = 227 << 10;
    out->major = 9;
    out->multiProcessorCount = 4;
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
    configure();
    *version = device_count < 0 ? 11000 : 13000;
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
    device *d = &devices[device_now];
    size_t room = room_of(bytes);
    counts.allocations++;
    if (fault(SHIM_FAULT_MALLOC) || room < bytes || room > d->total - std::min(d->used, d->total))
        return done(cudaErrorMemoryAllocation);
    char *p = bytes ? static_cast<char *>(aligned_alloc(256, room)) : nullptr;
    if (bytes && !p) return done(cudaErrorMemoryAllocation);
    if (p) {
        memset(p, 0xff, room);
#ifdef SHIM_ASAN
        __asan_poison_memory_region(p, room);
#endif
        d->blocks[p] = bytes;
        d->used += room;
    }
    *out = p;
    return cudaSuccess;
}
cudaError_t cudaFree(void *p)
{
    CALL(true);
    counts.allocations++;
    if (!p) return cudaSuccess;
    for (int i = 0; i < DEVICES; i++) {
        auto found = devices[i].blocks.find(static_cast<char *>(p));
        if (found == devices[i].blocks.end()) continue;
        wait_all(i);
        size_t room = room_of(found->second);
#ifdef SHIM_ASAN
        __asan_unpoison_memory_region(p, room);
#endif
        devices[i].used -= room;
        devices[i].blocks.erase(found);
        free(p);
        return cudaSuccess;
    }
    return done(cudaErrorInvalidValue);
}
cudaError_t cudaMemGetInfo(size_t *available, size_t *total)
{
    CALL();
    device *d = &devices[device_now];
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
    pinned[static_cast<char *>(p)] = bytes;
    *out = p;
    return cudaSuccess;
}
cudaError_t cudaFreeHost(void *p)
{
    cudaError_t e = p ? cudaHostUnregister(p) : cudaSuccess;
    if (e == cudaSuccess) free(p);
    return e;
}
cudaError_t cudaHostRegister(void *p, size_t bytes, unsigned)
{
    CALL(true);
    pinned[static_cast<char *>(p)] = bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p)
{
    CALL(true);
    wait_all(device_now);
    return done(pinned.erase(static_cast<char *>(p)) ? cudaSuccess : cudaErrorInvalidValue);
}

/* One side of a copy: inside device memory, or host memory, which a capture wants pinned. */
static cudaError_t check_side(const void *p, size_t bytes, bool device_side, shim_stream *s)
{
    if (device_side) return inside(p, bytes) ? cudaSuccess : cudaErrorInvalidValue;
    if (on_device(p)) return cudaErrorInvalidValue;
    if (!s->capture || holder(&pinned, p) != pinned.end()) return cudaSuccess;
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
        shield(&devices[to_device], false);
        shield(&devices[from_device], false);
        memcpy(to, from, n);
        for (int i : {to_device, from_device})
            if (i != s->device) shield(&devices[i], true);
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

/* ---- Streams and events. */
cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    CALL();
    shim_stream *s = new shim_stream{};
    s->device = device_now;
    devices[device_now].streams.insert(s);
    *out = s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    return cudaStreamCreate(out);
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    std::lock_guard<std::recursive_mutex> guard(lock); /* also after a fault */
    if (!s) return cudaErrorInvalidResourceHandle;
    run_until(s, s->queued);
    devices[s->device].streams.erase(s);
    delete s;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t s)
{
    CALL();
    if (!s->capture) return wait(s);
    s->capture->invalid = true;
    return done(cudaErrorStreamCaptureUnsupported);
}
cudaError_t cudaStreamQuery(cudaStream_t s)
{
    CALL();
    if (s->done == s->queued) return cudaSuccess;
    run_until(s, s->done + 1);
    return broken != cudaSuccess ? done(broken) : cudaErrorNotReady;
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, void (*function)(void *), void *user)
{
    return shim_enqueue(s, "host function", SHIM_HOST, [=] { function(user); });
}
cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    CALL();
    *e = new shim_event{};
    return cudaSuccess;
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned)
{
    return cudaEventCreate(e);
}
cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    if (e && e->stream) run_until(e->stream, e->at);
    delete e;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t s)
{
    CALL();
    e->graph = s->capture;
    if (s->capture) return cudaSuccess; /* the list of a graph has one order */
    push(s, {"event", SHIM_HOST, [=] { e->seconds = seconds(); }});
    e->stream = s;
    e->at = s->queued;
    return cudaSuccess;
}
cudaError_t cudaStreamWaitEvent(cudaStream_t s, cudaEvent_t e, unsigned)
{
    CALL();
    if (e->graph && !s->capture) { /* the stream joins the capture */
        s->capture = e->graph;
        e->graph->streams.push_back(s);
    } else if (!e->graph && e->stream) {
        shim_stream *other = e->stream;
        uint64_t at = e->at;
        push(s, {"wait", SHIM_HOST, [=] {
                     run_until(other, at);
                     shield(&devices[s->device], false);
                 }});
    }
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    CALL();
    if (e->stream && e->stream->done < e->at) {
        run_until(e->stream, e->stream->done + 1);
        return broken != cudaSuccess ? done(broken) : cudaErrorNotReady;
    }
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    CALL();
    counts.waits++;
    if (e->stream) run_until(e->stream, e->at);
    return done(broken);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    CALL();
    for (cudaEvent_t e : {from, to}) {
        if (!e->stream) return done(cudaErrorInvalidResourceHandle);
        if (e->stream->done < e->at) return cudaErrorNotReady;
    }
    *ms = (float)(1e3 * (to->seconds - from->seconds));
    return cudaSuccess;
}

/* ---- Graphs. */
cudaError_t cudaStreamBeginCapture(cudaStream_t s, cudaStreamCaptureMode mode)
{
    CALL();
    if (s->capture) return done(cudaErrorStreamCaptureUnsupported);
    s->capture = new shim_graph{};
    s->capture->streams.push_back(s);
    if (mode != cudaStreamCaptureModeRelaxed) capturing = s->capture;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    std::lock_guard<std::recursive_mutex> guard(lock);
    shim_graph *g = s->capture;
    *out = nullptr;
    if (!g || g->streams[0] != s) return done(cudaErrorInvalidValue);
    for (shim_stream *each : g->streams)
        each->capture = nullptr;
    if (capturing == g) capturing = nullptr;
    if (g->invalid || broken != cudaSuccess) {
        delete g;
        return done(broken != cudaSuccess ? broken : cudaErrorStreamCaptureInvalidated);
    }
    *out = g;
    return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t s, cudaStreamCaptureStatus *status)
{
    CALL();
    *status = !s->capture           ? cudaStreamCaptureStatusNone
              : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                    : cudaStreamCaptureStatusActive;
    return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long)
{
    CALL();
    if (!g) return done(cudaErrorInvalidValue);
    *e = new shim_graph_exec{g->list};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    CALL();
    counts.graphs++;
    if (fault(SHIM_FAULT_LAUNCH)) return done(cudaErrorLaunchOutOfResources);
    for (const work &w : e->list)
        push(s, w);
    return cudaSuccess;
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *, size_t *count)
{
    CALL();
    *count = g->list.size();
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    delete e;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    delete g;
    return cudaSuccess;
}
