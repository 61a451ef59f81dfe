/* Copies and sums between devices. Each context has one stream, so events order them: the copy
 * waits for the other stream, and the other stream waits for the copy. */
#include "kernels/cuda/cuda_vector.cuh"

enum { ADD_THREADS = 256, ADD_BLOCKS = 1024 };
enum { PIECE = 4 << 20 }; /* values that are copied to scratch memory at once */

__global__ void __launch_bounds__(ADD_THREADS)
    peer_add_kernel(float *to, const float *from, size_t n)
{
    size_t step = (size_t)gridDim.x * ADD_THREADS;
    for (size_t i = (size_t)blockIdx.x * ADD_THREADS + threadIdx.x; i < n; i += step)
        to[i] += from[i];
}

/* Work queued in c from now on runs after all that is queued in `other` by now. */
static bool follow(struct backend_context *c, struct backend_context *other)
{
    cuda_begin(other);
    bool good = other->event ||
                cuda_good(other, cudaEventCreateWithFlags(&other->event, cudaEventDisableTiming),
                          "making an event");
    good = good && cuda_good(other, cudaEventRecord(other->event, other->stream),
                             "marking the end of the operations");
    cuda_begin(c);
    return good && cuda_good(c, cudaStreamWaitEvent(c->stream, other->event, 0),
                             "waiting for another device");
}

/* With access the copy needs no detour through the host's memory. Without it the copy is only
 * slower, so a refusal is no failure. */
static void reach(struct backend_context *c, const struct backend_context *other)
{
    int can = 0;
    uint32_t bit = other->device < 32 ? 1u << other->device : 0;
    if (c->device == other->device || (c->reached & bit)) return;
    c->reached |= bit;
    if (cudaDeviceCanAccessPeer(&can, c->device, other->device) == cudaSuccess && can)
        (void)cudaDeviceEnablePeerAccess(other->device, 0);
    (void)cudaGetLastError(); /* another context may have enabled it before */
}

static bool copy(struct backend_context *c, float *to, const struct backend_context *other,
                 const float *from, size_t n)
{
    reach(c, other);
    return !n || cuda_good(c,
                           cudaMemcpyPeerAsync(to, c->device, from, other->device, n * sizeof *to,
                                               c->stream),
                           "copying from another device");
}

void cuda_peer_copy(struct backend_context *c, float *to, struct backend_context *other,
                    const float *from, size_t n)
{
    double since = cuda_begin(c);
    if (follow(c, other) && copy(c, to, other, from, n)) follow(other, c);
    cuda_begin(c);
    cuda_done(c, OP_COPY, since);
}

void cuda_peer_add(struct backend_context *c, float *to, struct backend_context *other,
                   const float *from, size_t n)
{
    double since = cuda_begin(c);
    size_t most = n < PIECE ? n : (size_t)PIECE;
    float *staged = most ? (float *)cuda_scratch(c, most * sizeof *staged) : NULL;
    bool good = staged && follow(c, other);
    for (size_t at = 0; at < n && good; at += most) {
        size_t now = n - at < most ? n - at : most;
        good = copy(c, staged, other, from + at, now);
        if (good)
            launch(peer_add_kernel, dim3(ADD_BLOCKS), dim3(ADD_THREADS), 0, c->stream, to + at,
                   staged, now);
    }
    if (good) follow(other, c);
    cuda_begin(c);
    cuda_done(c, OP_COPY, since);
}
