#include "engine/model/model.h"

#include "base/json.h"
#include "base/rng.h"
#include "base/safetensors.h"
#include "kernels/quant.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void own_path(char *out, const char *name)
{
    char relative[512];
    snprintf(relative, sizeof relative, "tests/models/%s", name);
    support_source(out, SUPPORT_PATH_BYTES, relative);
}

static void digest_hex(char out[DIGEST_TEXT_BYTES], const char *path)
{
    struct model m = {0};
    struct digest d;
    ok(model_open(&m, path));
    ok(model_digest(&d, &m));
    digest_text(out, &d);
    model_close(&m);
}

/* Against the digest that make_models.py computed from PyTorch's tensors by the definition in
 * model.h. */
static void check_digest(const char *folder, const char *file)
{
    char path[SUPPORT_PATH_BYTES], expect[SUPPORT_PATH_BYTES], name[256], hex[DIGEST_TEXT_BYTES];
    const char *wanted = NULL;
    json_t *root;
    snprintf(name, sizeof name, "%s/expect.json", folder);
    own_path(expect, name);
    ok(json_open(&root, expect, 1 << 20));
    ok(json_get_str(&wanted, root, "digest", "expect.json"));
    snprintf(name, sizeof name, "%s%s%s", folder, *file ? "/" : "", file);
    own_path(path, name);
    digest_hex(hex, path);
    cr_assert_str_eq(hex, wanted, "%s", name);
    json_decref(root);
}

Test(model, a_directory_and_its_gguf_are_one_base)
{
    const char *const folders[] = {"llama", "llama-bias", "qwen2", "qwen3"};
    for (size_t i = 0; i < sizeof folders / sizeof folders[0]; i++) {
        check_digest(folders[i], "");
        check_digest(folders[i], "f16.gguf");
    }
    check_digest("llama", "f32.gguf");
}

Test(model, a_quantised_base_is_another_base_with_nearly_the_same_values)
{
    char whole[SUPPORT_PATH_BYTES], rounded[SUPPORT_PATH_BYTES], a[DIGEST_TEXT_BYTES],
        b[DIGEST_TEXT_BYTES];
    own_path(whole, "llama");
    own_path(rounded, "llama/q8_0.gguf");
    digest_hex(a, whole);
    digest_hex(b, rounded);
    cr_assert_str_neq(a, b);
    struct model m = {0}, q = {0};
    ok(model_open(&m, whole));
    ok(model_open(&q, rounded));
    float x[32 * 32], y[32 * 32];
    for (int k = 0; k < MODULE_UNFUSED; k++) {
        uint32_t rows = m.layer[0].linear[k].rows;
        weight_rows_f32(x, &m.layer[0].linear[k], 0, rows);
        weight_rows_f32(y, &q.layer[0].linear[k], 0, rows);
        double distance = support_distance(y, x, (size_t)rows * 32);
        cr_assert(distance > 0 && distance < 0.01, "%s: %g",
                  model_module_short((enum module_kind)k), distance);
    }
    model_close(&m);
    model_close(&q);
}

Test(model, rows_are_the_same_whether_read_one_by_one_or_together)
{
    char path[SUPPORT_PATH_BYTES];
    own_path(path, "llama-bias/f16.gguf");
    struct model m = {0};
    ok(model_open(&m, path));
    const struct weight *q = &m.layer[0].linear[MODULE_Q];
    cr_assert_eq(q->rope_heads, 4);
    float all[32 * 32], one[32];
    weight_rows_f32(all, q, 0, 32);
    for (uint32_t r = 0; r < 32; r++) {
        weight_rows_f32(one, q, r, 1);
        cr_assert_eq(memcmp(one, all + r * 32, sizeof one), 0, "row %u", r);
    }
    model_close(&m);
}

Test(model, every_golden_model_opens_as_what_it_is)
{
    static const struct {
        const char *name;
        const char *family;
        uint32_t layers, d_model, heads, kv_heads, head_dim, window;
        enum rope_kind rope;
        bool qkv_bias, qk_norm, tied;
        enum dtype dtype;
    } cases[] = {
        {"llama-gqa", "llama", 2, 64, 4, 2, 16, 0, ROPE_DEFAULT, 0, 0, 1, DTYPE_F32},
        {"llama3-rope", "llama", 2, 64, 4, 1, 16, 0, ROPE_LLAMA3, 0, 0, 0, DTYPE_F32},
        {"mistral-window", "mistral", 2, 96, 4, 2, 32, 16, ROPE_DEFAULT, 0, 0, 0, DTYPE_F32},
        {"qwen2-bias", "qwen2", 2, 64, 4, 2, 16, 0, ROPE_DEFAULT, 1, 0, 1, DTYPE_BF16},
        {"qwen3-qknorm", "qwen3", 2, 64, 4, 2, 32, 0, ROPE_DEFAULT, 0, 1, 1, DTYPE_F32},
        {"rank-pattern", "llama", 3, 64, 4, 2, 16, 0, ROPE_DEFAULT, 0, 0, 0, DTYPE_F32},
        {"carry", "llama", 2, 64, 4, 2, 16, 0, ROPE_DEFAULT, 0, 0, 1, DTYPE_F32},
        {"small-matrix", "llama", 2, 64, 4, 2, 16, 0, ROPE_DEFAULT, 0, 0, 1, DTYPE_F32},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char path[SUPPORT_PATH_BYTES], name[64];
        snprintf(name, sizeof name, "golden/%s", cases[i].name);
        support_shared(path, sizeof path, name);
        struct model m = {0};
        ok(model_open(&m, path));
        const struct arch *a = &m.arch;
        cr_expect_str_eq(a->family->model_type, cases[i].family, "%s", name);
        cr_expect_eq(a->layers, cases[i].layers, "%s", name);
        cr_expect_eq(a->d_model, cases[i].d_model, "%s", name);
        cr_expect_eq(a->heads, cases[i].heads, "%s", name);
        cr_expect_eq(a->kv_heads, cases[i].kv_heads, "%s", name);
        cr_expect_eq(a->head_dim, cases[i].head_dim, "%s", name);
        cr_expect_eq(a->vocab, 320, "%s", name);
        cr_expect_eq(m.layer[1].window, cases[i].window, "%s", name);
        cr_expect_eq(a->rope.kind, cases[i].rope, "%s", name);
        cr_expect_eq(a->qkv_bias, cases[i].qkv_bias, "%s", name);
        cr_expect_eq(a->qk_norm, cases[i].qk_norm, "%s", name);
        cr_expect_eq(a->tied, cases[i].tied, "%s", name);
        cr_expect_eq(m.embed.dtype, cases[i].dtype, "%s", name);
        cr_expect_eq(m.embed.data == m.head.data, cases[i].tied, "%s", name);
        cr_expect_eq(m.bos, 1, "%s", name);
        cr_expect_eq(m.eos_count, 1, "%s", name);
        cr_expect_eq(m.eos[0], 2, "%s", name);
        model_close(&m);
    }
}

Test(model, rope_frequencies_of_llama3_follow_the_paper_formula)
{
    struct arch a = {.head_dim = 64,
                     .rope = {.kind = ROPE_LLAMA3,
                              .theta = 500000,
                              .factor = 8,
                              .low_freq_factor = 1,
                              .high_freq_factor = 4,
                              .original_positions = 8192}};
    float f[32];
    int kept = 0, divided = 0, between = 0;
    model_rope_frequencies(f, &a.rope, a.head_dim, 0);
    for (int i = 0; i < 32; i++) { /* in double, from the published code of Llama 3.1 */
        double plain = pow(500000, -2.0 * i / 64), wavelength = 2 * M_PI / plain;
        double smooth = (8192 / wavelength - 1) / 3;
        smooth = smooth < 0 ? 0 : smooth > 1 ? 1 : smooth;
        double wanted = plain * ((1 - smooth) / 8 + smooth);
        cr_assert(fabs((double)f[i] / wanted - 1) < 1e-6, "%d: %g, expected %g", i, (double)f[i],
                  wanted);
        kept += smooth == 1;
        divided += smooth == 0;
        between += smooth > 0 && smooth < 1;
    }
    cr_assert(kept > 0 && divided > 0 && between > 0);
}

Test(model, module_names_round_trip_and_others_are_refused)
{
    for (uint32_t layer = 0; layer < 512; layer += 73)
        for (int k = 0; k < MODULE_KINDS; k++) {
            char name[LIMIT_TENSOR_NAME_BYTES], prefixed[512];
            uint32_t got_layer = 999;
            enum module_kind got = MODULE_KINDS;
            model_module_name(name, layer, (enum module_kind)k);
            snprintf(prefixed, sizeof prefixed, "base_model.model.%s", name);
            ok(model_module_parse(&got_layer, &got, k % 2 ? name : prefixed));
            cr_assert(got_layer == layer && got == (enum module_kind)k, "%s", name);
        }
    const char *const bad[] = {"",
                               "model.layers.",
                               "model.layers.0.self_attn.q_proj.weight",
                               "model.layers.00.self_attn.q_proj",
                               "model.layers.-1.self_attn.q_proj",
                               "model.layers.512.self_attn.q_proj",
                               "model.layers.0.mlp.q_proj",
                               "model.layers.99999999999999999999.mlp.up_proj",
                               "lm_head"};
    uint32_t layer = 7;
    enum module_kind kind;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        refused(model_module_parse(&layer, &kind, bad[i]), ERR_INPUT, bad[i]);
    cr_assert_eq(layer, 7);
}

/* A copy of one of our models with config.json changed: `value` (JSON, NULL deletes) at `key`. */
struct variant {
    char dir[SUPPORT_PATH_BYTES];
};

static void put_config(const char *dir, const json_t *root)
{
    char path[SUPPORT_PATH_BYTES];
    ok(file_join(path, sizeof path, dir, "config.json"));
    cr_assert_eq(json_dump_file(root, path, 0), 0);
}

static struct variant variant_make(const char *folder, const char *key, const char *value)
{
    struct variant v;
    char from[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES];
    json_t *root, *changed;
    support_dir_make(v.dir);
    own_path(from, folder);
    ok(file_join(path, sizeof path, from, "config.json"));
    ok(json_open(&root, path, 1 << 20));
    if (value != NULL) {
        ok(json_parse(&changed, value, strlen(value), "value"));
        json_object_set_new(root, key, changed);
    } else if (key != NULL) {
        json_object_del(root, key);
    }
    put_config(v.dir, root);
    json_decref(root);
    ok(file_join(path, sizeof path, from, "model.safetensors"));
    ok(file_join(to, sizeof to, v.dir, "model.safetensors"));
    cr_assert_eq(symlink(path, to), 0);
    return v;
}

static void variant_refused(const char *folder, const char *key, const char *value,
                            const char *part)
{
    struct variant v = variant_make(folder, key, value);
    struct model m = {0};
    refused(model_open(&m, v.dir), ERR_INPUT, part);
    cr_assert_null(m.embed.data, "outputs are untouched on failure");
    support_dir_remove(v.dir);
}

Test(model, what_is_not_known_is_refused_by_name)
{
    variant_refused("llama", "model_type", "\"gemma3n\"",
                    "model_type \"gemma3n\": expected llama, mistral, ");
    variant_refused("llama", "model_type", NULL, "model_type is missing");
    variant_refused("llama", "hidden_act", "\"gelu\"", "hidden_act \"gelu\"");
    variant_refused("llama", "quantization_config", "{\"quant_method\":\"gptq\"}", "by gptq");
    variant_refused("llama", "rope_scaling", "{\"type\":\"ntk\",\"factor\":2}", "\"ntk\"");
    variant_refused("llama", "rope_parameters", "{\"rope_type\":\"dynamic\"}", "factor is missing");
    variant_refused("llama", "rope_parameters", "{\"rope_type\":\"longrope\"}",
                    "short_factor: expected a list of 4 numbers");
    variant_refused("llama", "rope_scaling", "{\"type\":\"default\",\"mrope_section\":[1]}",
                    "mrope_section");
    variant_refused("llama", "rope_parameters", "{\"rope_type\":\"llama3\",\"factor\":8}",
                    "low_freq_factor is missing");
    variant_refused("llama", "partial_rotary_factor", "0.5", "partial_rotary_factor 0.5");
    variant_refused("qwen2", "layer_types", "[\"sliding_attention\"]", "sliding_window is off");
    variant_refused("qwen2", "layer_types", "[\"chunked_attention\"]", "\"chunked_attention\"");
}

Test(model, a_configuration_that_does_not_fit_the_tensors_is_refused_by_tensor_and_shape)
{
    variant_refused("llama", "vocab_size", "41",
                    "tensor model.embed_tokens.weight: shape (40, 32), expected (41, 32)");
    variant_refused("llama", "num_key_value_heads", "4",
                    "self_attn.k_proj.weight: shape (16, 32), expected (32, 32)");
    variant_refused("llama", "num_key_value_heads", "3", "4 heads over 3");
    variant_refused("llama", "num_hidden_layers", "2", "model.layers.1.");
    variant_refused("llama", "num_hidden_layers", "100000", "layers");
    variant_refused("llama", "num_hidden_layers", "0", "layers");
    variant_refused("llama", "hidden_size", "\"32\"", "hidden_size: expected a whole number");
    variant_refused("llama", "head_dim", "7", "odd");
    variant_refused("llama", "rms_norm_eps", "-1", "rms_norm_eps");
    variant_refused("llama", "attention_bias", "true", "self_attn.k_proj.bias is missing");
    variant_refused("llama-bias", "mlp_bias", "false", "mlp.down_proj.bias is not part of");
    variant_refused("qwen3", "tie_word_embeddings", "7", "tie_word_embeddings");
    variant_refused("qwen2", "model_type", "\"llama\"", "bias is not part of");
    variant_refused("llama", "tie_word_embeddings", "false", "lm_head.weight is missing");
}

Test(model, windows_follow_the_family_and_the_layers)
{
    struct model m = {0};
    struct variant v = variant_make("llama", "model_type", "\"mistral\"");
    ok(model_open(&m, v.dir)); /* absent: Mistral's default */
    cr_expect_eq(m.layer[0].window, 4096);
    model_close(&m);
    support_dir_remove(v.dir);

    v = variant_make("qwen2", "sliding_window", "9");
    ok(model_open(&m, v.dir)); /* use_sliding_window is false */
    cr_expect_eq(m.layer[0].window, 0);
    model_close(&m);
    support_dir_remove(v.dir);

    char path[SUPPORT_PATH_BYTES];
    json_t *root;
    v = variant_make("qwen2", "use_sliding_window", "true");
    ok(file_join(path, sizeof path, v.dir, "config.json"));
    ok(json_open(&root, path, 1 << 20));
    json_object_set_new(root, "sliding_window", json_integer(9));
    json_object_set_new(root, "max_window_layers", json_integer(0));
    json_object_set_new(root, "layer_types", json_null());
    put_config(v.dir, root);
    ok(model_open(&m, v.dir));
    cr_expect_eq(m.layer[0].window, 9);
    model_close(&m);
    json_object_set_new(root, "max_window_layers", json_integer(1));
    put_config(v.dir, root);
    ok(model_open(&m, v.dir));
    cr_expect_eq(m.layer[0].window, 0);
    model_close(&m);
    json_decref(root);
    support_dir_remove(v.dir);
}

/* model.safetensors of `dir` again, with the tensors that `change` leaves. */
static void rewrite(const char *dir, bool (*change)(struct tensor *t, void *context), void *context,
                    const struct tensor *extra)
{
    char path[SUPPORT_PATH_BYTES];
    struct safetensors st = {0};
    struct tensor kept[64];
    struct bytes file = {.max = 1 << 20};
    size_t count = 0;
    ok(file_join(path, sizeof path, dir, "model.safetensors"));
    ok(safetensors_open(&st, path));
    for (size_t i = 0; i < st.count; i++) {
        kept[count] = st.tensor[i];
        if (change(&kept[count], context)) count++;
    }
    if (extra != NULL) kept[count++] = *extra;
    ok(safetensors_write(&file, kept, count, NULL, 0));
    cr_assert_eq(unlink(path), 0);
    ok(file_write(path, file.data, file.size, true));
    bytes_close(&file);
    safetensors_close(&st);
}

static bool keep_all(struct tensor *t, void *context)
{
    (void)t, (void)context;
    return true;
}

static bool drop_prefix(struct tensor *t, void *context)
{
    (void)context;
    if (strncmp(t->name, "model.", 6) == 0) t->name += 6;
    return true;
}

static bool rename_embed(struct tensor *t, void *context)
{
    (void)context;
    if (strcmp(t->name, "model.embed_tokens.weight") == 0) t->name = "lm_head.weight";
    return true;
}

static bool as_integers(struct tensor *t, void *context)
{
    if (strcmp(t->name, context) == 0) t->dtype = DTYPE_I16;
    return true;
}

Test(model, files_without_the_prefix_or_with_either_end_of_a_tie_are_the_same_base)
{
    char wanted[DIGEST_TEXT_BYTES], got[DIGEST_TEXT_BYTES], path[SUPPORT_PATH_BYTES];
    own_path(path, "llama");
    digest_hex(wanted, path);
    bool (*const changes[])(struct tensor *, void *) = {keep_all, drop_prefix, rename_embed};
    for (int i = 0; i < 3; i++) {
        struct variant v = variant_make("llama", NULL, NULL);
        rewrite(v.dir, changes[i], NULL, NULL);
        digest_hex(got, v.dir);
        cr_expect_str_eq(got, wanted, "change %d", i);
        support_dir_remove(v.dir);
    }
}

Test(model, a_second_head_that_differs_is_not_tied)
{
    struct variant v = variant_make("llama", NULL, NULL);
    static uint16_t other[40 * 32];
    struct tensor head = {.name = "lm_head.weight",
                          .dtype = DTYPE_BF16,
                          .dims = 2,
                          .shape = {40, 32},
                          .count = 40 * 32,
                          .size = sizeof other,
                          .data = other};
    struct model m = {0};
    rewrite(v.dir, keep_all, NULL, &head);
    ok(model_open(&m, v.dir));
    cr_assert_not(m.arch.tied);
    float row[32];
    weight_rows_f32(row, &m.head, 3, 1);
    cr_assert_eq(row[5], 0.0f);
    model_close(&m);
    support_dir_remove(v.dir);
}

Test(model, a_type_that_cannot_be_computed_with_is_refused_by_tensor_and_type)
{
    struct variant v = variant_make("llama", NULL, NULL);
    struct model m = {0};
    rewrite(v.dir, as_integers, "model.layers.0.mlp.up_proj.weight", NULL);
    refused(model_open(&m, v.dir), ERR_INPUT, "up_proj.weight: type I16, expected F32");
    support_dir_remove(v.dir);
}

Test(model, a_missing_file_or_shard_is_named)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct model m = {0};
    support_dir_make(dir);
    refused(model_open(&m, dir), ERR_INPUT, "contains no config.json");
    struct variant v = variant_make("llama", NULL, NULL);
    ok(file_join(path, sizeof path, v.dir, "model.safetensors"));
    cr_assert_eq(unlink(path), 0);
    refused(model_open(&m, v.dir), ERR_INPUT, "neither model.safetensors nor");
    static const char index[] = "{\"weight_map\":{\"model.norm.weight\":\"model-1.safetensors\"}}";
    ok(file_join(path, sizeof path, v.dir, "model.safetensors.index.json"));
    ok(file_write(path, index, sizeof index - 1, true));
    refused(model_open(&m, v.dir), ERR_INPUT, "model-1.safetensors: the index names it");
    static const char outside[] = "{\"weight_map\":{\"model.norm.weight\":\"../a.safetensors\"}}";
    ok(file_write(path, outside, sizeof outside - 1, true));
    refused(model_open(&m, v.dir), ERR_INPUT, "expected the name of a file in the directory");
    support_dir_remove(v.dir);
    support_dir_remove(dir);
    cr_assert(err_is(model_open(&m, "/nonexistent/model.gguf")));
}

Test(model, a_tokenizer_alone_is_no_base)
{
    char path[SUPPORT_PATH_BYTES];
    struct model m = {0};
    support_shared(path, sizeof path, "data/ggml-vocab/ggml-vocab-gpt-2.gguf");
    refused(model_open(&m, path), ERR_INPUT,
            "general.architecture \"gpt2\": expected llama, qwen2, ");
    support_shared(path, sizeof path, "data/ggml-vocab/ggml-vocab-llama-spm.gguf");
    refused(model_open(&m, path), ERR_INPUT, "token_embd.weight is missing");
}

Test(model, the_tiny_gguf_of_others_opens)
{
    char path[SUPPORT_PATH_BYTES];
    struct model m = {0};
    support_shared(path, sizeof path, "data/llama-2-tiny-random/llama-2-tiny-random.gguf");
    ok(model_open(&m, path));
    cr_assert_eq(m.arch.vocab, 32000);
    cr_assert_eq(m.arch.layers, 1);
    cr_assert_eq(m.embed.dtype, DTYPE_F16);
    model_drop_pages(&m);
    struct digest d;
    ok(model_digest(&d, &m));
    model_close(&m);
    model_close(&m); /* a closed one is accepted */
}

Test(model, a_row_of_any_type_is_where_it_should_be)
{
    enum { ROWS = 8, COLS = 512 };
    static uint8_t data[ROWS * COLS * 4];
    static float whole[ROWS * COLS], row[COLS];
    struct rng rng;
    rng_init(&rng, "test", 1, "rows", 0);
    for (size_t i = 0; i < sizeof data; i++)
        data[i] = (uint8_t)(rng_u32(&rng) & 0x3b); /* finite */
    for (enum dtype t = DTYPE_NONE; t < DTYPE_COUNT; t++) {
        if (!quant_known(t)) continue;
        struct weight w = {.data = data, .dtype = t, .rows = ROWS, .cols = COLS};
        quant_to_f32(whole, data, t, ROWS * COLS);
        for (uint32_t r = 0; r < ROWS; r++) {
            weight_rows_f32(row, &w, r, 1);
            cr_assert_eq(memcmp(row, whole + (size_t)r * COLS, sizeof row), 0, "%s row %u",
                         dtype_name(t), r);
        }
        w.rope_heads = 2; /* of 4 rows: 0 2 1 3, as the converter puts them */
        static const uint32_t order[ROWS] = {0, 2, 1, 3, 4, 6, 5, 7};
        for (uint32_t r = 0; r < ROWS; r++) {
            weight_rows_f32(row, &w, r, 1);
            cr_assert_eq(memcmp(row, whole + (size_t)order[r] * COLS, sizeof row), 0);
        }
    }
}
