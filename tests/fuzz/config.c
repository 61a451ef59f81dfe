/* An untrusted config.json with valid weights is refused, or opens as a model. */
#include "base/file.h"
#include "engine/model/model.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {"tests/models/llama/config.json",
                                  "tests/models/llama-bias/config.json",
                                  "tests/models/qwen2/config.json",
                                  "tests/models/qwen3/config.json",
                                  "tests/golden/bases/gemma2/config.json",
                                  "tests/golden/bases/gemma3/config.json",
                                  "tests/golden/bases/phi4-mini/config.json",
                                  "tests/golden/bases/granite/config.json",
                                  "tests/golden/bases/olmo2/config.json",
                                  "tests/golden/bases/smollm3/config.json",
                                  "tests/golden/bases/llama-yarn/config.json",
                                  "tests/golden/bases/llama-dynamic/config.json",
                                  NULL};
const int fuzz_runs = 500;

static char folder[256], config[512], weights[512];

static void remove_folder(void)
{
    unlink(config);
    unlink(weights);
    rmdir(folder);
}

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/fedlora-fuzz-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(config, sizeof config, "%s/config.json", folder);
    snprintf(weights, sizeof weights, "%s/model.safetensors", folder);
    if (symlink(FEDLORA_SOURCE_DIR "/tests/models/llama/model.safetensors", weights) != 0) abort();
    atexit(remove_folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct model m = {0};
    if (folder[0] == 0) make_folder();
    FILE *f = fopen(config, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    if (!err_is(model_open(&m, folder))) model_close(&m);
    return 0;
}
