#include "bench/gpu/gpu.h"

#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

const struct backend *gpu;
struct backend_context *gpu_context;
static const char *device_asked;

err gpu_open(const char *device)
{
    device_asked = device;
    return gpu_reopen(DTYPE_BF16);
}

err gpu_reopen(enum dtype precision)
{
    char why[BACKEND_WHY_BYTES];
    struct backend_options o = {.precision = precision};
    if (gpu_context) gpu->close(gpu_context);
    gpu_context = NULL;
    return backend_open(&gpu, &gpu_context, device_asked, &o, why);
}

/* ---- The driver, whose functions return 0 for success. The backend uses the primary context of
 * the device, so the free memory of that context is asked for. */
enum { NAME_BYTES = 256 };
struct driver {
    int (*init)(unsigned flags);
    int (*version)(int *out);
    int (*device)(int *out, int number);
    int (*name)(char *out, int bytes, int device);
    int (*retain)(void **context, int device);
    int (*current)(void *context);
    int (*memory)(size_t *available, size_t *all);
    int (*attribute)(int *out, int attribute, int device);
};

static const struct driver *driver(void)
{
    static struct driver d;
    static bool tried, good;
    if (tried) return good ? &d : NULL;
    tried = true;
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL), *context;
    const char *number = device_asked ? strchr(device_asked, ':') : NULL;
    int device, which = number ? (int)strtol(number + 1, NULL, 10) : 0;
    if (!library) return NULL;
    const struct {
        void *to;
        const char *name;
    } all[] = {{&d.init, "cuInit"},
               {&d.version, "cuDriverGetVersion"},
               {&d.device, "cuDeviceGet"},
               {&d.name, "cuDeviceGetName"},
               {&d.retain, "cuDevicePrimaryCtxRetain"},
               {&d.current, "cuCtxSetCurrent"},
               {&d.memory, "cuMemGetInfo_v2"},
               {&d.attribute, "cuDeviceGetAttribute"}};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        void *function = dlsym(library, all[i].name);
        if (!function) return NULL;
        memcpy(all[i].to, &function, sizeof function);
    }
    good = !d.init(0) && !d.device(&device, which) && !d.retain(&context, device) &&
           !d.current(context);
    return good ? &d : NULL;
}

bool gpu_is_emulated(void)
{
    const char *library = getenv("FEDLORA_CUDA");
    return library && strstr(library, "cuda_on_cpu");
}

const char *gpu_name(void)
{
    enum { MULTIPROCESSORS = 16, MAJOR = 75, MINOR = 76 }; /* of enum CUdevice_attribute */
    static char text[NAME_BYTES + 128];
    char name[NAME_BYTES] = "";
    int device = 0, version = 0, processors = 0, major = 0, minor = 0;
    size_t available = 0, all = 0;
    const struct driver *d = gpu_is_emulated() ? NULL : driver();
    const char *number = device_asked ? strchr(device_asked, ':') : NULL;
    if (!d) return "";
    d->device(&device, number ? (int)strtol(number + 1, NULL, 10) : 0);
    d->name(name, sizeof name, device);
    d->version(&version);
    d->memory(&available, &all);
    d->attribute(&processors, MULTIPROCESSORS, device);
    d->attribute(&major, MAJOR, device);
    d->attribute(&minor, MINOR, device);
    snprintf(text, sizeof text,
             "%s, compute capability %d.%d, %d multiprocessors, %.1f GB; driver for CUDA %d.%d",
             name, major, minor, processors, (double)all / 1e9, version / 1000,
             version % 1000 / 10);
    return text;
}

uint64_t gpu_memory_used(void)
{
    size_t available = 0, all = 0;
    const struct driver *d = gpu_is_emulated() ? NULL : driver();
    if (d) d->memory(&available, &all);
    return all - available;
}

/* ---- Times and values */
double gpu_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static int ascending(const void *a, const void *b)
{
    const double *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

double gpu_median(double *values, size_t n)
{
    qsort(values, n, sizeof *values, ascending);
    return n ? values[n / 2] : 0.0;
}

void gpu_fill(float *out, size_t n, float bound)
{
    static uint32_t x = 12345;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525u + 1013904223u;
        out[i] = (float)((int32_t)(x >> 8) - (1 << 23)) / (float)(1 << 23) * bound;
    }
}
