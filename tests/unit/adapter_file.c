/* Reads directories of PEFT and states made by Python. Written files are read again, and
 * tests/oracle/peft_cat.py shows that PEFT reads them. Refusals name the file and the tensor. */
#include "agg/adapter/adapter_file.h"

#include "base/file.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];

static void make_dir(void)
{
    support_dir_make(dir);
}

static void remove_dir(void)
{
    support_dir_remove(dir);
}
TestSuite(adapter_file, .init = make_dir, .fini = remove_dir);

static const char *at(const char *name)
{
    static char path[8][SUPPORT_PATH_BYTES + 64];
    static int next;
    char *out = path[next++ % 8];
    snprintf(out, sizeof path[0], "%s/%s", dir, name);
    return out;
}

static const float values[4096] = {1, 2, 3, 4, 5, 6, 7, 8};

static struct adapter_file_factor factor(uint32_t rows, uint32_t cols)
{
    return (struct adapter_file_factor){.f32 = values, .rows = rows, .cols = cols};
}

static struct adapter_file_module lora(const char *name, uint32_t r, double alpha)
{
    return (struct adapter_file_module){
        .name = name, .rank = r, .alpha = alpha, .factor = {factor(r, 8), factor(6, r)}};
}

static void write_config(const char *text)
{
    ok(file_make_dirs(at("peft")));
    ok(file_write(at("peft/adapter_config.json"), text, strlen(text), true));
}

/* A PEFT directory of one module model.q (6, 8) rank 2 with this configuration. */
static err open_with_config(const char *config)
{
    struct adapter_file f = {0};
    struct adapter_file_module m = lora("model.q", 2, 4);
    support_dir_remove(at("peft"));
    TRY(adapter_file_write_peft(at("peft"), &(struct adapter_file_meta){0}, &m, 1, true));
    write_config(config);
    err e = adapter_file_open(&f, at("peft"));
    adapter_file_close(&f);
    return e;
}

Test(adapter_file, reads_ranks_and_alphas_by_the_ends_of_module_names)
{
    char path[SUPPORT_PATH_BYTES];
    struct adapter_file f = {0};
    support_shared(path, sizeof path, "golden/rank-pattern/adapter");
    ok(adapter_file_open(&f, path));
    cr_assert_eq(f.meta.kind, ADAPTER_FILE_PEFT);
    const struct adapter_file_module *down = adapter_file_find(&f, "model.layers.1.mlp.down_proj");
    const struct adapter_file_module *q = adapter_file_find(&f, "model.layers.0.self_attn.q_proj");
    const struct adapter_file_module *q1 = adapter_file_find(&f, "model.layers.1.self_attn.q_proj");
    cr_assert(down && q && q1);
    cr_expect_eq(down->rank, 2);
    cr_expect_float_eq(down->scale, 7.0 / 2, 1e-15);
    cr_expect_eq(q->rank, 9);
    cr_expect_float_eq(q->scale, 3.0 / 9, 1e-15);
    cr_expect_eq(q1->rank, 4);
    cr_expect_float_eq(q1->scale, 8.0 / 4, 1e-15);
    cr_expect_eq(down->d_out, 64);
    cr_expect_eq(down->d_in, 160);
    for (size_t i = 1; i < f.count; i++)
        cr_expect_lt(strcmp(f.module[i - 1].name, f.module[i].name), 0);
    adapter_file_close(&f);
}

Test(adapter_file, scales_by_the_root_of_the_rank_with_rslora)
{
    char path[SUPPORT_PATH_BYTES];
    struct adapter_file f = {0};
    support_shared(path, sizeof path, "golden/qwen3-qknorm/adapter");
    ok(adapter_file_open(&f, path));
    cr_assert(f.meta.rslora);
    for (size_t i = 0; i < f.count; i++)
        cr_expect_float_eq(f.module[i].scale, f.module[i].alpha / sqrt(f.module[i].rank), 1e-15);
    adapter_file_close(&f);
}

Test(adapter_file, reads_states_with_a_carry_and_with_square_matrices)
{
    char path[SUPPORT_PATH_BYTES];
    struct adapter_file f = {0};
    support_shared(path, sizeof path, "golden/carry/state.safetensors");
    ok(adapter_file_open(&f, path));
    cr_expect_eq(f.meta.kind, ADAPTER_FILE_STATE);
    cr_expect_str_eq(f.meta.method, "flora");
    cr_expect_eq(f.module[0].carry_rank, 6);
    cr_expect_eq(f.module[0].rank, 4);
    cr_expect_float_eq(f.module[0].scale, 2, 0);
    adapter_file_close(&f);
    support_shared(path, sizeof path, "golden/small-matrix/state.safetensors");
    ok(adapter_file_open(&f, path));
    cr_expect_str_eq(f.meta.method, "fed-sb");
    cr_expect_eq(f.module[0].rank, 6);
    cr_expect_float_eq(f.module[0].scale, 1, 0);
    cr_expect_not_null(f.module[0].factor[ADAPTER_FILE_R].f32);
    cr_expect_not(adapter_file_needs_frozen(&f));
    adapter_file_close(&f);
}

Test(adapter_file, reads_back_a_peft_directory_it_wrote)
{
    struct adapter_file_module m[] = {lora("a.q_proj", 2, 4), lora("a.v_proj", 4, 3.25),
                                      lora("b.q_proj", 2, 4)};
    struct adapter_file_meta meta = {.rslora = true};
    struct adapter_file f = {0};
    ok(adapter_file_write_peft(at("out/"), &meta, m, 3, false));
    refused(adapter_file_write_peft(at("out"), &meta, m, 3, false), ERR_INPUT, "exists already");
    ok(adapter_file_write_peft(at("out"), &meta, m, 3, true));
    ok(adapter_file_open(&f, at("out")));
    cr_assert_eq(f.count, 3);
    cr_expect(f.meta.rslora);
    cr_expect_eq(f.meta.rank, 2); /* the commonest */
    cr_expect_float_eq(f.module[1].scale, 3.25 / 2, 1e-15);
    for (size_t i = 0; i < 3; i++) {
        cr_expect_str_eq(f.module[i].name, m[i].name);
        cr_expect_eq(f.module[i].rank, m[i].rank);
        cr_expect_eq(f.module[i].alpha, m[i].alpha);
        cr_expect_arr_eq(f.module[i].factor[ADAPTER_FILE_A].f32, values, m[i].rank * 8 * 4);
    }
    adapter_file_close(&f);
}

Test(adapter_file, writes_the_same_bytes_whatever_the_order_of_modules)
{
    struct adapter_file_module m[] = {lora("b", 2, 4), lora("a", 4, 8)}, swapped[] = {m[1], m[0]};
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_UPDATE, .alpha = 1.0 / 3, .round = 7};
    struct bytes one = {.max = 1 << 20}, two = {.max = 1 << 20};
    struct adapter_file f = {0};
    ok(adapter_file_write_bytes(&one, &meta, m, 2));
    ok(adapter_file_write_bytes(&two, &meta, swapped, 2));
    cr_assert_eq(one.size, two.size);
    cr_assert_arr_eq(one.data, two.data, one.size);
    ok(adapter_file_write(at("u"), &meta, m, 2, false));
    ok(adapter_file_open(&f, at("u")));
    cr_expect_eq(f.meta.alpha, 1.0 / 3);
    cr_expect_eq(f.meta.round, 7);
    cr_expect_eq(f.meta.kind, ADAPTER_FILE_UPDATE);
    adapter_file_close(&f);
    bytes_close(&one);
    bytes_close(&two);
}

Test(adapter_file, converts_half_precision_and_leaves_it_alone_when_only_mapped)
{
    uint16_t half[16], brain[12];
    for (int i = 0; i < 16; i++)
        memcpy(&half[i], &(_Float16){(_Float16)((float)i / 8)}, 2);
    for (int i = 0; i < 12; i++)
        brain[i] = bf16_from_f32((float)i / 4);
    const struct tensor tensors[] = {
        {"base_model.model.q.lora_A.weight", DTYPE_F16, 2, {2, 8}, 16, 32, half},
        {"base_model.model.q.lora_B.weight", DTYPE_BF16, 2, {6, 2}, 12, 24, brain}};
    const struct metadata meta[] = {{"fedlora.alpha", "2"}};
    struct bytes b = {.max = 1 << 16};
    struct adapter_file f = {0};
    ok(safetensors_write(&b, tensors, 2, meta, 1));
    ok(file_write(at("s"), b.data, b.size, true));
    ok(adapter_file_map(&f, at("s")));
    cr_expect_null(f.module[0].factor[ADAPTER_FILE_A].f32);
    adapter_file_close(&f);
    ok(adapter_file_open(&f, at("s")));
    cr_expect_eq(f.module[0].factor[ADAPTER_FILE_A].f32[15], 15.0F / 8);
    cr_expect_eq(f.module[0].factor[ADAPTER_FILE_B].f32[11], 11.0F / 4);
    adapter_file_close(&f);
    bytes_close(&b);
}

Test(adapter_file, matches_pattern_keys_as_peft_does)
{
    static const char config[] =
        "{\"peft_type\":\"LORA\",\"r\":%s,\"lora_alpha\":4,\"rank_pattern\":{%s}}";
    const struct {
        const char *pattern;
        bool matches;
    } key[] = {{"\"q\":2", true},
               {"\"model.q\":2", true},
               {"\"model?q\":2", false},
               {"\"odel.q\":2", false},
               {"\"mode..q\":2", false},
               {"\"model\":2", false},
               {"\".*\\\\.q\":2", true},
               {"\"(k|q)\":2", true},
               {"\"x\":9,\"q\":2", true},
               {"\"q\":9,\"q$\":2", false},
               {"\"(?:mod\\\\w+.)?q\":2", true},
               {"\"(?!q)q\":2", false},
               {"\"model.[a-q]\":2", true},
               {"\"model.[]a-q[]\":2", true},
               {"\"model.[^]a:{,]\":2", true},
               {"\"[\\\\w.]+\\\\.q\\\\Z\":2", true},
               {"\"\\\\d\":2", false}};
    for (size_t i = 0; i < sizeof key / sizeof *key; i++) {
        char text[256];
        snprintf(text, sizeof text, config, key[i].matches ? "9" : "2", key[i].pattern);
        bool nine = strstr(key[i].pattern, "\"q\":9") != NULL;
        err e = open_with_config(text);
        if (nine)
            cr_expect(strstr(e.text, "expected 9"), "the first key must win: %s", e.text);
        else
            cr_expect_not(err_is(e), "%s: %s", key[i].pattern, e.text);
    }
}

/* The first took 1.7 s of POSIX regexec on one name and 378 MB. */
Test(adapter_file, bounds_the_expressions_of_pattern_keys)
{
    static const char *const hostile[][2] = {
        {"((((a{1,20}){1,20}){1,20}){1,20})", "is not a regular expression that can be read here"},
        {"((((((((((((((((((q))))))))))))))))))", "parentheses"},
        {"(.*)*(.*)*(.*)*(.*)*(.*)*[0-9]", "takes more than 5000 steps on module"},
        {"[a-z", "missing terminating ]"},
        {"[[:alpha:]]+q", "Python reads \"[:alpha:]]\" otherwise"},
        {"q{,2}", "Python reads \"{,2}\" otherwise"},
        {"model\\\\hq", "Python reads \"\\hq\" otherwise"},
        {"(?R)q", "Python reads \"(?R)q\" otherwise"},
    };
    struct bytes text = {.max = 1 << 16};
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        bytes_clear(&text);
        ok(bytes_printf(&text,
                        "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,"
                        "\"rank_pattern\":{\"%s\":3}}",
                        hostile[i][0]));
        refused(open_with_config((const char *)text.data), ERR_INPUT, hostile[i][1]);
    }
    bytes_clear(&text);
    ok(bytes_printf(&text,
                    "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"rank_pattern\":{\"a\":3"));
    for (int i = 0; i < 40; i++)
        ok(bytes_printf(&text, ",\"(%d)\":3", i));
    ok(bytes_printf(&text, "}}"));
    refused(open_with_config((const char *)text.data), ERR_INPUT,
            "more than 32 keys are regular expressions");
    bytes_close(&text);
}

Test(adapter_file, refuses_by_name_what_changes_the_function_in_other_ways)
{
    const struct {
        const char *config, *part;
    } bad[] = {
        {"{\"peft_type\":\"IA3\",\"r\":2,\"lora_alpha\":4}", "IA3"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"use_dora\":true}",
         "lora_magnitude_vector is missing (use_dora)"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"bias\":\"all\"}", "bias"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"lora_bias\":true}", "lora_bias"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"modules_to_save\":[\"x\"]}",
         "modules_to_save"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"modules_to_save\":\"x\"}",
         "modules_to_save: expected a list"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"bias\":\"some\"}", "bias \"some\""},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"init_lora_weights\":\"pissa_niter_"
         "4\"}",
         "init_lora_weights \"pissa_niter_4\" changes the base"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"init_lora_weights\":\"loftq\"}",
         "init_lora_weights \"loftq\""},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"loftq_config\":{\"loftq_bits\":4}}",
         "LoftQ"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"ensure_weight_tying\":true}", "tied"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"trainable_token_indices\":[1]}",
         "trainable_token_indices"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"layer_replication\":[[0,1]]}",
         "layer_replication"},
        {"{\"peft_type\":\"VERA\",\"r\":2}", "VERA"},
        {"{\"peft_type\":\"ADALORA\",\"r\":2}", "ADALORA"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":0}", "lora_alpha"},
        {"{\"peft_type\":\"LORA\",\"r\":0,\"lora_alpha\":1}", "r: 0"},
        {"{\"peft_type\":\"LORA\",\"r\":99999,\"lora_alpha\":1}", "r: 99999"},
        {"{\"peft_type\":\"LORA\",\"r\":3,\"lora_alpha\":1}", "rank 2, expected 3"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1,\"alpha_pattern\":{\"q\":0}}", "q"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1,\"alpha_pattern\":{\"(\":1}}", "(("},
        {"{\"r\":2,\"lora_alpha\":4}", "peft_type"},
        {"[]", "peft_type"},
        {"{", "JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        err e = open_with_config(bad[i].config);
        const char *part = strcmp(bad[i].part, "((") == 0 ? "(" : bad[i].part;
        cr_expect_eq(e.kind, ERR_INPUT, "%s: accepted", bad[i].config);
        cr_expect(strstr(e.text, part), "%s: \"%s\"", bad[i].config, e.text);
    }
    ok(open_with_config("{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4,\"modules_to_save\":null,"
                        "\"use_dora\":false,\"bias\":\"none\",\"init_lora_weights\":\"eva\","
                        "\"exclude_modules\":[\"k\"],\"layers_to_transform\":[0]}"));
    struct adapter_file f = {0};
    refused(adapter_file_open(&f, dir), ERR_INPUT, "adapter_config.json is missing");
    refused(adapter_file_open(&f, at("peft/adapter_model.safetensors")), ERR_INPUT,
            "is a part of a PEFT adapter: expected the directory");
    cr_assert_eq(rename(at("peft/adapter_model.safetensors"), at("peft/adapter_model.bin")), 0);
    refused(adapter_file_open(&f, at("peft")), ERR_INPUT, "reading adapter_model.bin can run code");
    refused(adapter_file_open(&f, at("nothing")), ERR_INPUT, "no such file");
}

static err open_tensors(const struct tensor *t, size_t count, const struct metadata *m, size_t n)
{
    struct bytes b = {.max = 4 << 20};
    struct adapter_file f = {0};
    ok(safetensors_write(&b, t, count, m, n));
    ok(file_write(at("t"), b.data, b.size, true));
    bytes_close(&b);
    err e = adapter_file_open(&f, at("t"));
    adapter_file_close(&f);
    return e;
}

#define T(name, d0, d1)                                                                            \
    {                                                                                              \
        "base_model.model." name ".weight", DTYPE_F32, 2, {d0, d1}, (d0) * (d1), (d0) * (d1)*4,    \
            values                                                                                 \
    }

/* The text is no JSON, so the error shows that it was refused before it was parsed. */
Test(adapter_file, refuses_metadata_too_long_for_any_adapter)
{
    struct bytes text = {.max = 4 << 20};
    for (int i = 0; i < 1 << 19; i++)
        ok(bytes_append(&text, "[[[[", 4));
    ok(bytes_append(&text, "[", 2));
    const struct metadata modules[] = {{"fedlora.modules", (const char *)text.data}};
    refused(open_tensors(NULL, 0, modules, 1), ERR_INPUT,
            "metadata fedlora.modules: 2097153 bytes, expected at most 2097152");
    bytes_close(&text);
}

Test(adapter_file, refuses_tensors_that_do_not_fit_together)
{
    const struct metadata alpha[] = {{"fedlora.alpha", "2"}};
    const struct metadata update[] = {{"fedlora.alpha", "2"}, {"fedlora.kind", "update"}};
    const struct tensor ranks[] = {T("q.lora_A", 2, 8), T("q.lora_B", 6, 3)};
    refused(open_tensors(ranks, 2, alpha, 1), ERR_INPUT,
            "tensor base_model.model.q.lora_B.weight: shape (6, 3), expected rank 2");
    const struct tensor carry[] = {T("q.lora_A", 2, 8), T("q.lora_B", 6, 2), T("q.carry_A", 4, 7),
                                   T("q.carry_B", 6, 4)};
    refused(open_tensors(carry, 4, alpha, 1), ERR_INPUT, "shape (4, 7), expected d_in 8");
    const struct tensor half[] = {T("q.carry_A", 4, 8)};
    refused(open_tensors(half, 1, alpha, 1), ERR_INPUT, "q.carry_B.weight is missing");
    refused(open_tensors(carry, 1, alpha, 1), ERR_INPUT, "q.lora_B.weight is missing");
    ok(open_tensors(carry, 1, update, 2));
    refused(open_tensors(carry, 2, NULL, 0), ERR_INPUT, "alpha is missing");
    const struct tensor square[] = {T("q.lora_R", 2, 3)};
    refused(open_tensors(square, 1, update, 2), ERR_INPUT, "shape (2, 3), expected rank 2");
    const struct tensor name[] = {T("q.lora_magnitude_vector", 2, 3)};
    refused(open_tensors(name, 1, update, 2), ERR_INPUT,
            "expected base_model.model.<module>.lora_A");
    const struct tensor embedding[] = {T("embed.lora_embedding_A", 2, 3)};
    refused(open_tensors(embedding, 1, update, 2), ERR_INPUT, "expected base_model.model.<module>");
    const struct tensor kernel[] = {
        {"base_model.model.conv.lora_A.weight", DTYPE_F32, 4, {2, 2, 3, 3}, 36, 144, values}};
    refused(open_tensors(kernel, 1, update, 2), ERR_INPUT, "two dimensions");
    const struct tensor one[] = {
        {"base_model.model.q.lora_A.weight", DTYPE_F32, 1, {8}, 8, 32, values}};
    refused(open_tensors(one, 1, update, 2), ERR_INPUT, "two dimensions");
    const struct tensor whole[] = {
        {"base_model.model.q.lora_A.weight", DTYPE_I32, 2, {2, 2}, 4, 16, values}};
    refused(open_tensors(whole, 1, update, 2), ERR_INPUT, "I32");
    const struct metadata kind[] = {{"fedlora.kind", "gift"}};
    refused(open_tensors(whole, 1, kind, 1), ERR_INPUT, "gift");
}

Test(adapter_file, names_the_first_value_that_is_not_finite)
{
    float bad[16] = {0};
    const struct metadata update[] = {{"fedlora.alpha", "2"}, {"fedlora.kind", "update"}};
    const struct tensor t[] = {
        {"base_model.model.q.lora_A.weight", DTYPE_F32, 2, {2, 8}, 16, 64, bad}};
    bad[13] = NAN;
    refused(open_tensors(t, 1, update, 2), ERR_INPUT, "q.lora_A.weight: value 13 is NaN");
    bad[13] = -INFINITY;
    refused(open_tensors(t, 1, update, 2), ERR_INPUT, "value 13 is infinite");
    struct adapter_file_module m = {.name = "q", .rank = 2, .alpha = 2};
    m.factor[0] = (struct adapter_file_factor){.f32 = bad, .rows = 2, .cols = 8};
    refused(adapter_file_write(at("n"), &(struct adapter_file_meta){.kind = ADAPTER_FILE_UPDATE},
                               &m, 1, true),
            ERR_INPUT, "value 13");
    cr_expect_not(file_exists(at("n")), "something was written");
}

Test(adapter_file, joins_a_state_with_its_frozen_factors)
{
    struct adapter_file_module frozen = lora("q", 2, 2), small = {.name = "q", .rank = 2};
    small.factor[ADAPTER_FILE_R] = factor(2, 2);
    struct adapter_file_meta meta = {.kind = ADAPTER_FILE_FROZEN, .base = "b"};
    struct adapter_file state = {0}, basis = {0};
    ok(adapter_file_write(at("f"), &meta, &frozen, 1, false));
    meta = (struct adapter_file_meta){
        .kind = ADAPTER_FILE_STATE, .base = "b", .frozen = "d", .alpha = 2, .rank = 2};
    ok(adapter_file_write(at("s"), &meta, &small, 1, false));
    ok(adapter_file_open(&state, at("s")));
    ok(adapter_file_open(&basis, at("f")));
    cr_expect(adapter_file_needs_frozen(&state));
    refused(adapter_file_join(&state, &basis, "e"), ERR_INPUT, "frozen factors");
    ok(adapter_file_join(&state, &basis, "d"));
    cr_expect_not(adapter_file_needs_frozen(&state));
    cr_expect_eq(state.module[0].d_in, 8);
    cr_expect_eq(state.module[0].d_out, 6);
    cr_expect_float_eq(state.module[0].scale, 1, 0);
    adapter_file_close(&state);
    adapter_file_close(&basis);
}
