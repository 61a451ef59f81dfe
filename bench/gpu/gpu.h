/* Shared by the programs of bench/gpu: the device that they open, its memory, random values and
 * times. */
#ifndef BENCH_GPU_GPU_H
#define BENCH_GPU_GPU_H

#include "engine/pass.h"

/* The table of the backend, and a context that stays open until the program ends. */
extern const struct backend *gpu;
extern struct backend_context *gpu_context;
err gpu_open(const char *device);
/* Another context in this precision, for gpu_context; the one before is closed. */
err gpu_reopen(enum dtype precision);

/* Text about the driver and the device, from libcuda. Empty where there is no libcuda, as with the
 * CUDA backend on the CPU. */
const char *gpu_name(void);
uint64_t gpu_memory_used(void); /* bytes of the device, by all processes; 0 if not known */
bool gpu_is_emulated(void);     /* the CUDA backend runs on the CPU, so times mean nothing */

double gpu_seconds(void);                    /* monotonic clock */
double gpu_median(double *values, size_t n); /* sorts them */
/* n values uniform in [-bound, bound), exact in float32, the same ones on every machine. */
void gpu_fill(float *out, size_t n, float bound);

#endif
