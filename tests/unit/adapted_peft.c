/* Adapters with more than A and B of the decoder's modules, against the logits of PEFT
 * (tests/golden/peft, made by tests/oracle/peft_adapters.py): applied to the open model, merged
 * into a new one, and written again by the exporter. */
#include "engine/adapted.h"

#include "agg/combine/combine.h"
#include "client/export/export.h"
#include "engine/adapter_gguf.h"
#include "engine/engine.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS = 8, VOCAB_MOST = 64 };

static char dir[SUPPORT_PATH_BYTES];

static void begin(void)
{
    support_dir_make(dir);
}

static void end(void)
{
    support_dir_remove(dir);
}
TestSuite(adapted, .init = begin, .fini = end);

/* clang-format off */
static const struct {
    const char *name, *base;
    uint32_t vocab;
    int32_t last; /* the last token: one that was added, where some were */
} cases[] = {
    {"resized",      "models/qwen3",        45, 44},
    {"resized-tied", "models/llama",        43, 42},
    {"vocabulary",   "models/qwen3",        40, 3},
    {"dora",         "models/llama",        40, 3},
    {"dora2",        "models/llama",        40, 3},
    {"plain",        "models/llama",        40, 3},
    {"saved",        "models/llama-bias",   40, 3},
    {"gemma",        "golden/bases/gemma3", 47, 3}, /* norms that are stored less 1 */
};
/* clang-format on */
enum { CASES = sizeof cases / sizeof *cases, DORA = 3 };

static const char *golden(const char *name)
{
    static char path[SUPPORT_PATH_BYTES];
    char part[128];
    snprintf(part, sizeof part, "tests/golden/peft/%s", name);
    support_source(path, sizeof path, part);
    return path;
}

static const char *base_of(int i)
{
    static char path[SUPPORT_PATH_BYTES];
    char part[128];
    snprintf(part, sizeof part, "tests/%s", cases[i].base);
    support_source(path, sizeof path, part);
    return path;
}

/* The logits of the model with the adapter (NULL: alone) must be those in the file `path`, which is
 * case i's. */
static void expect_file(int i, const struct model *m, const struct adapter *ad, const char *what,
                        const char *path)
{
    struct safetensors expect = {0};
    struct engine *engine = NULL;
    float got[TOKENS * VOCAB_MOST];
    const int32_t id[TOKENS] = {1, 5, 9, 30, 39, 12, 7, cases[i].last};
    const struct engine_row row = {.id = id, .count = TOKENS, .adapter = ad};
    ok(safetensors_open(&expect, path));
    const struct tensor *want = safetensors_find(&expect, "logits");
    cr_assert_eq(m->arch.vocab, cases[i].vocab, "%s", cases[i].name);
    cr_assert_eq(want->count, TOKENS * m->arch.vocab);
    ok(engine_open(&engine, m,
                   &(struct engine_options){
                       .device = "cpu", .precision = DTYPE_F32, .inference = true, .threads = 1}));
    ok(engine_logits(got, engine, &row));
    double off = support_distance(got, want->data, want->count);
    cr_expect_lt(off, 1e-5, "%s on %s, %s: %g", cases[i].name, cases[i].base, what, off);
    engine_close(engine);
    safetensors_close(&expect);
}

static void expect_logits(int i, const struct model *m, const struct adapter *ad, const char *what)
{
    char path[SUPPORT_PATH_BYTES];
    ok(file_join(path, sizeof path, golden(cases[i].name), "expect.safetensors"));
    expect_file(i, m, ad, what, path);
}

static void apply_expecting(int i, const char *adapter, const char *what, const char *expect)
{
    struct model m = {0};
    struct adapter ad = {0};
    char wanted[SUPPORT_PATH_BYTES];
    bool left = false;
    snprintf(wanted, sizeof wanted, "%s", expect);
    ok(model_open(&m, base_of(i)));
    ok(adapted_open(&ad, &left, &m, adapter));
    expect_file(i, &m, left ? &ad : NULL, what, wanted);
    adapter_close(&ad);
    model_close(&m);
}

static void apply(int i, const char *adapter, const char *what)
{
    char expect[SUPPORT_PATH_BYTES];
    ok(file_join(expect, sizeof expect, golden(cases[i].name), "expect.safetensors"));
    apply_expecting(i, adapter, what, expect);
}

Test(adapted, gives_the_logits_of_peft)
{
    for (int i = 0; i < CASES; i++)
        apply(i, golden(cases[i].name), "applied");
}

Test(adapted, merged_models_give_the_same)
{
    for (int i = 0; i < CASES; i++) {
        struct model m = {0};
        struct adapter_file file = {0};
        struct flatten delta = {0};
        char out[SUPPORT_PATH_BYTES];
        const struct export_merged_options how = {.type = DTYPE_F32};
        char name[32];
        snprintf(name, sizeof name, "%d", i);
        ok(file_join(out, sizeof out, dir, name));
        ok(model_open(&m, base_of(i)));
        ok(adapter_file_open_whole(&file, golden(cases[i].name)));
        ok(adapted_fold(&m, &file));
        ok(flatten_open(&delta, &file, &(struct lowrank_cut){0}, 1));
        ok(export_merged(out, &delta, &m, &how));
        flatten_close(&delta);
        adapter_file_close(&file);
        model_close(&m);
        ok(model_open(&m, out));
        expect_logits(i, &m, NULL, "merged");
        model_close(&m);
    }
}

Test(adapted, written_as_peft_again_they_give_the_same)
{
    for (int i = 0; i < CASES; i++) {
        struct adapter_file file = {0};
        char out[SUPPORT_PATH_BYTES];
        char name[32];
        snprintf(name, sizeof name, "%d", i);
        ok(file_join(out, sizeof out, dir, name));
        ok(adapter_file_open_whole(&file, golden(cases[i].name)));
        ok(export_peft_whole(out, &file, NULL, false));
        adapter_file_close(&file);
        apply(i, out, "written again");
    }
}

Test(adapted, refuses_parts_that_the_base_does_not_have)
{
    struct model m = {0};
    struct adapter ad = {0};
    bool left = false;
    ok(model_open(&m, base_of(0)));
    refused(adapted_open(&ad, &left, &m, golden("saved")), ERR_INPUT,
            "tensor base_model.model.model.layers.0.mlp.down_proj.bias: the base has no tensor "
            "model.layers.0.mlp.down_proj.bias");
    model_close(&m);
    ok(model_open(&m, base_of(1)));
    refused(adapted_open(&ad, &left, &m, golden("resized")), ERR_INPUT, "here (32, 32)");
    model_close(&m);
}

/* Written by gguf-py as llama.cpp's converter does: rows permuted, A of an embedding transposed. */
Test(adapted, adapters_of_llama_cpp_are_those_of_peft)
{
    static const struct {
        const char *peft, *gguf, *base;
    } pair[] = {{"plain", "plain.gguf", "llama"}, {"vocabulary", "vocabulary.gguf", "qwen3"}};
    for (int i = 0; i < 2; i++) {
        struct model m = {0};
        struct adapter_file want = {0}, got = {0};
        char base[SUPPORT_PATH_BYTES], part[128];
        snprintf(part, sizeof part, "tests/models/%s", pair[i].base);
        support_source(base, sizeof base, part);
        ok(model_open(&m, base));
        ok(adapter_file_open_whole(&want, golden(pair[i].peft)));
        cr_expect(adapter_gguf_is(golden(pair[i].gguf)));
        ok(adapter_gguf_open(&got, golden(pair[i].gguf), &m));
        cr_assert_eq(got.count, want.count);
        for (size_t k = 0; k < want.count; k++) {
            const struct adapter_file_module *x = &got.module[k], *y = &want.module[k];
            cr_expect_str_eq(x->name, y->name);
            cr_expect_eq(x->embedding, y->embedding);
            cr_expect_eq(x->scale, y->scale);
            for (int r = 0; r < 2; r++) {
                cr_assert_eq(x->factor[r].rows, y->factor[r].rows, "%s", y->name);
                cr_assert_eq(x->factor[r].cols, y->factor[r].cols);
                cr_expect_arr_eq(x->factor[r].f32, y->factor[r].f32,
                                 y->factor[r].rows * y->factor[r].cols * sizeof(float), "%s",
                                 y->name);
            }
        }
        adapter_file_close(&want);
        adapter_file_close(&got);
        struct adapter ad = {0};
        bool left = false;
        refused(adapted_open(&ad, &left, &m, golden(pair[i].gguf)), ERR_INPUT,
                "is a GGUF adapter, which goes with a GGUF base; for ");
        refused(adapter_gguf_open(&got, golden(pair[!i].gguf), &m), ERR_INPUT, "but the base is");
        model_close(&m);
    }
}

/* A GGUF of Gemma stores norms whole, and Hugging Face and PEFT store them less 1. */
Test(adapted, norms_of_gemma_are_the_same_on_a_gguf_base)
{
    static const char *const bases[] = {"tests/golden/bases/gemma3",
                                        "tests/golden/bases/gemma3/bf16.gguf"};
    float norm[2][24];
    for (int i = 0; i < 2; i++) {
        struct model m = {0};
        struct adapter_file file = {0};
        char path[SUPPORT_PATH_BYTES];
        support_source(path, sizeof path, bases[i]);
        ok(model_open(&m, path));
        ok(adapter_file_open_whole(&file, golden("gemma")));
        ok(adapted_fold(&m, &file));
        cr_assert_eq(m.final_norm.rows, 24);
        for (uint32_t k = 0; k < 24; k++)
            weight_rows_f32(&norm[i][k], &m.final_norm, k, 1);
        adapter_file_close(&file);
        model_close(&m);
    }
    cr_expect_arr_eq(norm[0], norm[1], sizeof norm[0]);
}

/* The base's rows, which DoRA needs, for the layers of the golden adapters. */
static err rows_of(float *out, void *base, const struct adapter_file_module *m, uint32_t row,
                   uint32_t n)
{
    const struct model *model = base;
    uint32_t layer;
    enum module_kind kind;
    TRY(model_module_parse(&layer, &kind, m->name));
    weight_rows_f32(out, &model->layer[layer].linear[kind], row, n);
    return ERR_NONE;
}

/* dora-mean.safetensors: PEFT merged each adapter into the base, and the weights were averaged. */
Test(adapted, the_mean_of_dora_adapters_is_an_exact_dora_adapter)
{
    static char path[3][SUPPORT_PATH_BYTES];
    static const char *const paths[] = {path[0], path[1], path[2]};
    static const char *const names[] = {"dora", "dora2", "plain"};
    static const double weight[] = {5, 3, 2};
    struct model m = {0};
    struct combine c = {0};
    struct adapter_file written = {0};
    char out[SUPPORT_PATH_BYTES], scratch[SUPPORT_PATH_BYTES];
    for (int k = 0; k < 3; k++)
        snprintf(path[k], sizeof path[k], "%s", golden(names[k]));
    ok(file_join(out, sizeof out, dir, "mean"));
    ok(file_join(scratch, sizeof scratch, dir, "scratch"));
    ok(model_open(&m, base_of(DORA)));
    struct combine_options o = {.method = method_find("flora"),
                                .path = paths,
                                .weight = weight,
                                .count = 3,
                                .scratch = scratch};
    refused(combine_open(&c, &o), ERR_INPUT, "depends on the base: expected --base");
    o.base_rows = rows_of;
    o.base = &m;
    ok(combine_open(&c, &o));
    ok(combine_write(&c, out, false));
    ok(adapter_file_map_whole(&written, out));
    for (size_t i = 0; i < c.count; i++) {
        struct combine_verified v;
        ok(combine_verify(&v, &c, i, &written));
        cr_expect_lt(v.error, 1e-6 * v.norm, "%s: %g", c.module[i].name, v.error / v.norm);
        cr_expect(fabs(v.norm - c.report.row[i].update_norm) < 1e-6 * v.norm);
    }
    cr_expect_eq(c.report.total.rank, 7); /* of q: 3, 2 and 2 */
    adapter_file_close(&written);
    combine_close(&c);
    model_close(&m);
    apply_expecting(DORA, out, "mean", golden("dora-mean.safetensors"));
}

/* Training would leave the other parts out of its result. */
Test(adapted, are_not_opened_by_those_who_apply_a_and_b_only)
{
    struct adapter_file file = {0};
    for (int i = 0; i < CASES; i++) {
        if (strcmp(cases[i].name, "plain") == 0) continue;
        cr_expect_eq(adapter_file_open(&file, golden(cases[i].name)).kind, ERR_INPUT, "%s",
                     cases[i].name);
    }
}
