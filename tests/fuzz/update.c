/* An untrusted update or state that opens is complete and finite, and can be written and opened
 * again. */
#include "agg/adapter/adapter_file.h"
#include "tests/fuzz/fuzz.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {"../shared/golden/small-matrix/state.safetensors",
                                  "../shared/golden/carry/state.safetensors",
                                  "tests/golden/agg/update.safetensors", NULL};
const int fuzz_runs = 1500;

static void check_module(const struct adapter_file_module *m)
{
    volatile float sum = 0;
    for (int r = 0; r < ADAPTER_FILE_ROLES; r++) {
        const struct adapter_file_factor *x = &m->factor[r];
        for (size_t i = 0; x->f32 && i < (size_t)x->rows * x->cols; i++) {
            if (!isfinite(x->f32[i])) abort();
            sum += x->f32[i];
        }
    }
    if (m->rank && !(m->scale > 0)) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char path[64];
    struct adapter_file f = {0};
    struct bytes again = {.max = 8 << 20};
    int fd = memfd_create("update", MFD_CLOEXEC);
    if (fd < 0 || write(fd, data, size) != (ssize_t)size) abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    if (!err_is(adapter_file_open(&f, path))) {
        for (size_t i = 0; i < f.count; i++)
            check_module(&f.module[i]);
        err e = adapter_file_write_bytes(&again, &f.meta, f.module, f.count);
        if (err_is(e) && e.kind != ERR_LIMIT && e.kind != ERR_INPUT) abort();
    }
    adapter_file_close(&f);
    bytes_close(&again);
    close(fd);
    return 0;
}
