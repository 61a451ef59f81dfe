/* Streams, events and graphs: lists of work, which runs when the host waits. */
#include "cuda_state.h"

#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <string>

using namespace shim;

/* The bits that a kernel could change. */
static std::vector<std::string> snapshot(device *d)
{
    std::vector<std::string> all_blocks;
    for (auto &b : d->blocks)
        all_blocks.emplace_back(b.first, b.second.workspace ? 0 : b.second.bytes);
    return all_blocks;
}
/* From the same device memory under all schedules; the bits left must be equal. */
static void run_verified(device *d, shim_work *w)
{
    std::vector<std::string> before = snapshot(d), first;
    struct shim_schedule chosen = shim_schedule_now();
    for (unsigned k = 0; k < SHIM_SCHEDULES; k++) {
        size_t i = 0;
        if (k)
            for (auto &b : d->blocks) {
                memcpy(b.first, before[i].data(), before[i].size());
                i++;
            }
        shim_schedule_number(k);
        w->run();
        if (k == 0) first = snapshot(d);
        i = 0;
        for (auto &b : d->blocks) {
            const std::string &want = first[i++];
            if (!memcmp(b.first, want.data(), want.size())) continue;
            size_t at = 0;
            while (b.first[at] == want[at])
                at++;
            shim_fail("%s: schedule %u leaves other bits than schedule 0, at byte %zu of an "
                      "allocation of %zu bytes",
                      w->name, k, at, want.size());
        }
    }
    shim_schedule_set(chosen);
}

/* The address sanitizer finds more of them, and earlier. */
static void check_beyond(device *d, const char *name)
{
#ifndef SHIM_ASAN
    static const std::string good(2 * BEYOND, (char)0xff);
    for (auto &b : d->blocks) {
        size_t bytes = b.second.bytes, more = room_of(bytes) - bytes;
        if (memcmp(b.first + bytes, good.data(), more))
            shim_fail("%s wrote behind an allocation of %zu bytes", name, bytes);
    }
#endif
    (void)d, (void)name;
}

void shim::run_until(shim_stream *s, uint64_t end)
{
    device *d = &all.devices[s->device];
    memory_open(d);
    while (s->done < end) {
        shim_work w = std::move(s->queue.front());
        s->queue.pop_front();
        s->done++;
        if (all.broken != cudaSuccess) continue; /* CUDA drops what follows a fault */
        if (w.kind == SHIM_KERNEL && fault(SHIM_FAULT_KERNEL)) {
            all.broken = last = cudaErrorIllegalAddress;
            continue;
        }
        all.counts.kernels += w.kind == SHIM_KERNEL;
        if (w.kind == SHIM_KERNEL && all.verify)
            run_verified(d, &w);
        else
            w.run();
        check_beyond(d, w.name);
    }
    memory_close(d);
}
static void push(shim_stream *s, shim_work w)
{
    if (s->capture)
        s->capture->list.push_back(std::move(w));
    else {
        s->queue.push_back(std::move(w));
        s->queued++;
    }
}
cudaError_t shim::wait(shim_stream *s)
{
    all.counts.waits++;
    run_until(s, s->queued);
    return done(all.broken);
}
cudaError_t shim::wait_all(int number)
{
    for (shim_stream *s : all.devices[number].streams)
        run_until(s, s->queued);
    all.counts.waits++;
    return done(all.broken);
}
static double seconds()
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

cudaError_t shim_enqueue(cudaStream_t s, const char *name, enum shim_kind kind,
                         std::function<void()> w)
{
    CALL();
    if (!s) shim_fail("%s: no stream given; the default stream is not for us", name);
    if (s->device != device_now && kind == SHIM_KERNEL) return done(cudaErrorInvalidResourceHandle);
    all.counts.launches += kind == SHIM_KERNEL;
    all.counts.products += kind == SHIM_PRODUCT;
    if (kind == SHIM_KERNEL) all.launched[name]++;
    all.counts.copies += kind == SHIM_COPY;
    all.counts.memsets += kind == SHIM_MEMSET;
    if (kind == SHIM_KERNEL && fault(SHIM_FAULT_LAUNCH)) return done(cudaErrorLaunchOutOfResources);
    if ((kind == SHIM_COPY || kind == SHIM_MEMSET) && fault(SHIM_FAULT_COPY))
        return done(cudaErrorInvalidValue);
    push(s, {name, kind, std::move(w)});
    return cudaSuccess;
}

/* ---- Streams and events. */
cudaError_t cudaStreamCreate(cudaStream_t *out)
{
    CALL();
    shim_stream *s = new shim_stream{};
    s->device = device_now;
    all.devices[device_now].streams.insert(s);
    *out = s;
    return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t *out, unsigned)
{
    return cudaStreamCreate(out);
}
cudaError_t cudaStreamDestroy(cudaStream_t s)
{
    guard held(all.lock); /* also after a fault */
    if (!s) return cudaErrorInvalidResourceHandle;
    run_until(s, s->queued);
    all.devices[s->device].streams.erase(s);
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
    return all.broken != cudaSuccess ? done(all.broken) : cudaErrorNotReady;
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
    guard held(all.lock);
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
                     memory_open(&all.devices[s->device]);
                 }});
    }
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t e)
{
    CALL();
    if (e->stream && e->stream->done < e->at) {
        run_until(e->stream, e->stream->done + 1);
        return all.broken != cudaSuccess ? done(all.broken) : cudaErrorNotReady;
    }
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    CALL();
    all.counts.waits++;
    if (e->stream) run_until(e->stream, e->at);
    return done(all.broken);
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
    if (s->capture || fault(SHIM_FAULT_CAPTURE)) return done(cudaErrorStreamCaptureUnsupported);
    s->capture = new shim_graph{};
    s->capture->streams.push_back(s);
    if (mode != cudaStreamCaptureModeRelaxed) capturing = s->capture;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t s, cudaGraph_t *out)
{
    guard held(all.lock);
    shim_graph *g = s->capture;
    *out = nullptr;
    if (!g || g->streams[0] != s) return done(cudaErrorInvalidValue);
    for (shim_stream *each : g->streams)
        each->capture = nullptr;
    if (capturing == g) capturing = nullptr;
    if (fault(SHIM_FAULT_CAPTURE)) g->invalid = true;
    if (g->invalid || all.broken != cudaSuccess) {
        delete g;
        return done(all.broken != cudaSuccess ? all.broken : cudaErrorStreamCaptureInvalidated);
    }
    all.counts.captures++;
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
    if (fault(SHIM_FAULT_CAPTURE)) return done(cudaErrorMemoryAllocation);
    *e = new shim_graph_exec{g->list};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t s)
{
    CALL();
    all.counts.graphs++;
    if (fault(SHIM_FAULT_GRAPH)) return done(cudaErrorLaunchOutOfResources);
    for (const shim_work &w : e->list)
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

uint64_t shim_launches_of(const char *part)
{
    guard held(all.lock);
    uint64_t sum = 0;
    for (const auto &one : all.launched)
        if (one.first.find(part) != std::string::npos) sum += one.second;
    return sum;
}
