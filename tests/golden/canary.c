/* An attack on private training. It guesses from the predictions of the trained model which
 * canaries were in the data. The number of right guesses gives a lower bound of epsilon (Steinke,
 * Nasr, Jagielski 2023, "Privacy auditing with one training run", theorem 5.2).
 *
 * Each of M canaries, rows of random tokens, is in the data with probability one half. If training
 * has (epsilon, delta) against one row more or less, the number of right guesses among M is at
 * least v with a probability of at most P(Binomial(M, e^epsilon / (1 + e^epsilon)) >= v) + 2 M
 * delta. So every epsilon for which this is below DOUBT is refuted, and a training that keeps its
 * epsilon is refuted wrongly with a probability of at most DOUBT. */
#include "base/rng.h"
#include "engine/train/train_private.h"
#include "privacy/account/account.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { CANARIES = 128, LENGTH = 12, STEPS = 80, RANK = 16 };
static const double doubt = 1e-6, stated_epsilon = 1, stated_delta = 1e-9;

struct trial {
    struct model model;
    struct engine *engine;
    struct adapter adapter;
    struct dataset data; /* the canaries that are in it */
    struct data_row row[CANARIES];
    struct engine_row canary[CANARIES];
    bool in[CANARIES];
    int32_t id[CANARIES][LENGTH];
};

static void trial_open(struct trial *s, uint64_t seed)
{
    char path[SUPPORT_PATH_BYTES];
    struct adapter_spec spec[LIMIT_MODULES];
    struct rng rng;
    size_t count = 0;
    memset(s, 0, sizeof *s);
    support_source(path, sizeof path, "tests/models/llama");
    ok(model_open(&s->model, path));
    struct engine_options o = {.device = "cpu", .precision = DTYPE_F32, .threads = 1};
    ok(engine_open(&s->engine, &s->model, &o));
    for (uint32_t layer = 0; layer < s->model.arch.layers; layer++)
        for (int kind = 0; kind < MODULE_UNFUSED; kind++)
            spec[count++] = (struct adapter_spec){
                .layer = layer, .kind = (enum module_kind)kind, .rank = RANK, .scale = 1};
    ok(adapter_open(&s->adapter, &s->model.arch, spec, count, ADAPTER_A | ADAPTER_B));
    for (size_t i = 0; i < s->adapter.count; i++) { /* B stays zero */
        struct adapter_module *m = &s->adapter.module[i];
        rng_init(&rng, "canary", seed, "A", i);
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 0.4);
    }
    rng_init(&rng, "canary", seed, "rows", 0);
    s->data.row = s->row;
    for (int i = 0; i < CANARIES; i++) {
        for (int t = 0; t < LENGTH; t++)
            s->id[i][t] = (int32_t)rng_below(&rng, s->model.arch.vocab);
        s->canary[i] = (struct engine_row){s->id[i], s->id[i], LENGTH, &s->adapter};
        s->in[i] = rng_below(&rng, 2);
        if (!s->in[i]) continue;
        s->row[s->data.count++] = (struct data_row){
            .id = s->id[i], .label = s->id[i], .count = LENGTH, .learned = LENGTH - 1};
        s->data.learned += LENGTH - 1;
    }
}

static void trial_close(struct trial *s)
{
    adapter_close(&s->adapter);
    engine_close(s->engine);
    model_close(&s->model);
}

static void train(struct trial *s, double noise)
{
    struct train_options t;
    struct train_result result;
    train_defaults(&t);
    t.steps = STEPS;
    t.batch = 32;
    t.lr = 2e-2;
    struct train_private_options o = {.train = &t, .sampling = 1, .noise = noise, .clip = 1};
    ok(train_private_run(&result, &s->adapter, s->engine, &s->data, &o));
}

struct score {
    double gain;
    bool in;
};

static int by_gain(const void *a, const void *b)
{
    double x = ((const struct score *)a)->gain, y = ((const struct score *)b)->gain;
    return x < y ? 1 : x > y ? -1 : 0;
}

/* Of all canaries, those that gained most are guessed to have been in the data. */
static int right_guesses(double noise, uint64_t seed)
{
    struct trial s;
    struct score score[CANARIES];
    double before[CANARIES], after[CANARIES];
    int right = 0;
    trial_open(&s, seed);
    ok(engine_nll(before, s.engine, s.canary, CANARIES));
    train(&s, noise);
    ok(engine_nll(after, s.engine, s.canary, CANARIES));
    for (int i = 0; i < CANARIES; i++)
        score[i] = (struct score){before[i] - after[i], s.in[i]};
    qsort(score, CANARIES, sizeof *score, by_gain);
    for (int i = 0; i < CANARIES; i++)
        right += score[i].in == (i < CANARIES / 2);
    trial_close(&s);
    return right;
}

/* P(Binomial(n, p) >= v) */
static double tail(int n, double p, int v)
{
    double sum = 0;
    for (int k = v; k <= n; k++)
        sum += exp(lgamma(n + 1.) - lgamma(k + 1.) - lgamma(n - k + 1.) + k * log(p) +
                   (n - k) * log1p(-p));
    return sum;
}

/* The largest epsilon that is refuted. */
static double proven(int right)
{
    double low = 0, high = 20;
    for (int i = 0; i < 60; i++) {
        double middle = (low + high) / 2, p = 1 / (1 + exp(-middle));
        if (tail(CANARIES, p, right) + 2 * CANARIES * stated_delta < doubt)
            low = middle;
        else
            high = middle;
    }
    return low;
}

Test(canary, guesses_prove_what_the_binomial_says)
{
    cr_assert_eq(proven(CANARIES / 2), 0);
    cr_assert(proven(CANARIES) > 2 && proven(CANARIES) < 2.5, "%g", proven(CANARIES));
    cr_assert_float_eq(tail(10, .5, 9), 11. / 1024, 1e-12);
}

Test(canary, an_attack_stays_below_the_stated_epsilon_and_above_it_without_noise, .timeout = 300)
{
    struct account_event event = {.sampling = 1, .count = STEPS};
    struct account_budget budget = {.epsilon = stated_epsilon, .delta = stated_delta};
    double noise;
    ok(account_noise(&noise, &event, &budget, NULL));
    int with = right_guesses(noise, 11), without = right_guesses(1e-6, 11);
    cr_log_info("noise %g: %d of %d right, epsilon of at least %.3g; without: %d, %.3g\n", noise,
                with, CANARIES, proven(with), without, proven(without));
    cr_assert(proven(with) <= stated_epsilon, "%d right: epsilon %g, stated %g", with, proven(with),
              stated_epsilon);
    cr_assert(proven(without) > stated_epsilon, "without noise only %d right: epsilon %g", without,
              proven(without));
}
