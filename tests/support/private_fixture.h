/* A small model, its rows and the options of DP-SGD, for tests of private training. Row 3 is
 * empty and row 4 has no token to learn, so their gradients are zero. */
#ifndef TESTS_SUPPORT_PRIVATE_FIXTURE_H
#define TESTS_SUPPORT_PRIVATE_FIXTURE_H

#include "engine/train/train_private.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, LENGTH = 33, RANK = 5, SETUP_SMALL = 64 /* an R that does not train */ };

static inline void fill_adapter(struct adapter *ad, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, "test", seed, "values", 0);
    for (size_t i = 0; i < ad->count; i++) {
        struct adapter_module *m = &ad->module[i];
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 0.2);
        rng_fill_uniform(&rng, m->b, (size_t)m->d_out * m->rank, 0.2);
        if (m->r) rng_fill_uniform(&rng, m->r, (size_t)m->rank * m->rank, 0.5);
        rng_fill_uniform(&rng, m->carry_a, (size_t)m->carry_rank * m->d_in, 0.1);
        rng_fill_uniform(&rng, m->carry_b, (size_t)m->d_out * m->carry_rank, 0.1);
    }
}

static inline void setup_open(struct setup *s, unsigned trains)
{
    struct adapter_spec spec[LIMIT_MODULES];
    struct rng rng;
    size_t count = 0;
    setup_model(s, "llama");
    setup_engine(s, DTYPE_F32, 2);
    for (uint32_t layer = 0; layer < s->model.arch.layers; layer++)
        for (int kind = 0; kind < MODULE_UNFUSED; kind++)
            spec[count++] =
                (struct adapter_spec){.layer = layer,
                                      .kind = (enum module_kind)kind,
                                      .rank = RANK,
                                      .small_matrix = trains & (ADAPTER_R | SETUP_SMALL),
                                      .carry_rank = 2,
                                      .scale = 0.7};
    ok(adapter_open(&s->adapter, &s->model.arch, spec, count, trains & ~(unsigned)SETUP_SMALL));
    fill_adapter(&s->adapter, 3);
    rng_init(&rng, "test", 5, "rows", 0);
    for (uint32_t i = 0; i < ROWS; i++) /* row 4 learns nothing */
        setup_row(s, &rng, i == 3 ? 0 : i == 4 ? 2 : LENGTH - 6 * i, 2);
}

static inline double mean_of(const struct engine_row *row)
{
    return row->count > 2 ? 1.0 / (row->count - 2.0) : 0.0;
}

/* The gradient of the mean loss of one row alone. */
static inline void one_gradient(float *out, struct setup *s, size_t i)
{
    double nll;
    struct engine_gradient into = {out, &s->adapter};
    struct engine_pass_options pass = {.scale = mean_of(&s->engine_row[i])};
    memset(out, 0, s->adapter.value_count * sizeof *out);
    ok(engine_gradients(&nll, s->engine, &s->engine_row[i], 1, &into, 1, &pass));
}

static inline double norm_of(const float *x, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* Along its own gradient, the mean loss of the row has the norm of the gradient as slope. */
static inline void options(struct train_options *t, struct train_private_options *o)
{
    train_defaults(t);
    t->steps = 3;
    t->batch = 4;
    t->lr = 2e-3;
    t->eps = 1e-3; /* rounding errors and the least noise make no step */
    t->schedule = TRAIN_CONSTANT;
    *o = (struct train_private_options){.train = t, .sampling = 1.0, .noise = 1e-7, .clip = 1.0};
}

#endif
