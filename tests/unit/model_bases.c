/* Descriptions of Gemma, Phi-3, Granite, OLMo 2 and SmolLM3 against transformers: the files of
 * tests/golden/bases, made by make_bases.py. */
#include "base/json.h"
#include "client/export/export.h"
#include "engine/model/model_build.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static json_t *golden(const char *name)
{
    char path[SUPPORT_PATH_BYTES], file[64];
    json_t *root = NULL;
    snprintf(file, sizeof file, "tests/golden/bases/%s", name);
    support_source(path, sizeof path, file);
    ok(json_open(&root, path, 1 << 20));
    return root;
}

static void write_config(const char *dir, const json_t *config)
{
    char path[SUPPORT_PATH_BYTES];
    ok(file_join(path, sizeof path, dir, "config.json"));
    cr_assert_eq(json_dump_file(config, path, 0), 0);
}

/* The model that a config.json describes; the caller closes its arena. */
static struct model described(const char *dir, const json_t *config)
{
    struct model m = {.bos = -1, .pad = -1};
    write_config(dir, config);
    ok(model_config_read(&m, dir));
    return m;
}

static double number(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    cr_assert(json_is_number(value) || json_is_boolean(value), "%s", key);
    return json_is_true(value) ? 1 : json_number_value(value);
}

static enum rope_kind kind_of(const json_t *expect, const char *key)
{
    const char *name = json_string_value(json_object_get(expect, key));
    return strcmp(name, "longrope") == 0 ? ROPE_LONGROPE
           : strcmp(name, "linear") == 0 ? ROPE_LINEAR
                                         : ROPE_DEFAULT;
}

static void check_described(const char *name, const struct model *m, const json_t *x)
{
    const struct arch *a = &m->arch;
    const struct {
        const char *key;
        double value;
    } plain[] = {
        {"layers", a->layers},
        {"d_model", a->d_model},
        {"d_ffn", a->d_ffn},
        {"heads", a->heads},
        {"kv_heads", a->kv_heads},
        {"head_dim", a->head_dim},
        {"rotated", model_rotated(a)},
        {"vocab", a->vocab},
        {"max_positions", a->max_positions},
        {"tied", a->tied},
        {"theta", a->rope.theta},
        {"window_theta", a->window_rope.theta},
        {"factor", a->rope.factor},
        {"original", a->rope.original_positions},
        {"attention_cap", (double)a->attention_cap},
        {"logit_cap", (double)a->logit_cap},
    };
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        cr_expect_eq(plain[i].value, number(x, plain[i].key), "%s: %s is %g", name, plain[i].key,
                     plain[i].value);
    double scale = a->attention_scale > 0 ? (double)a->attention_scale : 1 / sqrt(a->head_dim);
    cr_expect_float_eq(scale, number(x, "attention_scale"), 1e-7, "%s: %g", name, scale);
    cr_expect_eq(a->rms_eps, (float)number(x, "rms_eps"), "%s", name);
    cr_expect_eq(a->rope.kind, kind_of(x, "kind"), "%s", name);
    cr_expect_eq(a->window_rope.kind, kind_of(x, "window_kind"), "%s", name);
    bool gelu = strcmp(json_string_value(json_object_get(x, "activation")), "silu") != 0;
    cr_expect_eq(a->activation, gelu ? ACTIVATION_GELU_TANH : ACTIVATION_SILU, "%s", name);
    for (uint32_t i = 0; i < a->layers; i++) {
        const json_t *window = json_array_get(json_object_get(x, "windows"), i);
        cr_expect_eq(m->layer[i].window, json_integer_value(window), "%s: layer %u", name, i);
        const json_t *still = json_array_get(json_object_get(x, "unrotated"), i);
        cr_expect_eq(m->layer[i].unrotated, json_is_true(still), "%s: layer %u", name, i);
    }
}

Test(model_bases, absent_keys_have_the_defaults_of_transformers)
{
    char dir[SUPPORT_PATH_BYTES];
    const char *name;
    json_t *root = golden("defaults.json"), *one;
    support_dir_make(dir);
    json_object_foreach(root, name, one)
    {
        struct model m = described(dir, json_object_get(one, "config"));
        check_described(name, &m, json_object_get(one, "expect"));
        arena_close(&m.arena);
    }
    support_dir_remove(dir);
    json_decref(root);
}

/* A small model whose head of 32 values rotates by these parameters. */
static json_t *rope_config(const json_t *rope)
{
    bool part = json_object_get(rope, "partial_rotary_factor") != NULL;
    return json_pack("{s:s, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:i, s:O}", "model_type",
                     part ? "phi3" : "llama", "hidden_size", 128, "num_attention_heads", 4,
                     "head_dim", 32, "num_hidden_layers", 1, "intermediate_size", 8, "vocab_size",
                     8, "max_position_embeddings", 8192, "num_key_value_heads", 4,
                     "rope_parameters", rope);
}

static void check_frequencies(const char *name, const struct arch *a, const json_t *row)
{
    const json_t *list = json_object_get(row, "frequencies");
    uint32_t n = model_rotated(a) / 2, positions = (uint32_t)number(row, "positions");
    float f[64];
    cr_assert_eq(json_array_size(list), n, "%s", name);
    float factor = model_rope_frequencies(f, &a->rope, model_rotated(a), positions);
    cr_expect_float_eq((double)factor / number(row, "factor"), 1, 1e-7, "%s: %g", name,
                       (double)factor);
    for (uint32_t i = 0; i < n; i++) {
        double wanted = json_number_value(json_array_get(list, i));
        cr_expect_float_eq((double)f[i] / wanted, 1, 4e-7, "%s, %u positions: %u: %g, %g", name,
                           positions, i, (double)f[i], wanted);
    }
}

Test(model_bases, frequencies_are_those_of_transformers_for_each_length_of_row)
{
    char dir[SUPPORT_PATH_BYTES];
    const char *name;
    json_t *root = golden("rope.json"), *one;
    support_dir_make(dir);
    json_object_foreach(root, name, one)
    {
        json_t *config = rope_config(json_object_get(one, "rope_parameters")), *rows, *row;
        struct model m = described(dir, config);
        size_t i;
        rows = json_object_get(one, "rows");
        json_array_foreach(rows, i, row) check_frequencies(name, &m.arch, row);
        arena_close(&m.arena);
        json_decref(config);
    }
    support_dir_remove(dir);
    json_decref(root);
}

Test(model_bases, rows_share_frequencies_up_to_the_original_length_only)
{
    const struct rope longrope = {.kind = ROPE_LONGROPE, .original_positions = 16};
    const struct rope dynamic = {.kind = ROPE_DYNAMIC, .original_positions = 16};
    const struct rope llama3 = {.kind = ROPE_LLAMA3, .original_positions = 16};
    cr_expect_eq(model_rope_variant(&longrope, 16), 0);
    cr_expect_eq(model_rope_variant(&longrope, 17), model_rope_variant(&longrope, 400));
    cr_expect_neq(model_rope_variant(&longrope, 17), 0);
    cr_expect_eq(model_rope_variant(&dynamic, 16), 0);
    cr_expect_neq(model_rope_variant(&dynamic, 17), model_rope_variant(&dynamic, 18));
    cr_expect_eq(model_rope_variant(&llama3, 17), 0);
}

/* ---- variants of the golden models ---- */

static void base_path(char out[SUPPORT_PATH_BYTES], const char *name, const char *file)
{
    char part[128];
    snprintf(part, sizeof part, "tests/golden/bases/%s/%s", name, file);
    support_source(out, SUPPORT_PATH_BYTES, part);
}

/* A folder with the weights of a golden model and its config.json, changed by `edit`. */
static void variant(char dir[SUPPORT_PATH_BYTES], const char *name, void (*edit)(json_t *config))
{
    char from[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES];
    json_t *config = NULL;
    support_dir_make(dir);
    base_path(from, name, "config.json");
    ok(json_open(&config, from, 1 << 20));
    edit(config);
    write_config(dir, config);
    json_decref(config);
    base_path(from, name, "model.safetensors");
    ok(file_join(to, sizeof to, dir, "model.safetensors"));
    cr_assert_eq(symlink(from, to), 0);
}

static void open_digest(struct digest *out, const char *dir)
{
    struct model m = {0};
    ok(model_open(&m, dir));
    ok(model_digest(out, &m));
    model_close(&m);
}

static void to_old_gemma3(json_t *c)
{
    json_object_del(c, "rope_parameters");
    json_object_set_new(c, "rope_theta", json_real(3000));
    json_object_set_new(c, "rope_local_base_freq", json_real(40));
    json_object_set_new(c, "rope_scaling",
                        json_pack("{s:s, s:f}", "rope_type", "linear", "factor", 3.0));
    json_object_del(c, "layer_types");
    json_object_set_new(c, "sliding_window_pattern", json_integer(2));
}

static void to_old_phi(json_t *c)
{
    json_t *rope = json_incref(json_object_get(c, "rope_parameters"));
    json_object_del(c, "rope_parameters");
    json_object_del(rope, "original_max_position_embeddings");
    json_object_set_new(rope, "type", json_string("longrope"));
    json_object_del(rope, "rope_type");
    json_object_set(c, "rope_theta", json_object_get(rope, "rope_theta"));
    json_object_set(c, "partial_rotary_factor", json_object_get(rope, "partial_rotary_factor"));
    json_object_del(rope, "rope_theta");
    json_object_del(rope, "partial_rotary_factor");
    json_object_set_new(c, "rope_scaling", rope);
}

static void to_other_window(json_t *c)
{
    json_object_set_new(json_object_get(json_object_get(c, "rope_parameters"), "sliding_attention"),
                        "rope_theta", json_real(41));
}

static void to_other_cap(json_t *c)
{
    json_object_set_new(c, "final_logit_softcapping", json_real(4.5));
}

/* The class of Gemma 3 in transformers ignores this key, the class of Gemma 2 does not. */
static void to_other_attention_cap(json_t *c)
{
    json_object_set_new(c, "attn_logit_softcapping", json_real(0.5));
}

Test(model_bases, the_identity_depends_on_the_function_and_not_on_the_style_of_the_file)
{
    static const struct {
        const char *name;
        void (*edit)(json_t *c);
        bool same;
    } cases[] = {
        {"gemma3", to_old_gemma3, true},          {"phi4-mini", to_old_phi, true},
        {"gemma3", to_other_window, false},       {"gemma2", to_other_cap, false},
        {"gemma3", to_other_attention_cap, true}, {"gemma2", to_other_attention_cap, false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
        struct digest a, b;
        base_path(path, cases[i].name, "");
        variant(dir, cases[i].name, cases[i].edit);
        open_digest(&a, path);
        open_digest(&b, dir);
        cr_expect_eq(digest_equal(&a, &b), cases[i].same, "%s, case %zu", cases[i].name, i);
        support_dir_remove(dir);
    }
}

static const char *changed_key;
static const char *changed_value;
static void change(json_t *c)
{
    json_object_set_new(c, changed_key, json_loads(changed_value, JSON_DECODE_ANY, NULL));
}

Test(model_bases, settings_that_are_not_computed_are_refused_by_name)
{
    static const struct {
        const char *name, *key, *value, *part;
    } cases[] = {
        {"gemma2", "use_bidirectional_attention", "true", "use_bidirectional_attention"},
        {"gemma2", "hidden_activation", "\"gelu\"", "hidden_activation \"gelu\""},
        {"gemma2", "query_pre_attn_scalar", "0", "query_pre_attn_scalar"},
        {"gemma2", "final_logit_softcapping", "-1", "final_logit_softcapping"},
        {"gemma2", "sliding_window", "null", "sliding_window is off"},
        {"gemma3", "rope_parameters", "{\"rope_theta\": 3}",
         "full_attention and sliding_attention"},
        {"granite", "residual_multiplier", "0", "residual_multiplier"},
        {"granite", "num_local_experts", "4", "num_local_experts"},
        {"llama-yarn", "logits_scaling", "8", "logits_scaling"},
        {"olmo2", "clip_qkv", "8.0", "clip_qkv"},
        {"llama-longrope", "partial_rotary_factor", "0.5", "partial_rotary_factor"},
        {"smollm3", "no_rope_layers", "[1]", "no_rope_layers: expected a list of 4"},
        {"smollm3", "no_rope_layers", "[1,1,1,\"0\"]", "no_rope_layers: expected numbers"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char dir[SUPPORT_PATH_BYTES];
        struct model m = {0};
        changed_key = cases[i].key;
        changed_value = cases[i].value;
        variant(dir, cases[i].name, change);
        refused(model_open(&m, dir), ERR_INPUT, cases[i].part);
        support_dir_remove(dir);
    }
}

/* The merged model of an adapter that changes nothing. */
static void check_merged(const char *base, const struct digest *wanted)
{
    char dir[SUPPORT_PATH_BYTES], out[SUPPORT_PATH_BYTES], note[256] = "";
    struct digest got;
    struct model m = {0};
    support_dir_make(dir);
    ok(file_join(out, sizeof out, dir, "merged"));
    ok(model_open(&m, base));
    ok(export_merged(out, &(struct flatten){0}, &m,
                     &(struct export_merged_options){
                         .type = DTYPE_F32, .note = note, .note_bytes = sizeof note}));
    open_digest(&got, out);
    cr_expect(digest_equal(&got, wanted), "%s", base);
    model_close(&m);
    support_dir_remove(dir);
}

/* bf16.gguf of the golden models. llama.cpp has no key for Gemma's factor of the scores, so these
 * files are of the models with the usual one. */
Test(model_bases, a_directory_and_its_gguf_are_one_base)
{
    static const char *const names[] = {"gemma2",    "gemma3",     "phi3",
                                        "phi4-mini", "granite",    "olmo2",
                                        "smollm3",   "llama-yarn", "llama-longrope"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char dir[SUPPORT_PATH_BYTES], file[SUPPORT_PATH_BYTES];
        struct digest a, b;
        changed_key = strncmp(names[i], "gemma", 5) == 0 ? "query_pre_attn_scalar" : "any";
        changed_value = "8";
        variant(dir, names[i], change);
        base_path(file, names[i], "bf16.gguf");
        open_digest(&a, dir);
        open_digest(&b, file);
        cr_expect(digest_equal(&a, &b), "%s", names[i]);
        check_merged(dir, &a);
        check_merged(file, &a);
        support_dir_remove(dir);
    }
}

/* ---- Gemma 3 with its part for images ---- */

/* Copies a safetensors file with other names and with two tensors behind the others. */
static void rename_tensors(const char *from, const char *to, const char *model, const char *extra)
{
    char *bytes, name[256];
    size_t size;
    uint64_t header;
    const char *key;
    json_t *old = NULL, *value, *renamed = json_object();
    ok(file_read_all(&bytes, &size, from, 1 << 20));
    memcpy(&header, bytes, sizeof header);
    ok(json_parse(&old, bytes + 8, header, from));
    size_t data = size - 8 - header;
    json_object_foreach(old, key, value)
    {
        bool inner = strncmp(key, "model.", 6) == 0;
        snprintf(name, sizeof name, "%s%s", inner ? model : "", inner ? key + 6 : key);
        json_object_set(renamed, name, value);
    }
    for (size_t i = 0; i < 2; i++) {
        snprintf(name, sizeof name, "%s%zu.weight", extra, i);
        json_object_set_new(renamed, name,
                            json_pack("{s:s, s:[i], s:[I, I]}", "dtype", "F32", "shape", 1,
                                      "data_offsets", (json_int_t)(data + 4 * i),
                                      (json_int_t)(data + 4 * i + 4)));
    }
    char *text = json_dumps(renamed, JSON_COMPACT);
    uint64_t length = strlen(text);
    FILE *f = fopen(to, "wb");
    cr_assert(f != NULL && fwrite(&length, 8, 1, f) == 1 && fwrite(text, length, 1, f) == 1 &&
              fwrite(bytes + 8 + header, data, 1, f) == 1 &&
              fwrite("\0\0\0\0\0\0\0\0", 8, 1, f) == 1);
    cr_assert_eq(fclose(f), 0);
    free(text);
    free(bytes);
    json_decref(renamed);
    json_decref(old);
}

static void wrap(char dir[SUPPORT_PATH_BYTES], const char *model, const char *extra)
{
    char from[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES];
    json_t *inner = NULL;
    support_dir_make(dir);
    base_path(from, "gemma3", "config.json");
    ok(json_open(&inner, from, 1 << 20));
    json_t *outer = json_pack("{s:s, s:o, s:{}, s:b}", "model_type", "gemma3", "text_config", inner,
                              "vision_config", "tie_word_embeddings", 1);
    write_config(dir, outer);
    json_decref(outer);
    base_path(from, "gemma3", "model.safetensors");
    ok(file_join(to, sizeof to, dir, "model.safetensors"));
    rename_tensors(from, to, model, extra);
}

Test(model_bases, the_text_part_of_a_model_with_images_is_the_model_without_them)
{
    static const char *const names[][2] = {
        {"language_model.model.", "vision_tower.encoder."},
        {"model.language_model.", "model.vision_tower.encoder."},
        {"model.language_model.", "model.multi_modal_projector."},
    };
    char plain[SUPPORT_PATH_BYTES];
    struct digest a, b;
    base_path(plain, "gemma3", "");
    open_digest(&a, plain);
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char dir[SUPPORT_PATH_BYTES];
        struct model m = {0};
        wrap(dir, names[i][0], names[i][1]);
        open_digest(&b, dir);
        cr_expect(digest_equal(&a, &b), "%s", names[i][0]);
        ok(model_open(&m, dir));
        cr_expect(m.images && m.image_tensors == 2);
        char merged[SUPPORT_PATH_BYTES];
        ok(file_join(merged, sizeof merged, dir, "merged"));
        ok(export_merged(merged, &(struct flatten){0}, &m,
                         &(struct export_merged_options){.type = DTYPE_F32}));
        open_digest(&b, merged);
        cr_expect(digest_equal(&a, &b), "%s: as its text part", names[i][0]);
        model_close(&m);
        support_dir_remove(dir);
    }
}

/* The names that PEFT needs are those of the whole model, although the text part alone is
 * trained. */
Test(model_bases, an_adapter_of_a_model_with_images_keeps_its_names)
{
    static float values[2] = {1, 2};
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], name[LIMIT_TENSOR_NAME_BYTES];
    struct adapter_file file = {0};
    model_module_name(name, 1, MODULE_O);
    struct adapter_file_module module = {
        .name = name, .d_out = 2, .d_in = 2, .rank = 1, .alpha = 1, .scale = 1};
    module.factor[ADAPTER_FILE_A] = (struct adapter_file_factor){.f32 = values, 1, 2};
    module.factor[ADAPTER_FILE_B] = (struct adapter_file_factor){.f32 = values, 2, 1};
    const struct flatten delta = {.module = &module, .count = 1, .root = MODEL_IMAGES_ROOT};
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "adapter"));
    ok(export_peft(path, &delta, NULL, false));
    ok(file_join(path, sizeof path, path, "adapter_model.safetensors"));
    struct safetensors st = {0};
    ok(safetensors_open(&st, path));
    cr_expect_not_null(safetensors_find(
        &st, "base_model.model.model.language_model.layers.1.self_attn.o_proj.lora_A.weight"));
    safetensors_close(&st);
    ok(file_join(path, sizeof path, dir, "adapter"));
    ok(adapter_file_open(&file, path));
    cr_expect_str_eq(file.module[0].name, name);
    cr_expect_str_eq(file.meta.root, MODEL_IMAGES_ROOT);
    adapter_file_close(&file);
    support_dir_remove(dir);
}

Test(model_bases, tensors_that_are_neither_of_text_nor_of_images_are_refused)
{
    char dir[SUPPORT_PATH_BYTES];
    struct model m = {0};
    wrap(dir, "model.language_model.", "model.audio_tower.");
    refused(model_open(&m, dir), ERR_INPUT, "model.audio_tower.0.weight is not part of");
    support_dir_remove(dir);
}
