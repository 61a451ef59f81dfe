/* The memory of an engine: what is counted, what auto chooses, and what a refusal says. */
#include "engine/engine_plan.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static struct model model;
static struct engine *engine;

static void open_engine(enum base_memory memory)
{
    char path[SUPPORT_PATH_BYTES];
    support_source(path, sizeof path, "tests/models/llama/q8_0.gguf");
    ok(model_open(&model, path));
    struct engine_options o = {
        .device = "cpu", .precision = DTYPE_F32, .threads = 1, .base_memory = memory};
    ok(engine_open(&engine, &model, &o));
}

Test(engine_plan, refuses_heads_that_no_kernel_can_hold)
{
    struct model wide = {.arch = {.head_dim = 2048, .layers = 1}};
    struct engine_options o = {.device = "cpu", .precision = DTYPE_F32, .threads = 1};
    refused(engine_open(&engine, &wide, &o), ERR_INPUT,
            "head dimension is 2048, expected 1 to 1024");
}

static void close_engine(void)
{
    engine_close(engine);
    model_close(&model);
}

/* vocab 40, d 32, ffn 32, 4 heads and 2 key/value heads of 8, one layer, tied */
enum { HEAD = 40 * 32, LAYER = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 32 };

Test(engine_plan, counts_packed_weights_and_those_of_the_file, .fini = close_engine)
{
    struct engine_plan_weights w;
    open_engine(BASE_AUTO);
    engine_plan_weights(&w, engine);
    cr_expect_eq(w.packed, 4 * (HEAD + LAYER));
    cr_expect_eq(w.file, (HEAD + LAYER) / 32 * 34);
}

static const struct pass_size SIZE = {
    .tokens = 4 * 512, .rows = 4, .learned = 4 * 512, .positions = 512, .backward = true};

static const struct engine_plan_adapter ADAPTER = {.values = 1000};

static enum base_memory chosen(enum base_memory asked, uint64_t available)
{
    enum base_memory out = BASE_AUTO;
    ok(engine_plan_choose(&out, engine, asked, &SIZE, available));
    return out;
}

Test(engine_plan, takes_packed_weights_if_they_fit, .fini = close_engine)
{
    open_engine(BASE_AUTO);
    cr_expect_eq(engine_base_memory(engine), BASE_PACKED);
    cr_expect_eq(chosen(BASE_AUTO, UINT64_MAX), BASE_PACKED);
    cr_expect_eq(chosen(BASE_AUTO, 1 << 20), BASE_FILE);
    cr_expect_eq(chosen(BASE_FILE, UINT64_MAX), BASE_FILE);
    cr_expect_eq(chosen(BASE_PACKED, 1 << 20), BASE_PACKED);
    enum base_memory out;
    refused(engine_plan_choose(&out, engine, BASE_PACKED, &SIZE, 1000), ERR_MACHINE,
            "use file or auto");
}

Test(engine_plan, says_what_would_fit, .fini = close_engine)
{
    open_engine(BASE_PACKED);
    struct pass_size less = SIZE;
    less.checkpoint = true;
    uint64_t most = UINT64_MAX >> 1;
    ok(engine_plan_check(engine, &SIZE, &ADAPTER, most));
    /* The least memory with which the whole batch is accepted. */
    for (uint64_t step = most / 2 + 1; step; step /= 2)
        if (most >= step && !err_is(engine_plan_check(engine, &SIZE, &ADAPTER, most - step)))
            most -= step;
    refused(engine_plan_check(engine, &SIZE, &ADAPTER, most - 1), ERR_MACHINE,
            "4 x 512 tokens need ");
    refused(engine_plan_check(engine, &SIZE, &ADAPTER, most - 1), ERR_MACHINE, "it fits with ");
    /* Without the activations of one of four rows. */
    uint64_t row = pass_bytes(engine, &less) / 4;
    while (!err_is(engine_plan_check(engine, &less, &ADAPTER, most)))
        most -= row;
    refused(engine_plan_check(engine, &less, &ADAPTER, most), ERR_MACHINE, "--batch ");
    refused(engine_plan_check(engine, &less, &ADAPTER, 1000), ERR_MACHINE, "no smaller batch fits");
}

Test(engine_plan, counts_a_gradient_for_each_row, .fini = close_engine)
{
    open_engine(BASE_PACKED);
    struct engine_plan_adapter each = {.values = 1000000, .each_row = true};
    struct engine_plan_adapter sum = {.values = 1000000};
    uint64_t most = 200000000;
    while (!err_is(engine_plan_check(engine, &SIZE, &sum, most)))
        most -= 1000000;
    ok(engine_plan_check(engine, &SIZE, &sum, most + 1000000));
    refused(engine_plan_check(engine, &SIZE, &each, most + 15000000), ERR_MACHINE, "free");
    ok(engine_plan_check(engine, &SIZE, &each, most + 17000000));
}
