/* DP-SGD: gradients by record against single records and finite differences, a whole run against an
 * independent loop, the size of the noise, sampling, the guard. */
#include "client/train_private.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, LENGTH = 33, RANK = 5 };

struct setup {
    struct model model;
    struct engine *engine;
    struct adapter adapter;
    struct dataset data;
    struct data_row row[ROWS];
    struct engine_row engine_row[ROWS];
    int32_t id[ROWS][LENGTH], label[ROWS][LENGTH];
};

static void fill_adapter(struct adapter *ad, uint64_t seed)
{
    struct rng rng;
    rng_init(&rng, "test", seed, "values", 0);
    for (size_t i = 0; i < ad->count; i++) {
        struct adapter_module *m = &ad->module[i];
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 0.2);
        rng_fill_uniform(&rng, m->b, (size_t)m->d_out * m->rank, 0.2);
        if (m->r) rng_fill_uniform(&rng, m->r, (size_t)m->rank * m->rank, 0.5);
    }
}

static void setup_open(struct setup *s, unsigned trains)
{
    char path[SUPPORT_PATH_BYTES];
    struct adapter_spec spec[LIMIT_MODULES];
    struct rng rng;
    size_t count = 0;
    memset(s, 0, sizeof *s);
    support_source(path, sizeof path, "tests/models/llama");
    ok(model_open(&s->model, path));
    struct engine_options o = {.precision = DTYPE_F32, .threads = 2};
    ok(engine_open(&s->engine, &s->model, &o));
    for (uint32_t layer = 0; layer < s->model.arch.layers; layer++)
        for (int kind = 0; kind < MODULE_KINDS; kind++)
            spec[count++] = (struct adapter_spec){.layer = layer,
                                                  .kind = (enum module_kind)kind,
                                                  .rank = RANK,
                                                  .small_matrix = trains & ADAPTER_R,
                                                  .scale = 0.7};
    ok(adapter_open(&s->adapter, &s->model.arch, spec, count, trains));
    fill_adapter(&s->adapter, 3);
    rng_init(&rng, "test", 5, "rows", 0);
    for (int i = 0; i < ROWS; i++) {
        uint32_t n = i == 3 ? 0 : i == 4 ? 2 : LENGTH - 6 * (uint32_t)i; /* 4 learns nothing */
        for (uint32_t t = 0; t < n; t++) {
            s->id[i][t] = (int32_t)rng_below(&rng, s->model.arch.vocab);
            s->label[i][t] = t < 2 ? DATA_IGNORE : s->id[i][t];
        }
        s->row[i] = (struct data_row){.id = s->id[i], .label = s->label[i], .count = n};
        s->engine_row[i] = (struct engine_row){s->id[i], s->label[i], n, &s->adapter};
        s->data.learned += n > 2 ? n - 2 : 0;
    }
    s->data.row = s->row;
    s->data.count = ROWS;
}

static void setup_close(struct setup *s)
{
    adapter_close(&s->adapter);
    engine_close(s->engine);
    model_close(&s->model);
}

static double mean_of(const struct engine_row *row)
{
    return row->count > 2 ? 1.0 / (row->count - 2.0) : 0.0;
}

/* The gradient of one row's mean by itself. */
static void one_gradient(float *out, struct setup *s, size_t i)
{
    double nll;
    struct engine_gradient into = {out, &s->adapter};
    struct engine_pass_options pass = {.scale = mean_of(&s->engine_row[i])};
    memset(out, 0, s->adapter.value_count * sizeof *out);
    ok(engine_gradients(&nll, s->engine, &s->engine_row[i], 1, &into, 1, &pass));
}

static double norm_of(const float *x, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sqrt(sum);
}

/* The slope of the row's mean loss along its own gradient is the gradient's norm. */
static void check_slope(struct setup *s, size_t i, const float *gradient)
{
    size_t n = s->adapter.value_count;
    float *start = malloc(n * sizeof *start);
    double norm = norm_of(gradient, n), step = 0.05 / norm, nll[2];
    memcpy(start, s->adapter.value, n * sizeof *start);
    for (int side = 0; side < 2; side++) {
        for (size_t k = 0; k < n; k++)
            s->adapter.value[k] =
                start[k] + (float)((side ? step : -step) / norm * (double)gradient[k]);
        ok(engine_nll(&nll[side], s->engine, &s->engine_row[i], 1));
    }
    memcpy(s->adapter.value, start, n * sizeof *start);
    double slope = (nll[1] - nll[0]) * mean_of(&s->engine_row[i]) / (2.0 * step);
    cr_expect(fabs(slope / norm - 1.0) < 0.02, "row %zu: slope %g, norm %g", i, slope, norm);
    free(start);
}

static void check_each(unsigned trains)
{
    struct setup s;
    setup_open(&s, trains);
    size_t n = s.adapter.value_count;
    float *each = malloc(ROWS * n * sizeof *each), *one = malloc(n * sizeof *one);
    ok(train_private_gradients(each, s.engine, &s.adapter, s.engine_row, ROWS));
    for (size_t i = 0; i < ROWS; i++) {
        one_gradient(one, &s, i);
        if (i == 3 || i == 4) {
            cr_expect_eq(norm_of(each + i * n, n), 0.0);
            continue;
        }
        double far = support_distance(each + i * n, one, n);
        cr_expect_lt(far, 1e-5, "trains %u, row %zu: %g", trains, i, far);
        check_slope(&s, i, each + i * n);
    }
    free(each);
    free(one);
    setup_close(&s);
}

Test(train_private, has_the_gradient_of_every_record)
{
    check_each(ADAPTER_R);
    check_each(ADAPTER_B);
    check_each(ADAPTER_A | ADAPTER_B);
}

static void options(struct train_options *t, struct train_private_options *o)
{
    train_defaults(t);
    t->steps = 3;
    t->batch = 4;
    t->lr = 2e-3;
    t->eps = 1e-3; /* rounding errors and the least noise make no step */
    t->schedule = TRAIN_CONSTANT;
    *o = (struct train_private_options){.train = t, .sampling = 1.0, .noise = 1e-7, .clip = 1.0};
}

/* Clipped mean and AdamW in float64, record by record. */
static void reference(double *value, struct setup *s, const struct train_private_options *o,
                      int *clipped)
{
    size_t n = s->adapter.value_count;
    double *first = calloc(n, 8), *second = calloc(n, 8), *mean = calloc(n, 8);
    float *one = malloc(n * sizeof *one);
    const struct train_options *t = o->train;
    for (uint64_t step = 1; step <= t->steps; step++) {
        memset(mean, 0, n * sizeof *mean);
        for (size_t i = 0; i < ROWS; i++) {
            one_gradient(one, s, i);
            double norm = norm_of(one, n), factor = norm > o->clip ? o->clip / norm : 1.0;
            *clipped += norm > o->clip;
            for (size_t k = 0; k < n; k++)
                mean[k] += factor * (double)one[k] / ROWS;
        }
        for (size_t k = 0; k < n; k++) {
            first[k] = t->beta1 * first[k] + (1.0 - t->beta1) * mean[k];
            second[k] = t->beta2 * second[k] + (1.0 - t->beta2) * mean[k] * mean[k];
            double m = first[k] / (1.0 - pow(t->beta1, (double)step));
            double v = second[k] / (1.0 - pow(t->beta2, (double)step));
            value[k] -= t->lr * m / (sqrt(v) + t->eps);
            s->adapter.value[k] = (float)value[k];
        }
    }
    free(first);
    free(second);
    free(mean);
    free(one);
}

/* Between the norms of the records, so that some are clipped. */
static double middle_norm(struct setup *s)
{
    float *one = malloc(s->adapter.value_count * sizeof *one);
    double least = INFINITY, most = 0.0;
    for (size_t i = 0; i < ROWS; i++) {
        one_gradient(one, s, i);
        double norm = norm_of(one, s->adapter.value_count);
        if (norm > 0.0) least = fmin(least, norm);
        most = fmax(most, norm);
    }
    free(one);
    return 0.5 * (least + most);
}

static void check_run(unsigned trains, double clip, int least, int most)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    int clipped = 0;
    setup_open(&s, trains);
    options(&t, &o);
    o.clip = clip > 0.0 ? clip : middle_norm(&s);
    size_t n = s.adapter.value_count;
    float *start = malloc(n * sizeof *start), *trained = malloc(n * sizeof *trained);
    double *value = malloc(n * sizeof *value), wrong = 0.0, moved = 0.0;
    memcpy(start, s.adapter.value, n * sizeof *start);
    ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
    cr_expect_eq(result.steps, t.steps);
    memcpy(trained, s.adapter.value, n * sizeof *trained);
    memcpy(s.adapter.value, start, n * sizeof *start);
    for (size_t k = 0; k < n; k++)
        value[k] = (double)start[k];
    reference(value, &s, &o, &clipped);
    for (size_t k = 0; k < n; k++) {
        wrong += pow((double)trained[k] - value[k], 2.0);
        moved += pow((double)start[k] - value[k], 2.0);
    }
    cr_expect_lt(sqrt(wrong / moved), 1e-3, "trains %u, clip %g: %g", trains, clip,
                 sqrt(wrong / moved));
    cr_expect(clipped >= least && clipped <= most, "%d records were clipped", clipped);
    free(start);
    free(trained);
    free(value);
    setup_close(&s);
}

Test(train_private, clips_and_averages_as_an_independent_loop_does)
{
    check_run(ADAPTER_R, 0.02, 12, 12);
    check_run(ADAPTER_R, 100.0, 0, 0);
    check_run(ADAPTER_R, 0.0, 1, 11);
    check_run(ADAPTER_A | ADAPTER_B, 0.0, 1, 11);
    check_run(ADAPTER_B, 0.05, 12, 12);
    check_run(ADAPTER_A | ADAPTER_B, 0.05, 12, 12);
}

struct seen {
    struct setup *s;
    double norm;
    int steps;
};

static bool see(void *user, const struct train_step *step)
{
    struct seen *seen = user;
    seen->norm = step->grad_norm;
    seen->steps++;
    cr_expect(step->loss == 0.0 && step->tokens == 0 && step->learned == 0,
              "a step tells what it did not release");
    return true;
}

Test(train_private, takes_a_step_of_noise_alone_when_no_record_is_drawn)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    struct seen seen = {.s = &s};
    setup_open(&s, ADAPTER_R);
    options(&t, &o);
    t.on_step = see;
    t.user = &seen;
    o.sampling = 1e-12;
    o.noise = 2.0;
    o.clip = 0.3;
    ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
    cr_expect_eq(seen.steps, 3);
    double n = (double)s.adapter.value_count, want = 2.0 * 0.3 / (1e-12 * ROWS) * sqrt(n);
    cr_expect(fabs(seen.norm / want - 1.0) < 6.0 / sqrt(2.0 * n), "norm %g, expected %g", seen.norm,
              want);
    setup_close(&s);
}

Test(train_private, draws_each_record_at_the_rate)
{
    enum { TIMES = 400 };
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    struct seen seen = {.s = &s};
    int taken = 0;
    setup_open(&s, ADAPTER_R);
    s.data.count = 1;
    s.row[0].count = s.engine_row[0].count = 6;
    options(&t, &o);
    t.steps = TIMES;
    t.lr = 0.0;
    t.on_step = see;
    t.user = &seen;
    o.sampling = 0.3;
    o.clip = 1e-3;
    float *gradient = malloc(s.adapter.value_count * sizeof *gradient);
    one_gradient(gradient, &s, 0);
    cr_assert_gt(norm_of(gradient, s.adapter.value_count), 1e-3);
    for (int i = 0; i < TIMES; i++) {
        t.steps = 1;
        ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
        taken += seen.norm > 0.5 * o.clip / o.sampling;
    }
    double spread = sqrt(TIMES * 0.3 * 0.7);
    cr_expect(fabs(taken - 0.3 * TIMES) < 6.0 * spread, "%d of %d", taken, TIMES);
    free(gradient);
    setup_close(&s);
}

static bool meddle(void *user, const struct train_step *step)
{
    struct setup *s = user;
    struct adapter_module *m = &s->adapter.module[1];
    if (step->step == 0) m->a[(size_t)m->rank * m->d_in - 1] += 1e-3f;
    return true;
}

Test(train_private, stops_when_a_frozen_tensor_moves)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    setup_open(&s, ADAPTER_R);
    options(&t, &o);
    t.on_step = meddle;
    t.user = &s;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_STATE,
            "step 1: a tensor that does not train has changed");
    setup_close(&s);
}

Test(train_private, counts_epochs_at_the_expected_batch)
{
    struct train_options t;
    struct train_private_options o;
    options(&t, &o);
    cr_expect_eq(train_private_steps(&o), 3);
    t.steps = 0;
    t.epochs = 2.0;
    o.sampling = 0.01;
    cr_expect_eq(train_private_steps(&o), 200);
}

Test(train_private, refuses_options_out_of_range)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    setup_open(&s, ADAPTER_R);
    options(&t, &o);
    o.sampling = 0.0;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "sampling 0");
    o.sampling = 1.5;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT,
            "sampling 1.5");
    o.sampling = 0.5;
    o.noise = 0.0;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "noise 0");
    o.noise = 1.0;
    o.clip = 0.0;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT,
            "clip norm 0");
    o.clip = 1.0;
    t.dropout = 0.1;
    refused(train_private_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT,
            "dropout 0.1");
    setup_close(&s);
}
