/* The memory that a training plans before its first step, compared with what the shim of CUDA
 * counts. On the CPU, whose memory is not counted by allocations, there is nothing to compare. */
#include "engine/engine_plan.h"
#include "engine/train/train_parts.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <dlfcn.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 8 };
/* cuBLAS's workspace is so large that it would hide all other differences of these models. */
enum { WORKSPACE = 32 << 20 };

static size_t (*memory_peak)(int device);
static void (*memory_set)(int device, size_t bytes);

/* False on the CPU. The program does not link the shim, which the engine loads as a library. */
static bool find_shim(void)
{
    const char *path = getenv("FEDLORA_CUDA");
    if (!strcmp(support_device(), "cpu")) return false;
    void *shim = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    cr_assert(shim, "%s: %s", path, dlerror());
    *(void **)&memory_peak = dlsym(shim, "shim_memory_peak");
    *(void **)&memory_set = dlsym(shim, "shim_memory_set");
    cr_assert(memory_peak && memory_set);
    return true;
}

struct plan_case {
    const char *model;
    enum dtype precision;
    enum base_memory memory;
    bool checkpoint;
    uint32_t batch, length, rank;
};

static err setup_open(struct setup *s, const struct plan_case *k)
{
    struct rng rng;
    setup_model(s, k->model);
    struct engine_options o = {.device = support_device(), .precision = k->precision};
    o.base_memory = k->memory;
    o.tokens = (size_t)k->batch * k->length;
    o.checkpoint = k->checkpoint;
    err e = engine_open(&s->engine, &s->model, &o);
    setup_fresh(s, k->rank);
    rng_init(&rng, "test", 1, "rows", 0);
    for (int i = 0; i < ROWS; i++)
        setup_row(s, &rng, k->length, 0);
    return e;
}

static struct train_options options_of(const struct plan_case *k)
{
    struct train_options o;
    train_defaults(&o);
    o.steps = 2;
    o.batch = k->batch;
    o.checkpoint = k->checkpoint;
    return o;
}

static uint64_t planned(const struct plan_case *k)
{
    struct setup s;
    struct train_options o = options_of(k);
    ok(setup_open(&s, k));
    struct training t = {.e = s.engine, .adapter = &s.adapter, .data = &s.data, .o = &o};
    t.steps = 2;
    ok(training_open(&t));
    struct pass_size size = {.rows = k->batch, .positions = k->length, .backward = true};
    size.tokens = (size_t)k->batch * k->length;
    size.learned = size.tokens - k->batch;
    size.checkpoint = k->checkpoint;
    pass_size_widths(&size, t.factors);
    struct engine_plan_adapter adapter = {s.adapter.value_count, t.blocks_held + t.factors->held,
                                          false};
    uint64_t bytes = engine_plan_bytes(s.engine, &size, &adapter);
    training_close(&t);
    setup_close(&s);
    return bytes;
}

static err train(const struct plan_case *k)
{
    struct setup s;
    struct train_options o = options_of(k);
    struct train_result result;
    err e = setup_open(&s, k);
    if (!err_is(e)) e = train_run(&result, &s.adapter, s.engine, &s.data, &o);
    setup_close(&s);
    return e;
}

static const struct plan_case cases[] = {
    {"llama", DTYPE_F32, BASE_PACKED, false, 1, 40, 4},
    {"llama", DTYPE_BF16, BASE_PACKED, true, 4, 120, 16},
    {"llama/q8_0.gguf", DTYPE_BF16, BASE_PACKED, false, 2, 100, 8},
    {"llama/q8_0.gguf", DTYPE_F32, BASE_FILE, false, 2, 60, 8},
    {"llama/q8_0.gguf", DTYPE_BF16, BASE_FILE, true, 4, 100, 8},
    {"llama-bias", DTYPE_BF16, BASE_PACKED, false, 4, 120, 4},
    {"qwen3", DTYPE_F32, BASE_PACKED, false, 2, 100, 4},
    {"qwen3", DTYPE_BF16, BASE_PACKED, false, 4, 100, 4},
    {"../golden/bases/gemma2", DTYPE_BF16, BASE_PACKED, false, 2, 100, 4},
    {"../golden/bases/gemma3", DTYPE_F32, BASE_PACKED, true, 2, 60, 4},
    {"../golden/bases/olmo2", DTYPE_BF16, BASE_PACKED, true, 2, 60, 4},
};

Test(memory_plan, counts_what_a_step_takes)
{
    if (!find_shim()) return;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const struct plan_case *k = &cases[i];
        uint64_t plan = planned(k) - WORKSPACE;
        memory_peak(0);
        ok(train(k));
        uint64_t peak = memory_peak(0) - WORKSPACE;
        double part = (double)plan / (double)peak;
        cr_log_info("case %zu: planned %zu, peak %zu: %.3f", i, (size_t)plan, (size_t)peak, part);
        cr_expect(part > 0.95 && part < 1.05, "case %zu: planned %zu, peak %zu: %.3f", i,
                  (size_t)plan, (size_t)peak, part);
    }
}

/* The options that a refusal proposes. */
static struct plan_case proposed(const struct plan_case *k, const char *text)
{
    struct plan_case less = *k;
    const char *at = strstr(text, "it fits with"), *number;
    cr_assert(at, "%s", text);
    if (strstr(at, " --base-memory file")) less.memory = BASE_FILE;
    if (strstr(at, " --checkpoint")) less.checkpoint = true;
    if ((number = strstr(at, " --batch "))) less.batch = (uint32_t)strtoul(number + 9, NULL, 10);
    if ((number = strstr(at, " --seq "))) less.length = (uint32_t)strtoul(number + 7, NULL, 10);
    return less;
}

Test(memory_plan, refuses_before_the_first_step_and_proposes_what_fits)
{
    if (!find_shim()) return;
    static const struct plan_case k = {
        "llama/q8_0.gguf", DTYPE_BF16, BASE_PACKED, false, 4, 128, 8};
    uint64_t plan = planned(&k) - WORKSPACE;
    static const double part[] = {1.02, 0.9, 0.7, 0.4};
    for (size_t i = 0; i < sizeof part / sizeof part[0]; i++) {
        memory_set(0, WORKSPACE + (size_t)(part[i] * (double)plan));
        err e = train(&k);
        cr_log_info("%.2f: %s", part[i], e.text);
        if (part[i] > 1.0) {
            ok(e);
            continue;
        }
        cr_assert(e.kind == ERR_MACHINE && strstr(e.text, "4 x 128 tokens need "), "%.2f: %s",
                  part[i], e.text);
        if (part[i] < 0.5 && strstr(e.text, "no smaller batch fits")) continue;
        struct plan_case less = proposed(&k, e.text);
        ok(train(&less));
    }
    memory_set(0, WORKSPACE + (4 << 10));
    refused(train(&k), ERR_MACHINE, "out of memory");
    memory_set(0, WORKSPACE + (20 << 10));
    refused(train(&k), ERR_MACHINE, "--base-memory packed: the weights need ");
}

/* auto leaves a tenth of the memory free. */
Test(memory_plan, auto_takes_packed_weights_with_a_tenth_to_spare)
{
    if (!find_shim()) return;
    struct plan_case k = {"llama/q8_0.gguf", DTYPE_F32, BASE_AUTO, false, 4, 128, 8};
    static const size_t bytes[] = {1 << 30, WORKSPACE + (64 << 10)};
    static const enum base_memory want[] = {BASE_PACKED, BASE_FILE};
    for (int i = 0; i < 2; i++) {
        struct setup s;
        memory_set(0, bytes[i]);
        ok(setup_open(&s, &k));
        cr_expect_eq(engine_base_memory(s.engine), want[i]);
        setup_close(&s);
    }
}
