/* Tensors saved whole in an adapter, such as classification heads and trained biases. Their means
 * are compared with plain sums for every type; tensors that cannot be averaged are refused. */
#include "agg/combine/combine.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD = 70000 }; /* more than one block of values */
static char dir[SUPPORT_PATH_BYTES], path_of[3][SUPPORT_PATH_BYTES + 64];
static const char *const paths[] = {path_of[0], path_of[1], path_of[2]};
static const double weights[] = {5, 2, 3};
static float value[3][HEAD];

static void begin(void)
{
    support_dir_make(dir);
    for (int k = 0; k < 3; k++) {
        snprintf(path_of[k], sizeof path_of[k], "%s/%c", dir, 'a' + k);
        for (int j = 0; j < HEAD; j++) /* exact in bfloat16 */
            value[k][j] = f32_from_bf16(bf16_from_f32((float)((j * 31 + k * 17) % 251) - 100));
    }
}

static void end(void)
{
    support_dir_remove(dir);
}
TestSuite(combine_saved, .init = begin, .fini = end);

static struct tensor tensor(const char *name, const void *data, enum dtype type,
                            const size_t shape[2])
{
    struct tensor t = {.name = name, .dtype = type, .dims = shape[1] ? 2 : 1, .data = data};
    t.shape[0] = shape[0];
    t.shape[1] = shape[1];
    t.count = shape[0] * (shape[1] ? shape[1] : 1);
    t.size = t.count * (type == DTYPE_F32 ? 4 : 2);
    return t;
}

struct adapter {      /* what the k-th directory holds */
    const char *head; /* the module saved whole; NULL: none */
    size_t shape[2];
    enum dtype type;
    bool bias;
};

/* One adapted module model.q, a head and a bias, as PEFT writes them. */
static void write_adapter(int k, const struct adapter *a)
{
    static uint16_t half[HEAD];
    static const size_t lora_a[2] = {2, 8}, lora_b[2] = {6, 2}, six[2] = {6, 0};
    struct tensor t[4];
    char config[512], name[128], path[SUPPORT_PATH_BYTES + 128];
    struct bytes file = {.max = 1 << 24};
    size_t n = 0;
    t[n++] = tensor("base_model.model.model.q.lora_A.weight", value[k], DTYPE_F32, lora_a);
    t[n++] = tensor("base_model.model.model.q.lora_B.weight", value[k] + 50, DTYPE_F32, lora_b);
    for (int j = 0; j < HEAD; j++) {
        _Float16 f16 = (_Float16)value[k][j];
        half[j] = bf16_from_f32(value[k][j]);
        if (a->type == DTYPE_F16) memcpy(&half[j], &f16, sizeof f16);
    }
    snprintf(name, sizeof name, "base_model.model.%s.weight", a->head ? a->head : "");
    if (a->head)
        t[n++] =
            tensor(name, a->type == DTYPE_F32 ? (const void *)value[k] : half, a->type, a->shape);
    if (a->bias)
        t[n++] = tensor("base_model.model.model.q.base_layer.bias", value[k] + 7, DTYPE_F32, six);
    snprintf(config, sizeof config,
             "{\"peft_type\":\"LORA\",\"task_type\":\"SEQ_CLS\",\"r\":2,\"lora_alpha\":2,"
             "\"modules_to_save\":[\"classifier\",\"score\"],\"bias\":\"%s\"}",
             a->bias ? "all" : "none");
    ok(file_make_dirs(path_of[k]));
    ok(safetensors_write(&file, t, n, NULL, 0));
    ok(file_join(path, sizeof path, path_of[k], "adapter_model.safetensors"));
    ok(file_write(path, file.data, file.size, true));
    ok(file_join(path, sizeof path, path_of[k], "adapter_config.json"));
    ok(file_write(path, config, strlen(config), true));
    bytes_close(&file);
}

static struct combine_options options(void)
{
    return (struct combine_options){.method = method_find("flora"),
                                    .path = paths,
                                    .weight = weights,
                                    .count = 3,
                                    .scratch = path_of[0]};
}

static const struct adapter usual = {"score", {7, 10000}, DTYPE_F32, true};

Test(combine_saved, heads_and_biases_are_averaged_whatever_type_they_come_in)
{
    static const enum dtype types[3] = {DTYPE_F32, DTYPE_BF16, DTYPE_F16};
    struct combine_options o = options();
    struct combine c = {0};
    struct adapter_file f = {0};
    char out[SUPPORT_PATH_BYTES + 64];
    for (int k = 0; k < 3; k++) {
        struct adapter a = usual;
        a.type = types[k];
        write_adapter(k, &a);
    }
    ok(combine_open(&c, &o));
    snprintf(out, sizeof out, "%s/out", dir);
    ok(combine_write(&c, out, false));
    ok(adapter_file_map_whole(&f, out));
    cr_assert_eq(f.saved_count, 2);
    cr_expect_str_eq(f.saved[0].tensor->name, "base_model.model.model.q.base_layer.bias");
    cr_expect_str_eq(f.saved[1].tensor->name, "base_model.model.score.weight");
    cr_expect_eq(f.saved[1].tensor->shape[0], 7);
    cr_expect_eq(f.saved[1].tensor->dtype, DTYPE_F32);
    cr_expect_str_eq(f.meta.bias, "all");
    cr_expect_str_eq(f.meta.task_type, "SEQ_CLS");
    cr_expect_str_eq(f.meta.modules_to_save, "[\"classifier\",\"score\"]");
    for (int j = 0; j < HEAD; j++) {
        double mean = 0.5 * value[0][j] + 0.2 * value[1][j] + 0.3 * value[2][j];
        float got = ((const float *)f.saved[1].tensor->data)[j];
        cr_assert(fabs(got - mean) <= 1e-6 * fabs(mean) + 1e-12, "value %d: %g, %g", j, got, mean);
    }
    for (size_t i = 0; i < 2; i++) {
        double error = 1;
        ok(combine_verify_saved(&error, &c, i, &f));
        cr_expect_lt(error, 1e-7);
    }
    adapter_file_close(&f);
    combine_close(&c);
}

Test(combine_saved, what_a_robust_rule_takes_from_an_adapter_does_not_shrink_a_head)
{
    const char *const word[] = {"robust=norm"};
    struct method_options rule;
    struct combine_options o = options();
    struct combine c = {0};
    for (int k = 0; k < 3; k++)
        write_adapter(k, &usual);
    ok(method_options_parse(&rule, o.method, word, 1));
    o.options = &rule;
    ok(combine_open(&c, &o));
    double sum = c.p[0] + c.p[1] + c.p[2];
    cr_expect_lt(sum, 0.99);
    const float *head = c.saved[1].tensor->data;
    for (int j = 0; j < HEAD; j += 97) {
        double mean = 0;
        for (int k = 0; k < 3; k++)
            mean += c.p[k] / sum * value[k][j];
        cr_expect(fabs(head[j] - mean) <= 1e-6 * fabs(mean) + 1e-12, "value %d", j);
    }
    combine_close(&c);
}

static void expect_refusal(const struct adapter *last, const char *part)
{
    struct combine_options o = options();
    struct combine c = {0};
    write_adapter(0, &usual);
    write_adapter(1, &usual);
    write_adapter(2, last);
    refused(combine_open(&c, &o), ERR_INPUT, part);
}

Test(combine_saved, what_is_not_in_every_adapter_or_of_another_shape_is_refused)
{
    struct adapter a = usual;
    a.head = NULL;
    expect_refusal(&a, "/c: score.weight is saved whole in");
    a = usual;
    a.head = "classifier";
    expect_refusal(&a, "is saved whole in");
    a = usual;
    a.bias = false;
    expect_refusal(&a, "/c: model.q.bias is saved whole in");
    a = usual;
    a.shape[0] = 6;
    expect_refusal(&a, "tensor base_model.model.score.weight: its shape differs from that in");
}

Test(combine_saved, more_in_a_later_adapter_is_refused_too)
{
    struct combine_options o = options();
    struct combine c = {0};
    struct adapter a = usual;
    a.head = NULL;
    write_adapter(0, &a);
    write_adapter(1, &usual);
    write_adapter(2, &usual);
    refused(combine_open(&c, &o), ERR_INPUT, "/a: score.weight is saved whole in");
}

Test(combine_saved, values_that_are_not_finite_are_named)
{
    value[2][66000] = NAN;
    expect_refusal(&usual, "/c: tensor base_model.model.score.weight: value 66000 is NaN");
}
