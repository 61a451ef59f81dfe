/* A training that was interrupted at any step and continued from its snapshot has the bytes, the
 * losses and the moments of one that was not. */
#include "engine/train/train_keep.h"
#include "engine/train/train.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 5, STEPS = 9 };

struct kept {
    struct train_snapshot s; /* owns its blocks */
    uint64_t stop_after;     /* steps; 0: never */
    uint64_t taken, called;
    bool every;
};

static bool on_step(void *user, const struct train_step *step)
{
    struct kept *k = user;
    k->called++;
    return !k->stop_after || step->step + 1 < k->stop_after;
}

static bool due(void *user, bool stopped)
{
    const struct kept *k = user;
    return stopped || k->every;
}

static float *copy(const float *from, size_t n)
{
    float *out = malloc(n * sizeof *out + 1);
    memcpy(out, from, n * sizeof *out);
    return out;
}

static void take(void *user, const struct train_snapshot *s)
{
    struct kept *k = user;
    k->taken++;
    free(k->s.value);
    free(k->s.first);
    free(k->s.second);
    k->s = *s;
    k->s.value = copy(s->value, s->count);
    k->s.first = copy(s->first, s->count);
    k->s.second = copy(s->second, s->count);
}

static void drop(struct kept *k)
{
    free(k->s.value);
    free(k->s.first);
    free(k->s.second);
}

static void setup_open(struct setup *s)
{
    struct rng rng;
    setup_model(s, "llama");
    setup_engine(s, DTYPE_F32, 1);
    setup_fresh(s, 3);
    rng_init(&rng, "test", 1, "rows", 0);
    for (uint32_t i = 0; i < ROWS; i++)
        setup_row(s, &rng, 20 + 3 * i, 5);
    for (size_t i = 0; i < s->adapter.count; i++)
        rng_fill_uniform(&rng, s->adapter.module[i].b,
                         (size_t)s->adapter.module[i].d_out * s->adapter.module[i].rank, 0.2);
}

/* Batches cross the end of an epoch, and every part of the state matters. */
static struct train_options options_of(int kind)
{
    struct train_options o;
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = 2;
    o.accumulate = kind == 1 ? 2 : 1;
    o.lr = 1e-2;
    o.schedule = TRAIN_COSINE;
    o.warmup = 3;
    o.seed = 7;
    o.weight_decay = 0.1;
    o.dropout = kind == 2 ? 0.2 : 0.0;
    o.prox = kind == 3 ? 0.1 : 0.0;
    o.prune_gamma = kind == 4 ? 0.5 : 0.0;
    o.prune_lambda = kind == 4 ? 0.01 : 0.0;
    o.on_step = on_step;
    return o;
}

/* Trains a fresh setup; the values are the caller's. */
static err run(float **value, struct train_result *r, struct train_options o, struct kept *k,
               const struct train_snapshot *resume, struct train_moments *moments)
{
    struct setup s;
    const struct train_keep keep = {.resume = resume, .due = due, .take = take, .user = k};
    setup_open(&s);
    o.user = k;
    o.keep = &keep;
    if (moments) {
        moments->first = calloc(s.adapter.value_count, sizeof(float));
        moments->second = calloc(s.adapter.value_count, sizeof(float));
        moments->steps = 11;
        o.moments = moments;
    }
    err e = train_run(r, &s.adapter, s.engine, &s.data, &o);
    *value = copy(s.adapter.value, s.adapter.value_count);
    k->s.count = s.adapter.value_count;
    setup_close(&s);
    return e;
}

static void check(int kind, uint64_t stop)
{
    const struct train_options o = options_of(kind);
    struct kept whole = {0}, first = {.stop_after = stop}, second = {0};
    struct train_result want = {0}, got = {0};
    struct train_moments wants = {0}, gets = {0}, begun = {0};
    float *a, *b, *c;
    ok(run(&a, &want, o, &whole, NULL, &wants));
    cr_assert_eq(run(&b, &got, o, &first, NULL, &begun).kind, ERR_STOPPED);
    cr_assert_eq(first.taken, 1);
    cr_assert_eq(first.s.steps, stop);
    ok(run(&c, &got, o, &second, &first.s, &gets));
    cr_expect_eq(second.called, STEPS - stop);
    size_t bytes = whole.s.count * sizeof(float);
    cr_expect_eq(memcmp(a, c, bytes), 0, "kind %d, stopped after step %d: other values", kind,
                 (int)stop);
    cr_expect_eq(memcmp(wants.first, gets.first, bytes), 0);
    cr_expect_eq(memcmp(wants.second, gets.second, bytes), 0);
    cr_expect(wants.steps == gets.steps && got.steps == want.steps && got.tokens == want.tokens);
    cr_expect(got.mean_loss == want.mean_loss && got.first_loss == want.first_loss);
    cr_expect(got.last_loss == want.last_loss && got.tail_before == want.tail_before);
    float *all[] = {a,          b,           c,           wants.first, wants.second,
                    gets.first, gets.second, begun.first, begun.second};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    drop(&first);
}

Test(train_keep, a_continued_training_has_the_bytes_of_an_uninterrupted_one)
{
    if (strcmp(support_device(), "cpu") != 0) { /* it is emulated, and slow */
        check(2, 4);
        return;
    }
    for (int kind = 0; kind < 5; kind++)
        for (uint64_t stop = 1; stop < STEPS; stop += 3)
            check(kind, stop);
}

/* The last step may be done, and only what follows it be missing. */
Test(train_keep, a_training_stopped_after_its_last_step_has_nothing_left_to_do)
{
    struct kept first = {.stop_after = STEPS}, second = {0};
    struct train_result r = {0};
    float *a, *b;
    cr_assert_eq(run(&a, &r, options_of(0), &first, NULL, NULL).kind, ERR_STOPPED);
    ok(run(&b, &r, options_of(0), &second, &first.s, NULL));
    cr_expect_eq(second.called, 0);
    cr_expect_eq(r.steps, STEPS);
    cr_expect_eq(memcmp(a, b, first.s.count * sizeof(float)), 0);
    free(a);
    free(b);
    drop(&first);
}

Test(train_keep, snapshots_change_nothing_and_one_of_another_training_is_refused)
{
    struct kept plain = {0}, every = {.every = true}, other = {0};
    struct train_result r = {0};
    float *a, *b, *c;
    ok(run(&a, &r, options_of(0), &plain, NULL, NULL));
    ok(run(&b, &r, options_of(0), &every, NULL, NULL));
    cr_expect_eq(every.taken, STEPS);
    cr_expect_eq(memcmp(a, b, plain.s.count * sizeof(float)), 0);
    every.s.count--;
    err e = run(&c, &r, options_of(0), &other, &every.s, NULL);
    cr_expect_eq(e.kind, ERR_INPUT);
    cr_expect(strstr(e.text, "the snapshot has"), "%s", e.text);
    free(a);
    free(b);
    free(c);
    drop(&every);
}
