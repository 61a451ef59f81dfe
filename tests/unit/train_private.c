/* DP-SGD: a whole run against an independent loop, the size of the noise, sampling. Gradients and
 * the guard are in train_private_records.c. */
#include "engine/train/train_keep.h"
#include "tests/support/private_fixture.h"

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

/* The noise is as large with records as without them. */
Test(train_private, a_step_with_records_has_the_same_noise)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    struct seen seen = {.s = &s};
    setup_open(&s, ADAPTER_R);
    options(&t, &o);
    t.steps = 1;
    t.on_step = see;
    t.user = &seen;
    o.noise = 50.0;
    o.clip = 0.3;
    ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
    double n = (double)s.adapter.value_count, want = 50.0 * 0.3 / ROWS * sqrt(n);
    cr_expect(fabs(seen.norm / want - 1.0) < 6.0 / sqrt(2.0 * n) + 0.3 * ROWS / (want * ROWS),
              "norm %g, expected %g", seen.norm, want);
    float *gradient = malloc(s.adapter.value_count * sizeof *gradient);
    ok(train_private_gradient(gradient, &s.adapter, s.engine, &s.data, &o));
    double norm = norm_of(gradient, s.adapter.value_count);
    cr_expect(fabs(norm / want - 1.0) < 6.0 / sqrt(2.0 * n) + 0.3 * ROWS / (want * ROWS),
              "one pass: norm %g, expected %g", norm, want);
    free(gradient);
    setup_close(&s);
}

/* One pass over all records, with hardly any noise, is the mean of the clipped gradients. */
Test(train_private, a_pass_is_the_mean_of_all_clipped_gradients)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    options(&t, &o);
    o.clip = middle_norm(&s);
    size_t n = s.adapter.value_count;
    float *one = malloc(n * sizeof *one), *got = malloc(n * sizeof *got),
          *want = calloc(n, sizeof *want);
    for (size_t i = 0; i < ROWS; i++) {
        one_gradient(one, &s, i);
        double norm = norm_of(one, n), factor = norm > o.clip ? o.clip / norm : 1.0;
        for (size_t k = 0; k < n; k++)
            want[k] += (float)(factor * (double)one[k] / ROWS);
    }
    ok(train_private_gradient(got, &s.adapter, s.engine, &s.data, &o));
    cr_expect_lt(support_distance(got, want, n), 1e-5);
    free(one);
    free(got);
    free(want);
    setup_close(&s);
}

/* Each device draws in the same way, so one that is slow in tests has fewer tries. */
static int tries(int most)
{
    return strcmp(support_device(), "cpu") ? most / 10 : most;
}

/* Records are drawn one by one: their number is binomial, not all or none. */
Test(train_private, draws_each_record_by_itself)
{
    enum { RECORDS = 40 };
    const int times = tries(200);
    static struct data_row row[RECORDS];
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result;
    struct seen seen = {.s = &s};
    double sum = 0.0, squares = 0.0;
    setup_open(&s, ADAPTER_R);
    for (int i = 0; i < RECORDS; i++) {
        row[i] = s.row[0];
        row[i].count = 6;
    }
    s.data.row = row;
    s.data.count = RECORDS;
    options(&t, &o);
    t.steps = 1;
    t.lr = 0.0;
    t.batch = RECORDS;
    t.on_step = see;
    t.user = &seen;
    o.sampling = 0.5;
    o.clip = 1e-3; /* every gradient is longer: the sum counts them */
    for (int i = 0; i < times; i++) {
        ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
        double taken = round(seen.norm * o.sampling * RECORDS / o.clip);
        cr_assert(taken > 0 && taken < RECORDS, "%g of %d: chance 4e-10", taken, RECORDS);
        sum += taken / times;
        squares += (taken - 20) * (taken - 20) / times;
    }
    cr_expect_lt(fabs(sum - 20), 6 * sqrt(10.0 / times), "mean %g", sum);
    cr_expect_lt(fabs(squares - 10), 6 * 10 * sqrt(2.0 / times), "variance %g", squares);
    setup_close(&s);
}

Test(train_private, draws_each_record_at_the_rate)
{
    const int times = tries(400);
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
    t.steps = (uint64_t)times;
    t.lr = 0.0;
    t.on_step = see;
    t.user = &seen;
    o.sampling = 0.3;
    o.clip = 1e-3;
    float *gradient = malloc(s.adapter.value_count * sizeof *gradient);
    one_gradient(gradient, &s, 0);
    cr_assert_gt(norm_of(gradient, s.adapter.value_count), 1e-3);
    for (int i = 0; i < times; i++) {
        t.steps = 1;
        ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
        taken += seen.norm > 0.5 * o.clip / o.sampling;
    }
    double spread = sqrt(times * 0.3 * 0.7);
    cr_expect(fabs(taken - 0.3 * times) < 6.0 * spread, "%d of %d", taken, times);
    free(gradient);
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

/* ---- continued */

static struct train_snapshot kept;

static bool stops_after_two(void *user, const struct train_step *step)
{
    uint64_t *called = user;
    ++*called;
    return kept.steps || step->step + 1 < 2;
}
static bool when_stopped(void *user, bool stopped)
{
    (void)user;
    return stopped;
}
static void keep(void *user, const struct train_snapshot *s)
{
    (void)user;
    kept = *s;
    kept.value = malloc(3 * s->count * sizeof *s->value);
    kept.first = kept.value + s->count;
    kept.second = kept.first + s->count;
    memcpy(kept.value, s->value, s->count * sizeof *s->value);
    memcpy(kept.first, s->first, s->count * sizeof *s->value);
    memcpy(kept.second, s->second, s->count * sizeof *s->value);
}

/* The steps that are done are not done again, and the snapshot has no losses. */
Test(train_private, continues_with_the_steps_that_are_missing)
{
    struct setup s;
    struct train_options t;
    struct train_private_options o;
    struct train_result result = {0};
    uint64_t called = 0;
    struct train_keep hooks = {.due = when_stopped, .take = keep};
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    options(&t, &o);
    t.steps = 5;
    t.keep = &hooks;
    t.on_step = stops_after_two;
    t.user = &called;
    cr_assert_eq(train_private_run(&result, &s.adapter, s.engine, &s.data, &o).kind, ERR_STOPPED);
    cr_expect(kept.steps == 2 && kept.loss_sum == 0 && kept.first_loss == 0 && kept.tokens == 0);
    cr_expect_eq(memcmp(kept.value, s.adapter.value, kept.count * sizeof *kept.value), 0);
    hooks.resume = &kept;
    fill_adapter(&s.adapter, 3);
    ok(train_private_run(&result, &s.adapter, s.engine, &s.data, &o));
    cr_expect_eq(called, 5);
    cr_expect_eq(result.steps, 5);
    free(kept.value);
    setup_close(&s);
}
