/* The engine against PyTorch and PEFT: the cases of ../shared/golden, of tests/golden/cases (made
 * by make_cases.py) and of tests/golden/bases (made by make_bases.py). Tolerances: logits 1e-5 of
 * the largest, gradients 2e-5 and trained tensors 1e-4 in the Frobenius norm, losses of twenty
 * steps 1e-5. */
#include "engine/engine.h"
#include "agg/adapter/adapter_file.h"
#include "base/json.h"
#include "engine/train/train.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 8, STEPS = 20 };

struct golden {
    char dir[LIMIT_PATH_BYTES];
    struct model model;
    struct engine *engine;
    struct adapter adapter;
    struct dataset data;
    struct safetensors expect;
    json_t *json;
};

#define OK(call)                                                                                   \
    do {                                                                                           \
        err ok_ = (call);                                                                          \
        cr_assert(!err_is(ok_), "%s", ok_.text);                                                   \
    } while (0)

static void read_rows(struct dataset *out, const char *path)
{
    char *text, *line, *rest = NULL;
    size_t size;
    OK(file_read_all(&text, &size, path, 1 << 20));
    OK(arena_take(&out->row, &out->arena, ROWS, sizeof *out->row));
    for (line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *j;
        OK(json_parse(&j, line, strlen(line), path));
        json_t *ids = json_object_get(j, "input_ids"), *labels = json_object_get(j, "labels");
        size_t n = json_array_size(ids);
        int32_t *id, *label;
        OK(arena_take(&id, &out->arena, n, sizeof *id));
        OK(arena_take(&label, &out->arena, n, sizeof *label));
        for (size_t i = 0; i < n; i++) {
            id[i] = (int32_t)json_integer_value(json_array_get(ids, i));
            label[i] = (int32_t)json_integer_value(json_array_get(labels, i));
            if (i) out->learned += label[i] != DATA_IGNORE;
        }
        cr_assert_lt(out->count, ROWS);
        out->row[out->count++] = (struct data_row){.id = id, .label = label, .count = (uint32_t)n};
        json_decref(j);
    }
    free(text);
}

/* False where the case is not there. */
static bool golden_open(struct golden *g, const char *root, const char *name, int threads)
{
    char path[LIMIT_PATH_BYTES];
    *g = (struct golden){0};
    snprintf(g->dir, sizeof g->dir, "%s/%s/%s", FEDLORA_SOURCE_DIR, root, name);
    if (!file_exists(g->dir)) return false;
    OK(model_open(&g->model, g->dir));
    struct engine_options o = {
        .device = support_device(), .precision = DTYPE_F32, .threads = threads};
    OK(engine_open(&g->engine, &g->model, &o));
    OK(file_join(path, sizeof path, g->dir, "state.safetensors"));
    if (!file_exists(path)) OK(file_join(path, sizeof path, g->dir, "adapter"));
    OK(adapter_open_path(&g->adapter, &g->model.arch, path, 0));
    OK(file_join(path, sizeof path, g->dir, "rows.jsonl"));
    read_rows(&g->data, path);
    OK(file_join(path, sizeof path, g->dir, "expect.safetensors"));
    OK(safetensors_open(&g->expect, path));
    OK(file_join(path, sizeof path, g->dir, "expect.json"));
    OK(json_open(&g->json, path, 1 << 20));
    return true;
}

static void golden_close(struct golden *g)
{
    adapter_close(&g->adapter);
    engine_close(g->engine);
    model_close(&g->model);
    arena_close(&g->data.arena);
    safetensors_close(&g->expect);
    json_decref(g->json);
}

static const struct tensor *expected(const struct golden *g, const char *format, const char *name)
{
    char full[LIMIT_TENSOR_NAME_BYTES];
    snprintf(full, sizeof full, "%s%s", format, name);
    const struct tensor *t = safetensors_find(&g->expect, full);
    cr_assert(t, "%s: no %s", g->dir, full);
    return t;
}

static double number(const struct golden *g, const char *key)
{
    return json_number_value(json_object_get(g->json, key));
}

static double relative_max(const float *x, const float *y, size_t n)
{
    double worst = 0.0, largest = 1e-30;
    for (size_t i = 0; i < n; i++) {
        worst = fmax(worst, fabs((double)x[i] - (double)y[i]));
        largest = fmax(largest, fabs((double)y[i]));
    }
    return worst / largest;
}

static double relative_frobenius(const float *x, const float *y, size_t n)
{
    double wrong = 0.0, norm = 1e-60;
    for (size_t i = 0; i < n; i++) {
        wrong += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        norm += (double)y[i] * (double)y[i];
    }
    return sqrt(wrong / norm);
}

static struct engine_row row_of(const struct golden *g, size_t i)
{
    const struct data_row *r = &g->data.row[i % g->data.count];
    return (struct engine_row){r->id, r->label, r->count, &g->adapter};
}

static void check_logits(struct golden *g)
{
    double worst = 0.0;
    for (size_t i = 0; i < g->data.count; i++) {
        char name[32];
        snprintf(name, sizeof name, "%zu", i);
        if (i > 0 && json_object_get(g->json, "logits") &&
            (json_int_t)i >= json_integer_value(json_object_get(g->json, "logits")))
            break; /* our own cases hold those of the first rows */
        const struct tensor *t = expected(g, "logits.", name);
        struct engine_row row = row_of(g, i);
        float *logits = calloc((size_t)row.count * g->model.arch.vocab, sizeof *logits);
        OK(engine_logits(logits, g->engine, &row));
        worst = fmax(worst, relative_max(logits, t->data, t->count));
        free(logits);
    }
    cr_log_info("%s: logits %.2e", g->dir, worst);
    cr_expect_leq(worst, 1e-5, "%s: logits differ by %.3e", g->dir, worst);
}

static void check_evaluation(struct golden *g)
{
    struct engine_evaluation e;
    struct engine_evaluate_options o = {.adapter = &g->adapter};
    double nll[ROWS], sum = 0.0;
    OK(engine_evaluate(&e, nll, g->engine, &g->data, &o));
    for (size_t i = 0; i < g->data.count; i++)
        sum += nll[i];
    cr_expect_eq(e.tokens, (uint64_t)number(g, "eval_tokens"));
    cr_expect_float_eq(e.loss / number(g, "eval_loss"), 1.0, 1e-5);
    cr_expect_float_eq(sum / (double)e.tokens, e.loss, 1e-12);
}

/* The trained tensors of `values` (laid out as the adapter's) against `prefix`NAME. */
static double worst_tensor(struct golden *g, const char *prefix, const float *values)
{
    const struct adapter *ad = &g->adapter;
    double worst = 0.0;
    for (size_t i = 0; i < ad->count; i++) {
        const struct adapter_module *m = &ad->module[i];
        const float *factor[] = {m->a, m->b, m->r};
        const size_t size[] = {(size_t)m->rank * m->d_in, (size_t)m->d_out * m->rank,
                               (size_t)m->rank * m->rank};
        char module[LIMIT_TENSOR_NAME_BYTES], name[LIMIT_TENSOR_NAME_BYTES];
        model_module_name(module, m->layer, m->kind);
        for (int k = 0; k < 3; k++) {
            if (m->rank == 0 || factor[k] == NULL || !(ad->trains & (1u << k))) continue;
            adapter_file_tensor_name(name, module, (enum adapter_file_role)k);
            const struct tensor *e = expected(g, prefix, name);
            cr_assert_eq(e->count, size[k]);
            worst = fmax(worst,
                         relative_frobenius(values + (factor[k] - ad->value), e->data, e->count));
        }
    }
    return worst;
}

static void check_gradients(struct golden *g, bool checkpoint)
{
    struct engine_row row[2] = {row_of(g, 0), row_of(g, 1)};
    double nll[2], learned = 0.0;
    float *gradient = calloc(g->adapter.value_count, sizeof *gradient);
    for (int i = 0; i < 2; i++)
        for (uint32_t t = 1; t < row[i].count; t++)
            learned += row[i].label[t] != DATA_IGNORE;
    struct engine_gradient into = {gradient, &g->adapter};
    struct engine_pass_options o = {.scale = 1.0 / learned, .checkpoint = checkpoint};
    OK(engine_gradients(nll, g->engine, row, 2, &into, 1, &o));
    double worst = worst_tensor(g, "grad.", gradient);
    cr_log_info("%s: gradients %.2e", g->dir, worst);
    cr_expect_leq(worst, 2e-5, "%s: gradients differ by %.3e", g->dir, worst);
    cr_expect_float_eq((nll[0] + nll[1]) / learned / number(g, "first_batch_loss"), 1.0, 1e-5);
    free(gradient);
}

struct losses {
    struct golden *g;
    double worst_loss, worst_norm;
};

static bool on_step(void *user, const struct train_step *s)
{
    struct losses *l = user;
    double loss = json_number_value(json_array_get(json_object_get(l->g->json, "losses"), s->step));
    double norm =
        json_number_value(json_array_get(json_object_get(l->g->json, "grad_norms"), s->step));
    l->worst_loss = fmax(l->worst_loss, fabs(s->loss / loss - 1.0));
    l->worst_norm = fmax(l->worst_norm, fabs(s->grad_norm / norm - 1.0));
    return true;
}

static void check_training(struct golden *g, bool checkpoint)
{
    struct train_options o;
    struct train_result result;
    struct losses losses = {.g = g};
    train_defaults(&o);
    o.steps = STEPS;
    o.batch = 2;
    o.lr = 5e-3;
    o.weight_decay = 0.01;
    o.warmup = 3;
    o.shuffle = false;
    o.checkpoint = checkpoint;
    o.on_step = on_step;
    o.user = &losses;
    OK(train_run(&result, &g->adapter, g->engine, &g->data, &o));
    double worst = worst_tensor(g, "after.", g->adapter.value);
    cr_log_info("%s: losses %.2e, norms %.2e, trained %.2e", g->dir, losses.worst_loss,
                losses.worst_norm, worst);
    cr_expect_leq(losses.worst_loss, 1e-5, "%s: losses differ by %.3e", g->dir, losses.worst_loss);
    cr_expect_leq(losses.worst_norm, 1e-4, "%s: norms differ by %.3e", g->dir, losses.worst_norm);
    cr_expect_leq(worst, 1e-4, "%s: trained tensors differ by %.3e", g->dir, worst);
}

static void check_case(const char *root, const char *name)
{
    struct golden g;
    if (!golden_open(&g, root, name, 2)) cr_skip_test("%s/%s is not here", root, name);
    check_logits(&g);
    check_evaluation(&g);
    check_gradients(&g, false);
    check_gradients(&g, true);
    check_training(&g, false);
    golden_close(&g);
    OK(golden_open(&g, root, name, 1) ? ERR_NONE : err_make(ERR_STATE, "gone"));
    check_training(&g, true);
    golden_close(&g);
}

#define SHARED(test, name)                                                                         \
    Test(engine, test)                                                                             \
    {                                                                                              \
        check_case("../shared/golden", name);                                                      \
    }
SHARED(agrees_with_peft_on_grouped_heads, "llama-gqa")
SHARED(agrees_with_peft_on_llama3_rotation, "llama3-rope")
SHARED(agrees_with_peft_on_a_sliding_window, "mistral-window")
SHARED(agrees_with_peft_on_biases, "qwen2-bias")
SHARED(agrees_with_peft_on_head_norms, "qwen3-qknorm")
SHARED(agrees_with_peft_on_rank_patterns, "rank-pattern")
SHARED(agrees_with_peft_on_a_frozen_carry, "carry")
SHARED(agrees_with_peft_on_the_small_matrix, "small-matrix")

#define OWN(test, name)                                                                            \
    Test(engine, test)                                                                             \
    {                                                                                              \
        check_case("tests/golden/cases", name);                                                    \
    }
OWN(agrees_with_peft_on_wide_heads_and_a_rank_above_the_width, "llama-wide-heads")
OWN(agrees_with_peft_on_a_narrow_window_and_few_modules, "mistral-narrow")
OWN(agrees_with_peft_on_patterns_by_whole_names, "qwen2-pattern")
OWN(agrees_with_the_definition_on_a_carry_without_adapter, "qwen3-carry")
OWN(agrees_with_the_definition_on_a_carry_beside_the_small_matrix, "llama3-small")
OWN(agrees_with_the_definition_on_linear_rope_scaling, "llama-linear")

/* On other devices, which are emulated, logits and gradients show every switch of a base; training
 * adds nothing to them that other cases lack. */
static void check_base(const char *name)
{
    struct golden g;
    if (!strcmp(support_device(), "cpu")) {
        check_case("tests/golden/bases", name);
        return;
    }
    if (!golden_open(&g, "tests/golden/bases", name, 1)) cr_skip_test("%s is not here", name);
    check_logits(&g);
    check_gradients(&g, false);
    golden_close(&g);
}
#define BASE(test, name)                                                                           \
    Test(engine, test)                                                                             \
    {                                                                                              \
        check_base(name);                                                                          \
    }
BASE(agrees_with_peft_on_soft_caps_and_four_norms, "gemma2")
BASE(agrees_with_peft_on_two_rotations_and_head_norms, "gemma3")
BASE(agrees_with_peft_on_multipliers, "granite")
BASE(agrees_with_peft_on_norms_after_blocks, "olmo2")
BASE(agrees_with_peft_on_fused_modules, "phi3")
BASE(agrees_with_peft_on_partial_rotation, "phi4-mini")
BASE(agrees_with_peft_on_layers_without_rotation, "smollm3")
BASE(agrees_with_peft_on_yarn, "llama-yarn")
BASE(agrees_with_peft_on_longrope, "llama-longrope")
BASE(agrees_with_peft_on_dynamic_rope, "llama-dynamic")
