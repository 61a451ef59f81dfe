/* Controls of the shim for tests, usable from C. Tests of a backend need no other header of it.
 *
 * The environment sets the same at the first use:
 *   SHIM_SCHEDULE=K              shim_schedule_number(K)
 *   SHIM_VERIFY=1                shim_verify(true)
 *   SHIM_FAULT=KIND:N            shim_fault_at(KIND, N); KIND is malloc, copy, launch, kernel,
 *                                capture or graph
 *   SHIM_MEMORY=BYTES            memory of each device
 *   SHIM_DEVICES=N               shim_devices_set(N)
 *   SHIM_PRODUCTS=MASK           shim_products(MASK)
 *   SHIM_COUNTS=1                prints the launches of each kernel when the process ends
 *   SHIM_RACE_BLOCKS=1           finds all races between blocks (thread sanitizer; slow) */
#ifndef TESTS_CUDA_ON_CPU_SHIM_H
#define TESTS_CUDA_ON_CPU_SHIM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The order of blocks, warps and lanes. Asynchronous copies of a kernel (cp.async) happen at once
 * if eager, else at the wait; the first finds copies over data that is still read, the second
 * finds missing waits. */
enum shim_order { SHIM_ASCENDING, SHIM_DESCENDING, SHIM_SHUFFLED };
struct shim_schedule {
    enum shim_order order;
    unsigned seed; /* of SHIM_SHUFFLED */
    bool eager;
};
enum { SHIM_SCHEDULES = 4 };
void shim_schedule_set(struct shim_schedule s);
/* 0: ascending; 1: descending, eager; 2: shuffled; 3: shuffled, eager; more: other seeds */
void shim_schedule_number(unsigned k);

/* Runs each launch under SHIM_SCHEDULES schedules from the same device memory, and ends the process
 * with the kernel's name if they leave different bits. */
void shim_verify(bool on);

/* The nth call from now on fails, once. */
enum shim_fault {
    SHIM_FAULT_MALLOC,  /* cudaMalloc: cudaErrorMemoryAllocation */
    SHIM_FAULT_COPY,    /* a copy or memset: cudaErrorInvalidValue */
    SHIM_FAULT_LAUNCH,  /* a launch: cudaErrorLaunchOutOfResources from cudaGetLastError() */
    SHIM_FAULT_KERNEL,  /* a kernel while it runs: cudaErrorIllegalAddress from every later call */
    SHIM_FAULT_CAPTURE, /* the start or end of a capture, or the instantiation of its graph */
    SHIM_FAULT_GRAPH,   /* the launch of a graph: cudaErrorLaunchOutOfResources */
    SHIM_FAULTS
};
void shim_fault_at(enum shim_fault kind, uint64_t n);
/* Ends all faults, and the errors they left. */
void shim_fault_clear(void);

/* Algorithms that the stub of cuBLASLt offers, by bit. It refuses the others, also those that it
 * has offered before. */
enum {
    SHIM_PRODUCT_SPLIT_K = 1, /* says so in its configuration */
    SHIM_PRODUCT_BY_ROWS = 2, /* a row's bits depend on the number of rows; nothing tells */
    SHIM_PRODUCT_RIGHT = 4,
    SHIM_PRODUCT_ALL = 7,
    SHIM_PRODUCT_RIGHT_F32 = 8, /* the right ones for float32 alone */
};
void shim_products(unsigned mask);

void shim_devices_set(int count);               /* 0 to 4, at first 2; -1: an old driver */
void shim_memory_set(int device, size_t bytes); /* size of a device's memory */
size_t shim_memory_used(int device);            /* taken and not freed */
size_t shim_memory_peak(int device); /* the largest of these since the last call of this function */

struct shim_counts {
    uint64_t launches;    /* kernels queued by the host, also into a capture */
    uint64_t kernels;     /* kernels run */
    uint64_t products;    /* matrix products queued */
    uint64_t copies;      /* copies queued */
    uint64_t memsets;     /* memsets queued */
    uint64_t graphs;      /* graphs queued */
    uint64_t captures;    /* graphs captured */
    uint64_t allocations; /* cudaMalloc and cudaFree */
    uint64_t waits;       /* calls in which the host waits for the device */
    uint64_t threads, switches;
};
void shim_counts_get(struct shim_counts *out);
/* Kernels queued by the host whose name in the source contains `part`. */
uint64_t shim_launches_of(const char *part);
void shim_counts_reset(void);

#ifdef __cplusplus
}
#endif
#endif
