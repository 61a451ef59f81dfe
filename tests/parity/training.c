/* Properties of the engine that hold for any weights: any number of threads and recomputation
 * give the same bytes, gradients are the slope of the loss, adapters of one batch do not affect
 * each other, and the cache of generation changes nothing. The small models of tests/models are
 * used, and those of tests/golden/bases, which have the switches of other families. */
#include "engine/generate.h"
#include "engine/train/train.h"
#include "engine/train/train_private.h"
#include "kernels/cpu/cpu.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, LENGTH = 45, ALL = 7 };

#define BASES "../golden/bases/"
static const char *const bases[] = {BASES "gemma2",  BASES "gemma3",         BASES "granite",
                                    BASES "olmo2",   BASES "phi3",           BASES "phi4-mini",
                                    BASES "smollm3", BASES "llama-longrope", BASES "llama-dynamic"};
static size_t bases_count(void)
{
    bool cpu = !strcmp(support_device(), "cpu"); /* other devices are emulated */
    return cpu ? sizeof bases / sizeof *bases : 1;
}

static enum base_memory base_memory; /* of the engines that setup_open() opens */

static void setup_open(struct setup *s, const char *name, enum dtype precision, int threads)
{
    struct rng rng;
    setup_model(s, name);
    struct engine_options o = {
        .device = support_device(), .precision = precision, .threads = threads};
    o.base_memory = base_memory;
    ok(engine_open(&s->engine, &s->model, &o));
    rng_init(&rng, "test", 1, "rows", 0);
    for (uint32_t i = 0; i < ROWS; i++) /* also an empty one */
        setup_row(s, &rng, i == 2 ? 0 : i == 3 ? 1 : LENGTH - 7 * i, 5);
}

/* A new adapter whose B (and R) is random as well, because a zero B would make gradients zero. */
static void adapter_random(struct adapter *ad, const struct setup *s, uint32_t rank, bool small)
{
    struct adapter_spec spec[LIMIT_MODULES];
    size_t count = 0;
    for (uint32_t layer = 0; layer < s->model.arch.layers; layer++)
        for (int kind = 0; kind < MODULE_KINDS; kind++)
            if (model_has_module(&s->model.arch, (enum module_kind)kind) &&
                (!small || kind != MODULE_K))
                spec[count++] = (struct adapter_spec){.layer = layer,
                                                      .kind = (enum module_kind)kind,
                                                      .rank = rank,
                                                      .carry_rank = kind % 2 ? 3 : 0,
                                                      .small_matrix = small,
                                                      .scale = 0.7};
    unsigned trains = ADAPTER_A | ADAPTER_B | (small ? ADAPTER_R : 0);
    ok(adapter_open(ad, &s->model.arch, spec, count, trains));
    for (size_t i = 0; i < ad->count; i++) {
        struct adapter_module *m = &ad->module[i];
        struct rng rng;
        rng_init(&rng, "test", rank, "values", i);
        rng_fill_uniform(&rng, m->a, (size_t)m->rank * m->d_in, 0.2);
        rng_fill_uniform(&rng, m->b, (size_t)m->d_out * m->rank, 0.2);
        if (m->r) rng_fill_uniform(&rng, m->r, (size_t)m->rank * m->rank, 0.7);
        if (m->carry_rank) {
            rng_fill_uniform(&rng, m->carry_a, (size_t)m->carry_rank * m->d_in, 0.1);
            rng_fill_uniform(&rng, m->carry_b, (size_t)m->d_out * m->carry_rank, 0.1);
        }
    }
}

static void train(struct adapter *ad, struct setup *s, bool checkpoint, double dropout)
{
    struct train_options o;
    struct train_result result;
    train_defaults(&o);
    o.steps = 4;
    o.batch = 3;
    o.accumulate = 2;
    o.lr = 1e-2;
    o.checkpoint = checkpoint;
    o.dropout = dropout;
    ok(train_run(&result, ad, s->engine, &s->data, &o));
    cr_expect_gt(result.learned, 0);
}

static void same_bytes(const char *name, enum dtype precision, bool checkpoint)
{
    struct setup one, other;
    struct adapter a, b;
    setup_open(&one, name, precision, 1);
    setup_open(&other, name, precision, 3);
    adapter_random(&a, &one, 5, false);
    adapter_random(&b, &other, 5, false);
    train(&a, &one, false, 0.1);
    train(&b, &other, checkpoint, 0.1);
    cr_expect(!memcmp(a.value, b.value, a.value_count * sizeof(float)),
              "%s, %s: trained tensors differ", name, dtype_name(precision));
    adapter_close(&a);
    adapter_close(&b);
    setup_close(&one);
    setup_close(&other);
}

Test(training, gives_the_same_bytes_for_any_number_of_threads)
{
    same_bytes("llama", DTYPE_F32, false);
}

Test(training, gives_the_same_bytes_in_bfloat16)
{
    if (!cpu_can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    same_bytes("llama", DTYPE_BF16, false);
    for (size_t i = 0; i < bases_count(); i++)
        same_bytes(bases[i], DTYPE_BF16, false);
}

Test(training, gives_the_same_bytes_when_activations_are_recomputed)
{
    same_bytes("llama", DTYPE_F32, true);
    for (size_t i = 0; i < bases_count(); i++)
        same_bytes(bases[i], DTYPE_F32, true);
}

/* Rows without a learned token, an empty one and one of a single token among them, change neither
 * the training nor the loss, and an evaluation does not count them. */
Test(training, ignores_rows_that_teach_nothing)
{
    struct setup all, some;
    struct adapter a, b;
    struct train_options o;
    struct train_result left, right;
    struct engine_evaluation with, without;
    setup_open(&all, "llama", DTYPE_F32, 1);
    setup_open(&some, "llama", DTYPE_F32, 1);
    for (uint32_t t = 0; t < LENGTH; t++)
        all.label[1][t] = DATA_IGNORE;
    some.data.count = 0;
    for (size_t i = 0; i < ROWS; i++)
        if (i == 0 || i > 3) some.data.row[some.data.count++] = some.row[i];
    adapter_random(&a, &all, 5, false);
    adapter_random(&b, &some, 5, false);
    train_defaults(&o);
    o.steps = 0;
    o.epochs = 2;
    o.batch = 2;
    ok(train_run(&left, &a, all.engine, &all.data, &o));
    ok(train_run(&right, &b, some.engine, &some.data, &o));
    cr_expect_eq(left.steps, 3);
    cr_expect_eq(left.tokens, right.tokens);
    cr_expect(!memcmp(a.value, b.value, a.value_count * sizeof(float)));
    const struct engine_evaluate_options how = {.adapter = &a};
    ok(engine_evaluate(&with, NULL, all.engine, &all.data, &how));
    ok(engine_evaluate(&without, NULL, some.engine, &some.data, &how));
    cr_expect_eq(with.rows, 3);
    cr_expect_eq(with.tokens, without.tokens);
    cr_expect_float_eq(with.loss, without.loss, 1e-12);
    all.data.row[0] = all.data.row[1];
    all.data.count = 2;
    ok(engine_evaluate(&with, NULL, all.engine, &all.data, &how));
    cr_expect(with.rows == 0 && with.tokens == 0 && isnan(with.loss));
    refused(train_run(&left, &a, all.engine, &all.data, &o), ERR_INPUT, "no token to learn");
    adapter_close(&a);
    adapter_close(&b);
    setup_close(&all);
    setup_close(&some);
}

/* Weights that stay in the file give the bytes of packed ones. */
static void same_bytes_from_file(const char *model, enum dtype precision)
{
    static const enum base_memory memories[] = {BASE_PACKED, BASE_FILE};
    struct setup s[2];
    struct adapter ad[2];
    for (int i = 0; i < 2; i++) {
        base_memory = memories[i];
        setup_open(&s[i], model, precision, 2);
        cr_expect_eq(engine_base_memory(s[i].engine), memories[i]);
        adapter_random(&ad[i], &s[i], 5, false);
        model_drop_pages(&s[i].model);
        train(&ad[i], &s[i], false, 0.1);
    }
    base_memory = BASE_AUTO;
    cr_expect(!memcmp(ad[0].value, ad[1].value, ad[0].value_count * sizeof(float)), "%s, %s", model,
              dtype_name(precision));
    for (int i = 0; i < 2; i++) {
        adapter_close(&ad[i]);
        setup_close(&s[i]);
    }
}

Test(training, gives_the_same_bytes_from_the_file)
{
    static const char *const model[] = {"llama", "llama/q8_0.gguf", "llama-bias", "qwen3"};
    for (size_t i = 0; i < sizeof model / sizeof model[0]; i++) {
        same_bytes_from_file(model[i], DTYPE_F32);
        if (cpu_can_bf16()) same_bytes_from_file(model[i], DTYPE_BF16);
    }
    for (size_t i = 0; i < bases_count(); i += 4) /* caps, fused modules and long rows */
        same_bytes_from_file(bases[i], DTYPE_F32);
}

static void rows_of(struct engine_row *row, struct setup *s, const struct adapter *ad)
{
    for (int i = 0; i < ROWS; i++)
        row[i] = (struct engine_row){s->id[i], s->label[i], s->row[i].count, ad};
}

/* The slope of the loss along its gradient, from a small step in both directions. */
static void check_slope(const char *name, bool small, double dropout)
{
    struct setup s;
    struct adapter ad;
    struct engine_row row[ROWS];
    double nll[ROWS], loss[2] = {0, 0}, square = 0.0;
    setup_open(&s, name, DTYPE_F32, 2);
    adapter_random(&ad, &s, 4, small);
    rows_of(row, &s, &ad);
    float *gradient = calloc(ad.value_count, sizeof *gradient);
    float *start = malloc(ad.value_count * sizeof *start);
    float *unused = calloc(ad.value_count, sizeof *unused);
    memcpy(start, ad.value, ad.value_count * sizeof *start);
    struct engine_gradient into = {gradient, &ad}, away = {unused, &ad};
    struct engine_pass_options o = {.scale = 1.0, .dropout = dropout, .dropout_key = 7};
    ok(engine_gradients(nll, s.engine, row, ROWS, &into, 1, &o));
    for (size_t i = 0; i < ad.value_count; i++)
        square += (double)gradient[i] * (double)gradient[i];
    double step = (name[0] == '.' ? 0.001 : 0.05) / sqrt(square); /* BASES bend more */
    for (int side = 0; side < 2; side++) {
        for (size_t i = 0; i < ad.value_count; i++)
            ad.value[i] = start[i] + (float)((side ? -step : step) * (double)gradient[i]);
        ok(engine_gradients(nll, s.engine, row, ROWS, &away, 1, &o));
        for (int i = 0; i < ROWS; i++)
            loss[side] += nll[i];
    }
    double slope = (loss[0] - loss[1]) / (2.0 * step);
    cr_expect_float_eq(slope / square, 1.0, 3e-3,
                       "%s%s, dropout %.1f: slope %.5f of the gradient's", name,
                       small ? " B R A" : "", dropout, slope / square);
    free(gradient);
    free(start);
    free(unused);
    adapter_close(&ad);
    setup_close(&s);
}

Test(training, finds_the_slope_of_the_loss)
{
    static const char *const name[] = {"llama", "llama-bias", "qwen2", "qwen3"};
    for (int i = 0; i < 4; i++) {
        check_slope(name[i], false, 0.0);
        check_slope(name[i], true, 0.0);
    }
    check_slope("llama", false, 0.3);
    for (size_t i = 0; i < bases_count(); i++)
        check_slope(bases[i], i % 2, i % 3 ? 0.0 : 0.2);
}

/* A row has the same bits alone and in a batch, whatever tables of angles the rows before it
 * needed, and so has its gradient. */
static void check_alone(const char *name)
{
    struct setup s;
    struct adapter ad;
    struct engine_row row[ROWS];
    double together[ROWS], alone;
    setup_open(&s, name, DTYPE_F32, 2);
    adapter_random(&ad, &s, 4, false);
    rows_of(row, &s, &ad);
    size_t n = ad.value_count;
    float *each = malloc(ROWS * n * sizeof *each), *one = malloc(n * sizeof *one);
    ok(train_private_gradients(each, s.engine, &ad, row, ROWS));
    ok(engine_nll(together, s.engine, row, ROWS));
    for (int i = ROWS; i-- > 0;) {
        ok(engine_nll(&alone, s.engine, &row[i], 1));
        cr_expect_eq(together[i], alone, "%s, row %d: %g and %g", name, i, together[i], alone);
        ok(train_private_gradients(one, s.engine, &ad, &row[i], 1));
        cr_expect(!memcmp(each + (size_t)i * n, one, n * sizeof *one), "%s, gradient of row %d",
                  name, i);
    }
    free(each);
    free(one);
    adapter_close(&ad);
    setup_close(&s);
}

Test(training, a_row_does_not_depend_on_other_rows)
{
    for (size_t i = 0; i < bases_count(); i++)
        check_alone(bases[i]);
}

/* One batch has rows of two adapters of different ranks and rows without adapter. */
Test(training, keeps_the_adapters_of_a_batch_apart)
{
    struct setup s;
    struct adapter ad[2];
    struct engine_row row[ROWS];
    double together[ROWS], alone[ROWS];
    float *mixed[2], *single[2];
    setup_open(&s, "llama", DTYPE_F32, 2);
    adapter_random(&ad[0], &s, 3, false);
    adapter_random(&ad[1], &s, 41, true); /* more than the model is wide */
    rows_of(row, &s, NULL);
    for (int i = 0; i < ROWS; i++)
        row[i].adapter = i % 3 ? &ad[i % 2] : NULL;
    struct engine_pass_options o = {.scale = 1.0};
    struct engine_gradient into[2];
    for (int k = 0; k < 2; k++) {
        mixed[k] = calloc(ad[k].value_count, sizeof(float));
        single[k] = calloc(ad[k].value_count, sizeof(float));
        into[k] = (struct engine_gradient){mixed[k], &ad[k]};
    }
    ok(engine_gradients(together, s.engine, row, ROWS, into, 2, &o));
    for (int i = 0; i < ROWS; i++) {
        struct engine_gradient one = {row[i].adapter == &ad[1] ? single[1] : single[0],
                                      row[i].adapter};
        ok(engine_gradients(&alone[i], s.engine, &row[i], 1, &one, row[i].adapter ? 1 : 0, &o));
        cr_expect_float_eq(together[i], alone[i], 1e-5 * (1 + alone[i]), "row %d", i);
    }
    for (int k = 0; k < 2; k++) {
        double far = support_distance(mixed[k], single[k], ad[k].value_count);
        cr_expect_leq(far, 2e-6, "adapter %d: gradients differ by %.2e", k, far);
        free(mixed[k]);
        free(single[k]);
        adapter_close(&ad[k]);
    }
    setup_close(&s);
}

static void check_bfloat16(const char *name, double tolerance)
{
    struct setup f32, bf16;
    struct adapter ad;
    double a[ROWS], b[ROWS], x = 0, y = 0;
    struct engine_row row[ROWS];
    setup_open(&f32, name, DTYPE_F32, 2);
    setup_open(&bf16, name, DTYPE_BF16, 2);
    adapter_random(&ad, &f32, 8, false);
    train(&ad, &bf16, false, 0.0);
    rows_of(row, &f32, &ad);
    ok(engine_nll(a, f32.engine, row, ROWS));
    ok(engine_nll(b, bf16.engine, row, ROWS));
    for (int i = 0; i < ROWS; i++)
        x += a[i], y += b[i];
    cr_expect_float_eq(y / x, 1.0, tolerance, "%s: bf16 %.5f, f32 %.5f", name, y, x);
    adapter_close(&ad);
    setup_close(&f32);
    setup_close(&bf16);
}

Test(training, of_bfloat16_follows_float32)
{
    if (!cpu_can_bf16()) cr_skip_test("bfloat16 needs AVX-512");
    check_bfloat16("llama", 1e-2);
    for (size_t i = 0; i < bases_count(); i++)
        check_bfloat16(bases[i], 3e-2);
}

/* The whole passes have a row of the length that the cache has room for, because the rotation may
 * depend on it. */
static void check_generation(const char *name)
{
    struct setup s;
    struct adapter ad;
    enum { MORE = 12 };
    setup_open(&s, name, DTYPE_F32, 2);
    adapter_random(&ad, &s, 4, false);
    uint32_t vocab = s.model.arch.vocab;
    int32_t out[2][MORE], *outs[2] = {out[0], out[1]};
    uint32_t made[2];
    struct generate_prompt prompt[2] = {{s.id[0], 11, MORE}, {s.id[1], 3, MORE - 4}};
    struct generate_options o = {.tokens = MORE};
    ok(generate_many(outs, made, s.engine, &ad, prompt, 2, &o));
    for (int i = 0; i < 2; i++) {
        int32_t text[LENGTH] = {0};
        cr_assert_eq(made[i], prompt[i].tokens);
        memcpy(text, prompt[i].id, prompt[i].count * sizeof *text);
        for (uint32_t t = 0; t < made[i]; t++) {
            struct engine_row row = {text, NULL, prompt[i].count + prompt[i].tokens, &ad};
            float *logits = malloc((size_t)row.count * vocab * sizeof *logits);
            ok(engine_logits(logits, s.engine, &row));
            const float *last = logits + (size_t)(prompt[i].count + t - 1) * vocab;
            int32_t best = 0;
            for (uint32_t v = 1; v < vocab; v++)
                if (last[v] > last[best]) best = (int32_t)v;
            cr_expect_eq(out[i][t], best, "%s: prompt %d, token %u", name, i, t);
            text[prompt[i].count + t] = best;
            free(logits);
        }
    }
    adapter_close(&ad);
    setup_close(&s);
}

Test(training, generates_with_a_cache_what_whole_passes_give)
{
    check_generation("qwen3");
    for (size_t i = 0; i < bases_count(); i++)
        check_generation(bases[i]);
}
