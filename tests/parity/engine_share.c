/* Engines over one packed base: each has the bits of an engine alone, also in two threads. */
#include "engine/engine.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <omp.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 3, TOKENS = 20, TURNS = 8 };
static int32_t id[ROWS][TOKENS];

struct worker {
    struct engine *engine;
    struct adapter *adapter;
    float *gradient; /* of the last turn */
    double nll[ROWS];
    err error;
};

static void measure(struct worker *w)
{
    struct engine_row row[ROWS];
    struct engine_gradient into = {w->gradient, w->adapter};
    const struct engine_pass_options pass = {.scale = 1};
    for (int i = 0; i < ROWS; i++)
        row[i] = (struct engine_row){id[i], id[i], (uint32_t)(TOKENS - 3 * i), w->adapter};
    memset(w->gradient, 0, w->adapter->value_count * sizeof *w->gradient);
    w->error = engine_gradients(w->nll, w->engine, row, ROWS, &into, 1, &pass);
}

static void *work(void *argument)
{
    struct worker *w = argument;
    omp_set_num_threads(1);
    for (int i = 0; i < TURNS && !err_is(w->error); i++)
        measure(w);
    return NULL;
}

static void compare(enum dtype precision)
{
    char path[SUPPORT_PATH_BYTES];
    struct model model = {0};
    struct adapter adapter = {0};
    struct worker worker[2] = {0}, alone = {0};
    pthread_t thread;
    support_source(path, sizeof path, "tests/models/llama/q8_0.gguf");
    ok(model_open(&model, path));
    for (int i = 0; i < ROWS * TOKENS; i++)
        id[i / TOKENS][i % TOKENS] = 3 + i * 7 % 36;
    const struct adapter_fresh fresh = {
        .targets = "q,k,v,o,gate,up,down", .rank = 4, .alpha = 8, .seed = 1};
    ok(adapter_open_fresh(&adapter, &model.arch, &fresh));
    for (size_t i = 0; i < adapter.value_count; i++)
        adapter.value[i] += 0.01f * (float)((int)(i % 7) - 3); /* B is zero at first */
    const struct engine_options o = {.device = "cpu", .precision = precision, .threads = 1};
    ok(engine_open(&worker[0].engine, &model, &o));
    ok(engine_share(&worker[1].engine, worker[0].engine, 1));
    alone.engine = worker[0].engine;
    alone.adapter = worker[0].adapter = worker[1].adapter = &adapter;
    size_t bytes = adapter.value_count * sizeof(float);
    alone.gradient = malloc(bytes);
    worker[0].gradient = malloc(bytes);
    worker[1].gradient = malloc(bytes);
    measure(&alone);
    ok(alone.error);
    cr_assert_eq(pthread_create(&thread, NULL, work, &worker[1]), 0);
    work(&worker[0]);
    pthread_join(thread, NULL);
    for (int i = 0; i < 2; i++) {
        ok(worker[i].error);
        cr_expect_eq(memcmp(worker[i].nll, alone.nll, sizeof alone.nll), 0, "engine %d", i);
        cr_expect_eq(memcmp(worker[i].gradient, alone.gradient, bytes), 0, "engine %d", i);
        free(worker[i].gradient);
    }
    free(alone.gradient);
    engine_close(worker[1].engine);
    engine_close(worker[0].engine);
    adapter_close(&adapter);
    model_close(&model);
}

Test(engine_share, two_engines_over_one_base_have_the_bits_of_one_alone)
{
    compare(DTYPE_F32);
    compare(DTYPE_BF16);
}
