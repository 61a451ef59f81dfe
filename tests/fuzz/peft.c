/* An untrusted adapter_config.json with valid tensors is refused, or the adapter is combined
 * and the result opens. */
#include "agg/combine/combine.h"
#include "base/file.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {
    "tests/golden/agg/a/adapter_config.json", "tests/golden/agg/c/adapter_config.json",
    "tests/golden/agg-conv/c/adapter_config.json", "tests/fuzz/seeds/saved.json", NULL};
const int fuzz_runs = 600;

static char folder[256], config[512], weights[512], out[512];

static void remove_out(void)
{
    static const char *const names[] = {"adapter_config.json", "adapter_model.safetensors"};
    char path[640];
    for (int i = 0; i < 2; i++) {
        snprintf(path, sizeof path, "%s/%s", out, names[i]);
        unlink(path);
    }
    rmdir(out);
}

static void remove_folder(void)
{
    unlink(config);
    unlink(weights);
    rmdir(folder);
    remove_out();
}

static void make_folder(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(folder, sizeof folder, "%s/fedlora-fuzz-XXXXXX", base != NULL ? base : "/tmp");
    if (mkdtemp(folder) == NULL) abort();
    snprintf(config, sizeof config, "%s/adapter_config.json", folder);
    snprintf(weights, sizeof weights, "%s/adapter_model.safetensors", folder);
    snprintf(out, sizeof out, "%s-out", folder);
    if (symlink(FEDLORA_SOURCE_DIR "/tests/golden/agg/a/adapter_model.safetensors", weights) != 0)
        abort();
    atexit(remove_folder);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *const paths[] = {folder};
    struct combine c = {0};
    struct adapter_file again = {0};
    if (folder[0] == 0) make_folder();
    FILE *f = fopen(config, "wb");
    if (f == NULL || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    const struct combine_options o = {.method = method_find("flora"),
                                      .path = paths,
                                      .count = 1,
                                      .cut = {.rank_max = 1},
                                      .scratch = out,
                                      .threads = 1};
    if (!err_is(combine_open(&c, &o))) {
        err e = combine_write(&c, out, true);
        if (!err_is(e)) e = adapter_file_map_whole(&again, out);
        if (err_is(e)) {
            fprintf(stderr, "%s\n", e.text);
            abort();
        }
    }
    adapter_file_close(&again);
    combine_close(&c);
    return 0;
}
