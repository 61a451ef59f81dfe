/* Tensors saved whole in an adapter: how they are found, their names, and the functions that refuse
 * them. tests/oracle/peft_saved.py shows that PEFT writes and reads the same files. */
#include "agg/adapter/adapter_saved.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];
static float values[64] = {1, -2, 3, -4, 5, -6, 7, -8, 9, 10, 11, 12};

static void begin(void)
{
    support_dir_make(dir);
}

static void end(void)
{
    support_dir_remove(dir);
}
TestSuite(adapter_saved, .init = begin, .fini = end);

static const char *at(const char *name)
{
    static char path[SUPPORT_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    return path;
}

static struct tensor tensor(const char *name, int dims, uint64_t rows, uint64_t cols)
{
    struct tensor t = {.name = name, .dtype = DTYPE_F32, .dims = dims, .shape = {rows, cols}};
    t.count = dims == 2 ? rows * cols : rows;
    t.size = t.count * sizeof(float);
    t.data = values;
    return t;
}

static const struct adapter_file_module module = {
    .name = "model.q",
    .rank = 2,
    .alpha = 2,
    .factor = {{.f32 = values, .rows = 2, .cols = 8}, {.f32 = values, .rows = 6, .cols = 2}},
};

static err write(const struct adapter_file_saved *saved, size_t count)
{
    const struct adapter_file_meta meta = {
        .bias = "all", .modules_to_save = "[\"head\"]", .task_type = "SEQ_CLS"};
    const struct adapter_file_peft what = {.meta = &meta,
                                           .module = &module,
                                           .count = 1,
                                           .saved = saved,
                                           .saved_count = count,
                                           .replace = true};
    return adapter_file_save_peft(at("peft"), &what);
}

Test(adapter_saved, biases_and_saved_modules_come_back_under_one_name)
{
    const struct tensor t[] = {tensor("", 2, 3, 4), tensor("", 1, 6, 0), tensor("", 1, 5, 0)};
    const struct adapter_file_saved saved[] = {
        {"score_head.weight", &t[0]}, {"model.q.bias", &t[1]}, {"model.norm.bias", &t[2]}};
    struct adapter_file f = {0};
    ok(write(saved, 3));
    ok(adapter_file_map_whole(&f, at("peft")));
    cr_expect_eq(f.count, 1);
    cr_assert_eq(f.saved_count, 3);
    cr_expect_str_eq(f.saved[0].name, "model.norm.bias");
    cr_expect_str_eq(f.saved[0].tensor->name, "base_model.model.model.norm.bias");
    cr_expect_str_eq(f.saved[1].name, "model.q.bias");
    cr_expect_str_eq(f.saved[1].tensor->name, "base_model.model.model.q.base_layer.bias");
    cr_expect_str_eq(f.saved[2].name, "score_head.weight");
    cr_expect_eq(f.saved[2].tensor->shape[1], 4);
    cr_expect_eq(memcmp(f.saved[2].tensor->data, values, 12 * sizeof(float)), 0);
    cr_expect_str_eq(f.meta.task_type, "SEQ_CLS");
    cr_expect_str_eq(f.meta.bias, "all");
    cr_expect_str_eq(f.meta.modules_to_save, "[\"head\"]");
    adapter_file_close(&f);
}

Test(adapter_saved, who_knows_a_and_b_only_refuses_them_by_name)
{
    const struct tensor t = tensor("", 2, 3, 4);
    const struct adapter_file_saved saved = {"score_head.weight", &t};
    struct adapter_file f = {0};
    ok(write(&saved, 1));
    refused(adapter_file_open(&f, at("peft")), ERR_INPUT, "modules_to_save: modules saved whole");
    refused(adapter_file_map(&f, at("peft")), ERR_INPUT, "modules_to_save: modules saved whole");
}

Test(adapter_saved, a_tensor_no_setting_speaks_of_is_refused)
{
    const struct tensor t = tensor("", 2, 3, 4);
    const struct adapter_file_saved saved = {"model.final.weight", &t};
    struct adapter_file f = {0};
    ok(write(&saved, 1));
    refused(adapter_file_map_whole(&f, at("peft")), ERR_INPUT,
            "tensor base_model.model.model.final.weight: expected");
    refused(adapter_file_map_whole(&f, at("peft")), ERR_INPUT,
            "(modules_to_save and bias do not list it as saved whole)");
}

/* After a change of the vocabulary PEFT saves both without a setting. */
Test(adapter_saved, embeddings_and_heads_need_no_setting)
{
    const struct tensor t[] = {tensor("", 2, 3, 4), tensor("", 2, 3, 4)};
    const struct adapter_file_saved saved[] = {{"lm_head.weight", &t[0]},
                                               {"model.embed_tokens.weight", &t[1]}};
    const struct adapter_file_peft what = {.meta = &(struct adapter_file_meta){.root = NULL},
                                           .module = &module,
                                           .count = 1,
                                           .saved = saved,
                                           .saved_count = 2,
                                           .replace = true};
    struct adapter_file f = {0};
    ok(adapter_file_save_peft(at("peft"), &what));
    ok(adapter_file_open_whole(&f, at("peft")));
    cr_assert_eq(f.saved_count, 2);
    cr_expect_str_eq(f.saved[0].name, "lm_head.weight");
    cr_expect_str_eq(f.saved[1].name, "model.embed_tokens.weight");
    adapter_file_close(&f);
    refused(adapter_file_open(&f, at("peft")), ERR_INPUT, "lm_head.weight is saved whole");
}

Test(adapter_saved, values_that_are_not_finite_are_not_written)
{
    float bad[12] = {[7] = INFINITY};
    struct tensor t = tensor("", 2, 3, 4);
    const struct adapter_file_saved saved = {"head.weight", &t};
    t.data = bad;
    refused(write(&saved, 1), ERR_INPUT, "head.weight: value 7 is not finite");
    cr_expect_not(file_exists(at("peft")));
}
