/* State of the runtime, shared by cuda_runtime.cpp (devices, memory, controls) and cuda_stream.cpp
 * (streams, events, graphs). One lock covers everything, because kernels run on the thread that
 * waits and use the globals of the scheduler. */
#ifndef TESTS_CUDA_ON_CPU_CUDA_STATE_H
#define TESTS_CUDA_ON_CPU_CUDA_STATE_H

#include "cuda_on_cpu.h"
#include "shim.h"

#include <deque>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

struct shim_work {
    const char *name;
    enum shim_kind kind;
    std::function<void()> run;
};
struct shim_graph {
    std::vector<shim_work> list;
    std::vector<shim_stream *> streams; /* that capture into it; the first began it */
    bool invalid;
};
struct shim_graph_exec {
    std::vector<shim_work> list;
};
struct shim_stream {
    int device;
    shim_graph *capture;
    std::deque<shim_work> queue;
    uint64_t queued, done;
};
struct shim_event {
    shim_stream *stream;
    uint64_t at;       /* complete when the stream has done so much */
    shim_graph *graph; /* recorded in a capture */
    double seconds;
};

namespace shim
{
enum { DEVICES = 4, BEYOND = 256 };
struct allocation {
    size_t bytes;
    bool workspace; /* used by products only: SHIM_VERIFY leaves it out */
};
typedef std::map<char *, allocation> allocations; /* by address */
struct device {
    size_t total = (size_t)8 << 30, used = 0, peak = 0;
    allocations blocks;
    std::set<shim_stream *> streams;
};
struct state {
    std::recursive_mutex lock;
    device devices[DEVICES];
    allocations pinned; /* host memory */
    struct shim_counts counts;
    std::map<std::string, uint64_t> launched; /* kernels queued by the host, by name */
    uint64_t fault_left[SHIM_FAULTS];         /* 0: none; 1: the next call fails */
    bool verify;
    int device_count = 2;
    cudaError_t broken; /* left by a failed kernel; every later call returns it */
};
extern state all;
extern thread_local cudaError_t last; /* error of this thread */
extern thread_local int device_now;
extern thread_local shim_graph *capturing; /* begun by this thread */

typedef std::lock_guard<std::recursive_mutex> guard;
/* Each function of the runtime begins with CALL(), which takes the lock and returns if the function
 * must fail; CALL(true): it is not allowed in a capture. */
struct call {
    guard held;
    cudaError_t refused;
    explicit call(bool not_in_capture = false);
};
#define CALL(...)                                                                                  \
    shim::call call_{__VA_ARGS__};                                                                 \
    if (call_.refused != cudaSuccess) return call_.refused

/* The same for calls that give memory back: after a fault they do so and return the fault, so that
 * the leak checker sees only what the backend forgot. */
#define CALL_GIVING_BACK(...)                                                                      \
    shim::call call_{__VA_ARGS__};                                                                 \
    if (call_.refused != cudaSuccess && call_.refused != all.broken) return call_.refused

cudaError_t done(cudaError_t e);  /* keeps e for cudaGetLastError() */
bool fault(enum shim_fault kind); /* this call must fail */

/* Bytes of an allocation with those behind its end, which are NaNs, and must stay so. */
size_t room_of(size_t bytes);
/* Whether [p, p + bytes) lies in one allocation of a device; the allocation in *found. */
bool inside(const void *p, size_t bytes, allocation **found = nullptr);
/* Under the address sanitizer device memory is closed while the host runs. */
void memory_open(device *d);
void memory_close(device *d);

void run_until(shim_stream *s, uint64_t end);
cudaError_t wait(shim_stream *s);
cudaError_t wait_all(int number); /* for all streams of a device */
} // namespace shim

/* cuda_on_cpu.cpp */
struct shim_schedule shim_schedule_now();
void shim_statistics(uint64_t *threads, uint64_t *switched, bool reset);
#endif
