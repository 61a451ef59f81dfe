/* A small model of tests/models, its engine, an adapter and rows of random tokens, for tests of the
 * engine. A test calls setup_model(), opens `engine` and `adapter` as it needs them, adds rows, and
 * calls setup_close(), which accepts what is not open. */
#ifndef TESTS_SUPPORT_ENGINE_FIXTURE_H
#define TESTS_SUPPORT_ENGINE_FIXTURE_H

#include "base/rng.h"
#include "engine/adapter.h"
#include "engine/engine.h"
#include "engine/tokens/data.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

enum { SETUP_ROWS = 9, SETUP_LENGTH = 300 };
struct setup {
    struct model model;
    struct engine *engine;
    struct adapter adapter;
    struct dataset data; /* of `row` */
    struct data_row row[SETUP_ROWS];
    struct engine_row
        engine_row[SETUP_ROWS]; /* the same with the adapter, for calls of the engine */
    int32_t id[SETUP_ROWS][SETUP_LENGTH], label[SETUP_ROWS][SETUP_LENGTH];
};

static inline void setup_model(struct setup *s, const char *name)
{
    char path[SUPPORT_PATH_BYTES], full[64];
    memset(s, 0, sizeof *s);
    s->data.row = s->row;
    snprintf(full, sizeof full, "tests/models/%s", name);
    support_source(path, sizeof path, full);
    ok(model_open(&s->model, path));
}

static inline void setup_engine(struct setup *s, enum dtype precision, int threads)
{
    struct engine_options o = {
        .device = support_device(), .precision = precision, .threads = threads};
    ok(engine_open(&s->engine, &s->model, &o));
}

/* Adapts all modules; its B is zero. */
static inline void setup_fresh(struct setup *s, uint32_t rank)
{
    struct adapter_fresh fresh = {.targets = "q,k,v,o,gate,up,down", .rank = rank, .alpha = 8.0};
    ok(adapter_open_fresh(&s->adapter, &s->model.arch, &fresh));
}

/* Adds a row of `count` tokens, of which the first `ignored` are not learned. */
static inline void setup_row(struct setup *s, struct rng *rng, uint32_t count, uint32_t ignored)
{
    size_t i = s->data.count++;
    uint32_t unlearned = ignored ? ignored : 1; /* nothing predicts the first token */
    cr_assert(i < SETUP_ROWS && count <= SETUP_LENGTH);
    for (uint32_t t = 0; t < count; t++) {
        s->id[i][t] = (int32_t)rng_below(rng, s->model.arch.vocab);
        s->label[i][t] = t < ignored ? DATA_IGNORE : s->id[i][t];
    }
    s->row[i] = (struct data_row){.id = s->id[i], .label = s->label[i], .count = count};
    s->engine_row[i] = (struct engine_row){s->id[i], s->label[i], count, &s->adapter};
    s->data.learned += count > unlearned ? count - unlearned : 0;
}

static inline void setup_close(struct setup *s)
{
    adapter_close(&s->adapter);
    engine_close(s->engine);
    model_close(&s->model);
}

#endif
