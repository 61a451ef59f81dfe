/* The terms added to the loss, against plain loops in float64 and finite differences; the gradient
 * pass against single rows. */
#include "engine/train/train_penalty.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, LENGTH = 30, RANK = 5 };
static const double GAMMA = 0.5; /* keeps 2 of 5 */

static void setup_open(struct setup *s, unsigned trains)
{
    struct adapter_spec spec[LIMIT_MODULES];
    struct rng rng;
    size_t count = 0;
    setup_model(s, "llama");
    setup_engine(s, DTYPE_F32, 2);
    for (uint32_t layer = 0; layer < s->model.arch.layers; layer++)
        for (int kind = 0; kind < MODULE_UNFUSED; kind += 2)
            spec[count++] = (struct adapter_spec){
                .layer = layer, .kind = (enum module_kind)kind, .rank = RANK, .scale = 0.7};
    ok(adapter_open(&s->adapter, &s->model.arch, spec, count, trains));
    rng_init(&rng, "test", 3, "values", 0);
    for (size_t i = 0; i < s->adapter.count; i++) {
        struct adapter_module *m = &s->adapter.module[i];
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 0.2);
        rng_fill_uniform(&rng, m->b, (size_t)m->d_out * m->rank, 0.2);
    }
    for (uint32_t i = 0; i < ROWS; i++)
        setup_row(s, &rng, LENGTH - 5 * i, 4);
}

/* Sum of |B[:, 2:]| |A[2:, :]| by the definition. */
static double tail_by_loops(const struct adapter *ad)
{
    double sum = 0.0;
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *m = &ad->module[i];
        double a = 0.0, b = 0.0;
        for (uint32_t k = 2; k < m->rank; k++) {
            for (uint32_t j = 0; j < m->d_in; j++)
                a += pow((double)m->a[k * m->d_in + j], 2.0);
            for (uint32_t j = 0; j < m->d_out; j++)
                b += pow((double)m->b[j * m->rank + k], 2.0);
        }
        sum += sqrt(a) * sqrt(b);
    }
    return sum;
}

static void check_slopes(unsigned trains, double lambda)
{
    struct setup s;
    setup_open(&s, trains);
    size_t n = s.adapter.value_count;
    float *gradient = malloc(n * sizeof *gradient);
    struct train_options o = {.prune_lambda = lambda, .prune_gamma = GAMMA};
    double value = train_penalty(gradient, &s.adapter, &o);
    cr_expect_float_eq(value / (lambda * tail_by_loops(&s.adapter)), 1.0, 1e-12);
    for (size_t i = 0; i < n; i += 37) {
        float was = s.adapter.value[i], step = 1.0f / 256.0f; /* exact enough */
        s.adapter.value[i] = was + step;
        double up = tail_by_loops(&s.adapter), high = (double)s.adapter.value[i];
        s.adapter.value[i] = was - step;
        double down = tail_by_loops(&s.adapter), low = (double)s.adapter.value[i];
        s.adapter.value[i] = was;
        double slope = lambda * (up - down) / (high - low);
        cr_expect(fabs(slope - (double)gradient[i]) <= 1e-4 * (fabs(slope) + 1e-2),
                  "value %zu: %g, the slope is %g", i, (double)gradient[i], slope);
    }
    free(gradient);
    setup_close(&s);
}

Test(train_penalty, has_the_slopes_of_its_terms)
{
    check_slopes(ADAPTER_A | ADAPTER_B, 0.7);
    check_slopes(ADAPTER_A, 0.7);
    check_slopes(ADAPTER_B, 0.7);
}

Test(train_penalty, has_no_slope_where_a_tail_is_zero)
{
    struct setup s;
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    size_t n = s.adapter.value_count;
    float *gradient = malloc(n * sizeof *gradient);
    memset(s.adapter.value, 0, n * sizeof(float));
    struct train_options o = {.prune_lambda = 1.0, .prune_gamma = GAMMA};
    cr_expect_eq(train_penalty(gradient, &s.adapter, &o), 0.0);
    for (size_t i = 0; i < n; i++)
        cr_assert_eq(gradient[i], 0.0f);
    free(gradient);
    setup_close(&s);
}

struct reference { /* AdamW on loss + terms, in float64, its own loop */
    double *value, *first, *second;
};

static void reference_step(struct reference *r, struct setup *s, const float *start,
                           const struct train_options *o, size_t step)
{
    size_t n = s->adapter.value_count;
    float *gradient = calloc(n, sizeof *gradient), *added = calloc(n, sizeof *added);
    double nll[2];
    struct engine_row row[2];
    uint32_t learned = 0;
    for (int i = 0; i < 2; i++) {
        const struct data_row *from = &s->row[(2 * step + (size_t)i) % ROWS];
        row[i] = (struct engine_row){from->id, from->label, from->count, &s->adapter};
        learned += from->count - 4;
    }
    struct engine_gradient into = {gradient, &s->adapter};
    struct engine_pass_options pass = {.scale = 1.0 / learned};
    ok(engine_gradients(nll, s->engine, row, 2, &into, 1, &pass));
    if (o->prune_lambda > 0.0) train_penalty(added, &s->adapter, o); /* checked by slopes above */
    for (size_t i = 0; i < n; i++) {
        double g =
            (double)gradient[i] + (double)added[i] + o->prox * (r->value[i] - (double)start[i]);
        r->first[i] = o->beta1 * r->first[i] + (1.0 - o->beta1) * g;
        r->second[i] = o->beta2 * r->second[i] + (1.0 - o->beta2) * g * g;
        double m = r->first[i] / (1.0 - pow(o->beta1, (double)step + 1.0));
        double v = r->second[i] / (1.0 - pow(o->beta2, (double)step + 1.0));
        r->value[i] -= o->lr * m / (sqrt(v) + o->eps);
        s->adapter.value[i] = (float)r->value[i];
    }
    free(gradient);
    free(added);
}

static bool penalty_grows(void *user, const struct train_step *s)
{
    double *last = user;
    cr_expect(s->step == 0 ? s->penalty == 0.0 : s->penalty > 0.0);
    *last = s->penalty;
    return true;
}

Test(train_penalty, draws_a_training_run_as_an_independent_loop_has_it)
{
    struct setup s;
    enum { STEPS = 4 };
    struct train_options o;
    struct train_result result;
    double last = 0.0;
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    size_t n = s.adapter.value_count;
    float *start = malloc(n * sizeof *start), *trained = malloc(n * sizeof *trained);
    struct reference r = {calloc(n, 8), calloc(n, 8), calloc(n, 8)};
    memcpy(start, s.adapter.value, n * sizeof *start);
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = 2;
    o.lr = 2e-3;
    o.eps = 1e-4; /* else Adam makes a gradient of rounding errors into a step */
    o.clip = 0.0;
    o.schedule = TRAIN_CONSTANT;
    o.shuffle = false;
    o.prox = 3.0;
    o.on_step = penalty_grows;
    o.user = &last;
    ok(train_run(&result, &s.adapter, s.engine, &s.data, &o));
    memcpy(trained, s.adapter.value, n * sizeof *trained);
    cr_expect_gt(last, 0.0);
    memcpy(s.adapter.value, start, n * sizeof *start);
    for (size_t i = 0; i < n; i++)
        r.value[i] = (double)start[i];
    for (size_t step = 0; step < STEPS; step++)
        reference_step(&r, &s, start, &o, step);
    double wrong = 0.0, moved = 0.0;
    for (size_t i = 0; i < n; i++) {
        wrong += pow((double)trained[i] - r.value[i], 2.0);
        moved += pow((double)start[i] - r.value[i], 2.0);
    }
    cr_expect_lt(sqrt(wrong / moved), 1e-4, "%g", sqrt(wrong / moved));
    free(start);
    free(trained);
    free(r.value);
    free(r.first);
    free(r.second);
    setup_close(&s);
}

Test(train_penalty, prunes_a_rank_whose_tail_became_smaller)
{
    struct train_result smaller = {.tail_before = 2.0, .tail_after = 1.0};
    struct train_result same = {.tail_before = 2.0, .tail_after = 2.0};
    cr_expect_eq(train_pruned_rank(8, 0.99, &smaller), 7);
    cr_expect_eq(train_pruned_rank(10, 0.7, &smaller), 7); /* 0.7 * 10 < 7 in floating point */
    cr_expect_eq(train_pruned_rank(8, 1.0, &smaller), 8);
    cr_expect_eq(train_pruned_rank(1, 0.5, &smaller), 1);
    cr_expect_eq(train_pruned_rank(8, 0.5, &same), 8);
    struct setup s;
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    cr_expect_float_eq(train_tail(&s.adapter, GAMMA) / tail_by_loops(&s.adapter), 1.0, 1e-12);
    cr_expect_eq(train_tail(&s.adapter, 1.0), 0.0);
    struct train_options o;
    struct train_result result;
    train_defaults(&o);
    o.steps = 3;
    o.lr = 1e-2;
    o.prune_lambda = 100.0;
    o.prune_gamma = GAMMA;
    double before = tail_by_loops(&s.adapter);
    ok(train_run(&result, &s.adapter, s.engine, &s.data, &o));
    cr_expect_float_eq(result.tail_before / before, 1.0, 1e-12);
    cr_expect_float_eq(result.tail_after / tail_by_loops(&s.adapter), 1.0, 1e-12);
    cr_expect_lt(result.tail_after, result.tail_before);
    setup_close(&s);
}

Test(train_penalty, refuses_terms_out_of_range)
{
    struct setup s;
    struct train_options o;
    struct train_result result;
    setup_open(&s, ADAPTER_A | ADAPTER_B);
    train_defaults(&o);
    o.prox = -1.0;
    refused(train_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "prox -1");
    o.prox = 0.0;
    o.prune_lambda = 1.0;
    refused(train_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "prune_gamma 0");
    o.prune_gamma = 1.5;
    refused(train_run(&result, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "prune_gamma 1.5");
    setup_close(&s);
}

/* The mean over all tokens of the rows chosen, one row at a time. */
static void check_gradient(struct setup *s, const struct train_gradient_options *o,
                           const uint32_t *row, size_t rows)
{
    size_t n = s->adapter.value_count;
    double *want = calloc(n, sizeof *want), loss = 0.0, wrong = 0.0, square = 0.0;
    float *one = malloc(n * sizeof *one);
    struct train_gradient g = {.value = malloc(n * sizeof(float))};
    uint64_t learned = 0;
    for (size_t i = 0; i < rows; i++) {
        const struct data_row *r = &s->row[row[i]];
        struct engine_row er = {r->id, r->label, r->count, &s->adapter};
        struct engine_gradient into = {one, &s->adapter};
        struct engine_pass_options pass = {.scale = 1.0};
        double nll;
        memset(one, 0, n * sizeof *one);
        ok(engine_gradients(&nll, s->engine, &er, 1, &into, 1, &pass));
        for (size_t k = 0; k < n; k++)
            want[k] += (double)one[k];
        loss += nll;
        learned += r->count - 4;
    }
    ok(train_gradient_run(&g, &s->adapter, s->engine, &s->data, o));
    for (size_t k = 0; k < n; k++) {
        want[k] /= (double)learned;
        wrong += pow((double)g.value[k] - want[k], 2.0);
        square += want[k] * want[k];
    }
    cr_expect_gt(square, 0.0);
    cr_expect_lt(sqrt(wrong / square), 1e-6, "%g", sqrt(wrong / square));
    cr_expect_float_eq(g.loss / (loss / (double)learned), 1.0, 1e-6);
    cr_expect_eq(g.learned, learned);
    free(want);
    free(one);
    free(g.value);
}

Test(train_penalty, passes_the_mean_gradient_of_the_rows_chosen)
{
    struct setup s;
    setup_open(&s, ADAPTER_B);
    const uint32_t all[ROWS] = {0, 1, 2, 3, 4};
    uint32_t order[ROWS];
    check_gradient(&s, &(struct train_gradient_options){.batch = 2}, all, ROWS);
    check_gradient(&s, &(struct train_gradient_options){.batch = 8, .checkpoint = true}, all, ROWS);
    check_gradient(&s, &(struct train_gradient_options){.batch = 2, .rows = 3}, all, 3);
    struct train_options shuffle = {.seed = 9, .shuffle = true};
    train_order(order, ROWS, &shuffle, 1);
    check_gradient(
        &s, &(struct train_gradient_options){.batch = 1, .rows = 2, .seed = 9, .shuffle = true},
        order, 2);
    /* where the other factor is zero, as the gradient basis has it */
    for (size_t i = 0; i < s.adapter.count; i++)
        memset(s.adapter.module[i].b, 0, (size_t)s.adapter.module[i].d_out * RANK * sizeof(float));
    check_gradient(&s, &(struct train_gradient_options){.batch = 3}, all, ROWS);
    setup_close(&s);
}

Test(train_penalty, refuses_a_gradient_of_nothing)
{
    struct setup s;
    struct train_gradient g = {0};
    struct train_gradient_options o = {.batch = 2, .rows = 1};
    setup_open(&s, ADAPTER_B);
    g.value = calloc(s.adapter.value_count, sizeof(float));
    for (int i = 0; i < ROWS; i++)
        for (int t = 0; t < LENGTH; t++)
            s.label[i][t] = DATA_IGNORE;
    refused(train_gradient_run(&g, &s.adapter, s.engine, &s.data, &o), ERR_INPUT,
            "no token to learn");
    o.batch = 0;
    refused(train_gradient_run(&g, &s.adapter, s.engine, &s.data, &o), ERR_INPUT, "batch 0");
    o.batch = 1;
    s.adapter.value_count = 0;
    refused(train_gradient_run(&g, &s.adapter, s.engine, &s.data, &o), ERR_INPUT,
            "no values that train");
    free(g.value);
    setup_close(&s);
}
