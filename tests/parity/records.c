/* Recorded passes of training give the bits of passes that are queued anew, and filled batches the
 * bits of plain ones. On the CPU backend, which records nothing, batches are filled all the same,
 * for its part of the contract. With the CUDA backend on the CPU calls are counted. */
#include "engine/train/train_parts.h"
#include "tests/cuda_on_cpu/shim.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <dlfcn.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 9, LENGTH = 140, STEPS = 5, BUCKET = 128 };

/* How the passes are queued. */
enum queueing {
    QUEUE_RECORDED, /* as the backend has it */
    QUEUE_FILLED,   /* the same sizes, queued anew each time */
    QUEUE_EXACT,    /* neither filled nor recorded */
};
static void repeat_anew(struct backend_context *c, struct backend_record **record, uint64_t key,
                        void (*work)(void *user), void *user)
{
    (void)c, (void)record, (void)key;
    work(user);
}

static const char *model = "llama"; /* of the setups that are opened next */
static uint32_t longest = LENGTH;   /* and most tokens of a row in train() */
static struct backend own;          /* the table of the engine that is open */

static bool on_shim(void)
{
    return !strcmp(support_device(), "cuda");
}
/* The library is open already; its counters cannot be linked. */
static struct shim_counts counts_now(void)
{
    struct shim_counts now = {0};
    void *library = on_shim() ? dlopen(getenv("FEDLORA_CUDA"), RTLD_NOW | RTLD_NOLOAD) : NULL;
    if (!library) return now;
    void (*get)(struct shim_counts *);
    *(void **)&get = dlsym(library, "shim_counts_get");
    cr_assert_not_null(get);
    get(&now);
    return now;
}

/* Rows of 12 to `most` tokens, in no order of length; the first third is not learned. */
static void setup_open(struct setup *s, enum dtype precision, enum queueing q, uint32_t most)
{
    struct rng rng;
    setup_model(s, model);
    setup_engine(s, precision, 2);
    own = *s->engine->be;
    own.bucket = q == QUEUE_EXACT ? 1 : BUCKET;
    if (q != QUEUE_RECORDED) own.repeat = repeat_anew;
    s->engine->be = &own;
    rng_init(&rng, "test", 1, "rows", 0);
    for (int i = 0; i < ROWS; i++) {
        uint32_t count = 12 + rng_below(&rng, most - 11);
        setup_row(s, &rng, count, count / 3);
    }
}

static void adapter_make(struct adapter *ad, const struct setup *s)
{
    struct adapter_fresh fresh = {.targets = "q,v,o,down", .rank = 3, .alpha = 6.0};
    struct rng rng;
    ok(adapter_open_fresh(ad, &s->model.arch, &fresh));
    rng_init(&rng, "test", 3, "values", 0);
    rng_fill_uniform(&rng, ad->value, ad->value_count, 0.1);
}

struct variant {
    const char *name;
    bool checkpoint;
    uint32_t accumulate;
    double dropout, prox;
};
static struct train_options options_of(const struct variant *v)
{
    struct train_options o;
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = 2;
    o.accumulate = v->accumulate;
    o.lr = 1e-2;
    o.checkpoint = v->checkpoint;
    o.dropout = v->dropout;
    o.prox = v->prox;
    o.clip = 1.0;
    return o;
}

/* The trained values and the sum of the losses. */
static void train(struct adapter *ad, struct train_result *result, enum dtype precision,
                  const struct variant *v, enum queueing q)
{
    struct setup s;
    setup_open(&s, precision, q, longest);
    adapter_make(ad, &s);
    struct train_options o = options_of(v);
    struct shim_counts before = counts_now();
    ok(train_run(result, ad, s.engine, &s.data, &o));
    struct shim_counts after = counts_now();
    if (on_shim() && q == QUEUE_RECORDED)
        cr_expect_geq(after.graphs - before.graphs, 2, "%s: few graphs", v->name);
    if (q != QUEUE_RECORDED) cr_expect_eq(after.graphs, before.graphs);
    setup_close(&s);
}

/* The CPU sums the gradients of factors over tokens in an order that depends on their number, so
 * there only the losses of exact batches are compared, and not quite. */
static void expect_same(enum dtype precision, const struct variant *v)
{
    static const char *const name[] = {"recorded", "filled", "exact"};
    struct adapter ad[3];
    struct train_result result[3];
    for (int q = QUEUE_RECORDED; q <= QUEUE_EXACT; q++)
        train(&ad[q], &result[q], precision, v, (enum queueing)q);
    for (int q = 1; q < 3; q++) {
        cr_expect_eq(result[q].learned, result[0].learned);
        cr_expect_eq(result[q].tokens, result[0].tokens);
        bool close = q == QUEUE_EXACT && !on_shim();
        double far = fabs(result[q].mean_loss / result[0].mean_loss - 1.0);
        cr_expect_leq(far, close ? 1e-6 : 0.0, "%s, %s, %s: losses differ by %.2g",
                      dtype_name(precision), v->name, name[q], far);
        cr_expect(close || !memcmp(ad[q].value, ad[0].value, ad[0].value_count * sizeof(float)),
                  "%s, %s, %s: other bytes than recorded", dtype_name(precision), v->name, name[q]);
    }
    for (int q = 0; q < 3; q++)
        adapter_close(&ad[q]);
}

/* The first variants are enough for bfloat16. */
static void check_same(enum dtype precision)
{
    static const struct variant all[] = {
        {"dropout", false, 1, 0.3, 0.0},
        {"recomputed, accumulated", true, 2, 0.0, 0.0},
        {"plain", false, 1, 0.0, 0.0},
        {"dropout, recomputed, proximal", true, 1, 0.1, 0.5},
    };
    for (size_t i = 0; i < (precision == DTYPE_BF16 ? 2 : 4); i++)
        expect_same(precision, &all[i]);
}
Test(records, change_no_bit_in_float32)
{
    check_same(DTYPE_F32);
}
/* Gemma 2 has caps, a window in some layers, and norms whose inputs are kept. */
Test(records, change_no_bit_of_a_base_with_caps)
{
    static const struct variant v = {"recomputed, caps", true, 1, 0.1, 0.0};
    model = "../golden/bases/gemma2";
    longest = 60; /* so that all passes have one size */
    expect_same(on_shim() ? DTYPE_BF16 : DTYPE_F32, &v);
}
Test(records, change_no_bit_in_bfloat16)
{
    if (!on_shim()) cr_skip_test("the CPU promises this for float32 alone");
    check_same(DTYPE_BF16);
}

/* ---- gradients of single rows */

/* Gradients of the first `rows` rows into `out`; the pass has room for `most` rows. */
static void row_gradients(float *out, struct setup *s, struct factors *f, size_t rows, size_t most,
                          struct backend_record **record, float *each)
{
    struct engine_row row[ROWS];
    struct batch b = {0};
    size_t n = f->adapter->value_count;
    for (size_t i = 0; i < rows; i++)
        row[i] = (struct engine_row){s->id[i], s->label[i], s->row[i].count, f->adapter};
    ok(batch_open(&b, row, rows, BATCH_LABELS));
    if (record) ok(batch_pad(&b, own.bucket, most));
    struct segment segment = {.factors = f, .gradient = each, .tokens = b.tokens, .stride = n};
    segment.rows = record ? most : rows;
    b.segment = &segment;
    b.segments = 1;
    b.backward = true;
    b.scale = 1.0;
    b.record = record;
    own.zero(s->engine->ctx, (struct mat){each, DTYPE_F32, n}, most, n);
    ok(pass_run(s->engine, &b));
    own.copy_out(s->engine->ctx, out, each, most * n * sizeof *out);
    ok(own.check(s->engine->ctx));
    batch_close(&b);
}

static void check_rows(enum dtype precision)
{
    enum { MOST = 3 };
    struct setup s;
    struct adapter ad;
    struct factors *f;
    struct backend_record *record = NULL;
    float *each;
    setup_open(&s, precision, QUEUE_RECORDED, 60);
    adapter_make(&ad, &s);
    ok(factors_open(&f, s.engine, &ad));
    size_t n = ad.value_count;
    ok(own.memory_take(&each, s.engine->ctx, MOST * n * sizeof *each));
    float *got = malloc(MOST * n * sizeof *got), *want = malloc(MOST * n * sizeof *want);
    static const size_t rows[] = {3, 2, 3, 1, 3};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        row_gradients(got, &s, f, rows[i], MOST, &record, each);
        row_gradients(want, &s, f, rows[i], MOST, NULL, each);
        cr_expect(!memcmp(got, want, MOST * n * sizeof *got), "%s: %zu rows: other bits",
                  dtype_name(precision), rows[i]);
    }
    own.record_close(record);
    own.memory_give(s.engine->ctx, each);
    factors_close(f);
    free(got);
    free(want);
    adapter_close(&ad);
    setup_close(&s);
}
Test(records, keep_the_gradients_of_rows_apart)
{
    check_rows(DTYPE_F32);
    if (on_shim()) check_rows(DTYPE_BF16);
}

/* A record keeps 16 sizes. Each of 18 comes twice, so that it is captured; then the newest, which
 * is still there, and the oldest twice, which has to be captured again. */
Test(records, of_more_sizes_than_are_kept_change_no_bit)
{
    enum { SIZES = 18 };
    struct setup s;
    struct adapter ad;
    struct factors *f;
    struct backend_record *record = NULL;
    float *each;
    setup_open(&s, DTYPE_F32, QUEUE_RECORDED, 60);
    own.bucket = 2;
    adapter_make(&ad, &s);
    ok(factors_open(&f, s.engine, &ad));
    size_t n = ad.value_count;
    ok(own.memory_take(&each, s.engine->ctx, n * sizeof *each));
    float *got = malloc(n * sizeof *got), *want = malloc(n * sizeof *want);
    struct shim_counts before = counts_now();
    for (int i = 0; i < 2 * SIZES + 3; i++) {
        int size = i < 2 * SIZES ? i / 2 : i == 2 * SIZES ? SIZES - 1 : 0;
        s.row[0].count = 40 - 2 * (uint32_t)size; /* the largest first: memory is taken once */
        row_gradients(got, &s, f, 1, 1, &record, each);
        if (i % 2 == 0 || i > 2 * SIZES) row_gradients(want, &s, f, 1, 1, NULL, each);
        cr_expect(!memcmp(got, want, n * sizeof *got), "pass %d: other bits", i);
    }
    struct shim_counts after = counts_now();
    cr_expect_eq(after.captures - before.captures, on_shim() ? SIZES + 1 : 0);
    cr_expect_eq(after.graphs - before.graphs, on_shim() ? SIZES + 2 : 0);
    own.record_close(record);
    own.memory_give(s.engine->ctx, each);
    factors_close(f);
    free(got);
    free(want);
    adapter_close(&ad);
    setup_close(&s);
}

/* ---- other work between the steps */

/* Evaluates a longer row after each step, which moves the working memory and takes factors. */
static bool evaluate(void *user, const struct train_step *step)
{
    struct setup *s = user;
    enum { MORE = 300 };
    int32_t id[6 * MORE];
    uint32_t count = MORE * (uint32_t)(step->step + 1);
    double nll;
    for (uint32_t t = 0; t < count; t++)
        id[t] = (int32_t)(t * 7 % s->model.arch.vocab);
    struct engine_row row = {id, id, count, NULL};
    if (step->step != 1) ok(engine_nll(&nll, s->engine, &row, 1));
    return true;
}
Test(records, survive_an_evaluation_between_the_steps)
{
    static const struct variant v = {"evaluated", false, 1, 0.1, 0.0};
    struct adapter ad, want;
    struct train_result result;
    struct setup s;
    setup_open(&s, DTYPE_F32, QUEUE_RECORDED, 40);
    adapter_make(&ad, &s);
    adapter_make(&want, &s);
    struct train_options o = options_of(&v);
    ok(train_run(&result, &want, s.engine, &s.data, &o));
    o.on_step = evaluate;
    o.user = &s;
    ok(train_run(&result, &ad, s.engine, &s.data, &o));
    cr_expect(!memcmp(ad.value, want.value, ad.value_count * sizeof(float)));
    adapter_close(&ad);
    adapter_close(&want);
    setup_close(&s);
}

/* ---- counts */

static bool expect_few_calls(void *user, const struct train_step *step)
{
    struct shim_counts now = counts_now(), *was = user;
    if (step->step >= 2) { /* zero, two launches of AdamW, and the factors */
        cr_expect_eq(now.graphs - was->graphs, 1);
        cr_expect_eq(now.launches - was->launches, 4, "%zu launches",
                     (size_t)(now.launches - was->launches));
        cr_expect_eq(now.copies - was->copies, 3); /* the batch, the losses, the norm */
        cr_expect_eq(now.waits - was->waits, 1);
        cr_expect_eq(now.products + now.memsets + now.allocations + now.captures,
                     was->products + was->memsets + was->allocations + was->captures);
    }
    *was = now;
    return true;
}
Test(records, make_a_warm_step_one_graph_and_eight_calls)
{
    static const struct variant v = {"counted", true, 1, 0.1, 0.0};
    struct adapter ad;
    struct train_result result;
    struct setup s;
    struct shim_counts last = {0};
    if (!on_shim()) cr_skip_test("counts the calls of the CUDA backend");
    setup_open(&s, DTYPE_BF16, QUEUE_RECORDED, 40);
    adapter_make(&ad, &s);
    struct train_options o = options_of(&v);
    o.on_step = expect_few_calls;
    o.user = &last;
    ok(train_run(&result, &ad, s.engine, &s.data, &o));
    adapter_close(&ad);
    setup_close(&s);
}

/* 16 steps of two rows of 12 to 140 tokens have at most two sizes. */
Test(records, are_few_for_rows_of_many_lengths)
{
    static const struct variant v = {"mixed", false, 1, 0.0, 0.0};
    enum { MANY = 16 };
    struct adapter ad;
    struct train_result result;
    struct setup s;
    if (!on_shim()) cr_skip_test("counts the captures of the CUDA backend");
    setup_open(&s, DTYPE_F32, QUEUE_RECORDED, LENGTH);
    adapter_make(&ad, &s);
    struct train_options o = options_of(&v);
    o.steps = MANY;
    own.bucket = 256;
    struct shim_counts before = counts_now();
    ok(train_run(&result, &ad, s.engine, &s.data, &o));
    struct shim_counts after = counts_now();
    uint64_t captures = after.captures - before.captures, graphs = after.graphs - before.graphs;
    cr_expect_leq(captures, 2, "%zu captures", (size_t)captures);
    cr_expect_eq(graphs, MANY - captures, "%zu graphs", (size_t)graphs);
    adapter_close(&ad);
    setup_close(&s);
}
