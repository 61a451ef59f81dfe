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

void *cpu_scratch(struct backend_context *c, size_t bytes)
{
    if (bytes > c->scratch_bytes) {
        free(c->scratch);
        c->scratch = cpu_alloc(bytes);
        c->scratch_bytes = c->scratch ? bytes : 0;
        if (!c->scratch) cpu_fail(c, err_sys(ENOMEM, "engine: %zu bytes of scratch", bytes));
    }
    return c->scratch;
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
