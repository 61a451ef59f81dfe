/* An untrusted config.json alone is refused, or its shapes give a plan: no overflow, no memory that
 * grows with its numbers, and sizes that are at least those of the values. */
#include "sim/cost.h"

#include "base/file.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

const char *const fuzz_seeds[] = {
    "tests/models/llama/config.json", "tests/models/llama-bias/config.json",
    "tests/models/qwen2/config.json", "tests/models/qwen3/config.json", NULL};
const int fuzz_runs = 250;

static char config[256];

static void remove_file(void)
{
    unlink(config);
}

static void make_file(void)
{
    const char *base = getenv("TMPDIR");
    snprintf(config, sizeof config, "%s/fedlora-fuzz-XXXXXX.json", base ? base : "/tmp");
    int fd = mkstemps(config, 5);
    if (fd < 0) abort();
    close(fd);
    atexit(remove_file);
}

static void plan(const struct fleet *fleet, const char *method)
{
    Fedlora__V1__RunConfig run = FEDLORA__V1__RUN_CONFIG__INIT;
    Fedlora__V1__Training training = FEDLORA__V1__TRAINING__INIT;
    const struct cost_options o = {
        .fleet = fleet, .config = &run, .method = method, .precision = DTYPE_F32};
    struct cost c;
    training.steps = 1;
    training.seq = 8;
    run.name = (char *)(uintptr_t) "fuzz";
    run.rank = 4;
    run.rounds = 2;
    run.training = &training;
    if (err_is(cost_make(&c, &o))) return;
    if (!c.trained.most || c.up.most / 4 < c.trained.most || c.result.bytes / 4 < c.result.values)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fleet fleet = {0};
    const struct option_list none = {0};
    struct fleet_options o = {.base = config, .split = {.members = 2}, .shapes = true};
    if (!config[0]) make_file();
    FILE *f = fopen(config, "wb");
    if (!f || fwrite(data, 1, size, f) != size || fclose(f) != 0) abort();
    if (err_is(devices_parse(&o.devices, &none))) abort();
    if (err_is(fleet_open(&fleet, &o))) return 0;
    plan(&fleet, "flora");
    plan(&fleet, "fed-sb");
    fleet_close(&fleet);
    return 0;
}
