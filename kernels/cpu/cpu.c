#include "kernels/cpu/cpu.h"

#include <errno.h>
#include <omp.h>
#include <stdlib.h>
#include <time.h>

void *cpu_alloc(size_t bytes)
{
    return aligned_alloc(64, (bytes + 127) / 64 * 64);
}

void cpu_fail(struct backend_context *c, err e)
{
    if (!err_is(c->first)) c->first = e;
}

static void *grown(struct backend_context *c, void **memory, size_t *have, size_t bytes)
{
    if (bytes > *have) {
        free(*memory);
        *memory = cpu_alloc(bytes);
        *have = *memory ? bytes : 0;
        if (!*memory) cpu_fail(c, err_sys(ENOMEM, "engine: %zu bytes of scratch", bytes));
    }
    return *memory;
}

void *cpu_scratch(struct backend_context *c, size_t bytes)
{
    return grown(c, &c->scratch, &c->scratch_bytes, bytes);
}

void *cpu_room(struct backend_context *c, size_t bytes)
{
    return grown(c, &c->room, &c->room_bytes, bytes);
}

int cpu_thread(void)
{
    return omp_get_thread_num();
}

double cpu_clock(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

void cpu_count(struct backend_context *c, enum backend_op op, double since)
{
    c->profile.seconds[op] += cpu_clock() - since;
    c->profile.calls[op]++;
}
