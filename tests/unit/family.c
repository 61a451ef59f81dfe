#include "engine/model/family.h"

#include "base/json.h"
#include "engine/adapter.h"
#include "engine/model/model.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

Test(family, every_row_is_complete_and_found_by_its_names)
{
    cr_assert_not_null(family_at(0));
    for (size_t i = 0; family_at(i) != NULL; i++) {
        const struct family *f = family_at(i);
        cr_assert(f->model_type != NULL && f->hf_class != NULL && f->gguf != NULL, "row %zu", i);
        cr_expect_eq(family_find(f->model_type), f, "%s: model_type is not unique", f->model_type);
        const struct gguf_str name = {.data = f->gguf, .size = strlen(f->gguf)};
        const struct family *shared = family_find_gguf(name);
        cr_expect_not_null(shared, "%s", f->model_type);
        cr_expect_eq(shared->gguf_permutes, f->gguf_permutes, "%s: one GGUF name, two row orders",
                     f->model_type);
    }
    cr_expect_null(family_find("gemma3n"));
    cr_expect_null(family_find_gguf((struct gguf_str){.data = "llamas", .size = 6}));
}

Test(family, lists_name_each_family_once)
{
    char text[FAMILY_LIST_BYTES];
    family_list(text);
    for (size_t i = 0; family_at(i) != NULL; i++)
        cr_expect_not_null(strstr(text, family_at(i)->model_type), "%s", text);
    family_list_gguf(text);
    cr_expect_eq(strstr(text, "llama"), text, "%s", text);
    cr_expect_null(strstr(text + 1, "llama"), "mistral has the same GGUF name: %s", text);
}

Test(family, a_window_turns_a_llama_file_into_mistral_and_nothing_else)
{
    const struct family *mistral = family_find("mistral"), *qwen = family_find("qwen2");
    cr_expect_eq(family_with_window(family_find("llama")), mistral);
    cr_expect_eq(family_with_window(mistral), mistral);
    cr_expect_eq(family_with_window(qwen), qwen);
    const struct family alone = {.gguf = "alone"};
    cr_expect_null(family_with_window(&alone));
}

/* The test model whose tensors a family's defaults describe. */
static const char *folder_of(const struct family *f)
{
    if (f->qk_norm == QK_NORM_HEAD) return "qwen3";
    return f->qkv_bias == FAMILY_BIAS_ALWAYS ? "qwen2" : "llama";
}

static void open_digest(struct digest *out, const char *dir, const struct family *f)
{
    struct model m = {0};
    ok(model_open(&m, dir));
    if (f != NULL) cr_expect_eq(m.arch.family, f, "%s", f->model_type);
    ok(model_digest(out, &m));
    model_close(&m);
}

/* Families whose block is Llama's, so that a file of one can describe a model of another. */
static bool is_plain(const struct family *f)
{
    return f->norms == NORMS_BEFORE && !f->fused && !f->multipliers && !f->unrotated;
}

/* The digest of a base holds everything that enters its forward pass but not the name of its
 * family, so a renamed model must keep it. */
Test(family, a_model_renamed_to_any_family_opens_as_it_and_computes_the_same)
{
    for (size_t i = 0; family_at(i) != NULL; i++) {
        const struct family *f = family_at(i);
        if (!is_plain(f)) continue;
        char dir[SUPPORT_PATH_BYTES], from[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES],
            to[SUPPORT_PATH_BYTES], name[64];
        struct digest original, renamed;
        json_t *root;
        support_dir_make(dir);
        snprintf(name, sizeof name, "tests/models/%s", folder_of(f));
        support_source(from, sizeof from, name);
        ok(file_join(path, sizeof path, from, "config.json"));
        ok(json_open(&root, path, 1 << 20));
        json_object_set_new(root, "model_type", json_string(f->model_type));
        json_object_set_new(root, "sliding_window", json_null());
        ok(file_join(path, sizeof path, dir, "config.json"));
        cr_assert_eq(json_dump_file(root, path, 0), 0);
        json_decref(root);
        ok(file_join(path, sizeof path, from, "model.safetensors"));
        ok(file_join(to, sizeof to, dir, "model.safetensors"));
        cr_assert_eq(symlink(path, to), 0);
        open_digest(&original, from, NULL);
        open_digest(&renamed, dir, f);
        cr_expect(digest_equal(&original, &renamed), "%s", f->model_type);
        support_dir_remove(dir);
    }
}

/* ---- modules ---- */

static size_t modules_of(const struct model *m, const char *targets)
{
    struct adapter adapter = {0};
    const struct adapter_fresh fresh = {.targets = targets, .rank = 2, .alpha = 2};
    ok(adapter_open_fresh(&adapter, &m->arch, &fresh));
    size_t count = adapter.count;
    adapter_close(&adapter);
    return count;
}

static void no_modules(const struct model *m, const char *targets, const char *part)
{
    struct adapter adapter = {0};
    const struct adapter_fresh fresh = {.targets = targets, .rank = 2, .alpha = 2};
    refused(adapter_open_fresh(&adapter, &m->arch, &fresh), ERR_INPUT, part);
}

Test(family, targets_are_modules_that_the_base_has)
{
    char path[SUPPORT_PATH_BYTES];
    struct model phi = {0}, gemma = {0};
    support_source(path, sizeof path, "tests/golden/bases/phi3");
    ok(model_open(&phi, path));
    support_source(path, sizeof path, "tests/golden/bases/gemma2");
    ok(model_open(&gemma, path));
    cr_expect_eq(modules_of(&phi, "all-linear"), 3 * 4);
    cr_expect_eq(modules_of(&gemma, "all-linear"), 3 * 7);
    cr_expect_eq(modules_of(&phi, "qkv,gate_up_proj,model.layers.1.mlp.down_proj"), 3 + 3 + 1);
    no_modules(&phi, "v", "has qkv_proj in place of q_proj, k_proj and v_proj");
    no_modules(&phi, "model.layers.0.mlp.up_proj", "has gate_up_proj in place of");
    no_modules(&gemma, "gate_up", "has gate_proj and up_proj in place of gate_up_proj");
    no_modules(&phi, "all", "expected qkv, o, gate_up, down, all-linear or a full name");
    model_close(&phi);
    model_close(&gemma);
}
