/* An untrusted GGUF adapter is refused, or its modules fit the base. */
#include "engine/adapter_gguf.h"

#include "base/file.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {"tests/golden/peft/plain.gguf", NULL};
const int fuzz_runs = 400;

static struct model base;
static char path[256];

static void close_all(void)
{
    unlink(path);
    model_close(&base);
}

static void open_all(void)
{
    const char *folder = getenv("TMPDIR");
    snprintf(path, sizeof path, "%s/fedlora-fuzz-%d.gguf", folder != NULL ? folder : "/tmp",
             (int)getpid());
    err e = model_open(&base, FEDLORA_SOURCE_DIR "/tests/models/llama");
    if (err_is(e)) abort();
    atexit(close_all);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct adapter_file file = {0};
    if (path[0] == 0) open_all();
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    err e = adapter_gguf_open(&file, path, &base);
    if (err_is(e)) {
        if (e.kind != ERR_INPUT || file.count != 0) abort();
        return 0;
    }
    for (size_t i = 0; i < file.count; i++) {
        const struct adapter_file_module *m = &file.module[i];
        if (!m->rank || m->factor[ADAPTER_FILE_A].rows != m->factor[ADAPTER_FILE_B].cols) abort();
    }
    adapter_file_close(&file);
    return 0;
}
