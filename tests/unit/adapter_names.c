/* Spellings found in published adapters: PEFT's own, saved inside of DDP, torch.compile and FSDP,
 * by trainers that save the state themselves, and of multimodal models. */
#include "agg/adapter/adapter_names.h"

#include "agg/adapter/adapter_file.h"
#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define Q "model.layers.0.self_attn.q_proj"

static const struct {
    const char *tensor;
    enum adapter_name_part part;
    const char *module, *root;
} spellings[] = {
    {"base_model.model." Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {"base_model.model." Q ".lora_B.default.weight", ADAPTER_NAME_B, Q, "model."},
    {"module.base_model.model." Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {"_orig_mod.base_model.model." Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {"base_model.model._orig_mod." Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {"base_model.model.model.layers.0._orig_mod.self_attn.q_proj.lora_A.weight", ADAPTER_NAME_A, Q,
     "model."},
    {"_fsdp_wrapped_module.base_model.model.model.layers.0._checkpoint_wrapped_module.self_"
     "attn."
     "q_proj.lora_A.weight",
     ADAPTER_NAME_A, Q, "model."},
    {"base_model.model.base_model.model." Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {Q ".lora_A.weight", ADAPTER_NAME_A, Q, "model."},
    {"base_model.model.layers.0.self_attn.q_proj.lora_A.weight", ADAPTER_NAME_A, Q, ""},
    {"base_model.model.model.language_model.layers.0.self_attn.q_proj.lora_A.weight",
     ADAPTER_NAME_A, Q, "model.language_model."},
    {"base_model.model.language_model.model.layers.0.self_attn.q_proj.lora_A.weight",
     ADAPTER_NAME_A, Q, "language_model.model."},
    {"base_model.model.lm_head.lora_B.weight", ADAPTER_NAME_B, "lm_head", NULL},
    {"base_model.model.model.embed_tokens.lora_embedding_A", ADAPTER_NAME_EMBEDDING_A,
     "model.embed_tokens", "model."},
    {"base_model.model.model.embed_tokens.lora_embedding_B.default", ADAPTER_NAME_EMBEDDING_B,
     "model.embed_tokens", "model."},
    {"base_model.model." Q ".lora_magnitude_vector", ADAPTER_NAME_MAGNITUDE, Q, "model."},
    {"base_model.model." Q ".lora_magnitude_vector.weight", ADAPTER_NAME_MAGNITUDE, Q, "model."},
    {"base_model.model." Q ".lora_magnitude_vector.default.weight", ADAPTER_NAME_MAGNITUDE, Q,
     "model."},
    {"base_model.model." Q ".base_layer.bias", ADAPTER_NAME_WHOLE, Q ".bias", "model."},
    {"base_model.model.lm_head.modules_to_save.default.weight", ADAPTER_NAME_WHOLE,
     "lm_head.weight", NULL},
    {"base_model.model.lm_head.modules_to_save.weight", ADAPTER_NAME_WHOLE, "lm_head.weight", NULL},
    {"base_model.model.lm_head.original_module.weight", ADAPTER_NAME_COPY,
     "lm_head.original_module.weight", NULL},
    {"base_model.model.language_model.lm_head.weight", ADAPTER_NAME_WHOLE, "lm_head.weight", NULL},
    /* other families keep their names */
    {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight", ADAPTER_NAME_A,
     "transformer.h.0.attn.c_attn", NULL},
    {"base_model.model.gpt_module.q.lora_A.weight", ADAPTER_NAME_A, "gpt_module.q", NULL},
};

Test(adapter_names, reads_all_spellings_to_one_name)
{
    for (size_t i = 0; i < sizeof spellings / sizeof *spellings; i++) {
        struct adapter_name n;
        ok(adapter_name_read(&n, spellings[i].tensor));
        cr_expect_eq(n.part, spellings[i].part, "%s", spellings[i].tensor);
        cr_expect_str_eq(n.module, spellings[i].module, "%s", spellings[i].tensor);
        if (spellings[i].root)
            cr_expect(n.root && !strcmp(n.root, spellings[i].root), "%s", spellings[i].tensor);
        else
            cr_expect_null(n.root, "%s", spellings[i].tensor);
        char back[LIMIT_TENSOR_NAME_BYTES];
        ok(adapter_name_rooted(back, n.module, n.root));
        if (n.part == ADAPTER_NAME_A && n.root && !strcmp(n.root, "model.language_model."))
            cr_expect_str_eq(back, "model.language_model.layers.0.self_attn.q_proj");
    }
}

Test(adapter_names, refuses_parts_that_it_does_not_know)
{
    struct adapter_name n;
    refused(adapter_name_read(&n, "base_model.model." Q ".lora_B.default.bias"), ERR_INPUT,
            "lora_B.default.bias: expected base_model.model.<module>.lora_A.weight");
    refused(adapter_name_read(&n, "base_model.model." Q ".lora_C.weight"), ERR_INPUT, "lora_C");
    char name[LIMIT_TENSOR_NAME_BYTES + 10];
    memset(name, 'a', sizeof name - 1);
    name[sizeof name - 1] = 0;
    refused(adapter_name_read(&n, name), ERR_INPUT, "the name is too long");
}

/* Writes q's A and B under these names and reads the directory. */
static err read_names(const char *const name[], size_t count)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 64];
    static const float values[64] = {1, 2};
    static const char config[] = "{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":4}";
    struct tensor t[4] = {0};
    struct bytes b = {.max = 1 << 20};
    struct adapter_file f = {0};
    for (size_t i = 0; i < count; i++)
        t[i] = (struct tensor){
            .name = name[i],
            .dtype = DTYPE_F32,
            .dims = 2,
            .shape = {strstr(name[i], "lora_A") ? 2 : 8, strstr(name[i], "lora_A") ? 8 : 2},
            .size = 64,
            .data = values};
    support_dir_make(dir);
    snprintf(path, sizeof path, "%s/adapter_config.json", dir);
    ok(file_write(path, config, sizeof config - 1, true));
    ok(safetensors_write(&b, t, count, NULL, 0));
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    ok(file_write(path, b.data, b.size, true));
    bytes_close(&b);
    err e = adapter_file_open(&f, dir);
    if (!err_is(e)) cr_expect_str_eq(f.module[0].name, Q);
    adapter_file_close(&f);
    support_dir_remove(dir);
    return e;
}

Test(adapter_names, refuses_two_tensors_of_one_meaning)
{
    const char *const fine[] = {"module." Q ".lora_A.default.weight", Q ".lora_B.weight"};
    ok(read_names(fine, 2));
    const char *const twice[] = {Q ".lora_A.default.weight", Q ".lora_A.other.weight",
                                 Q ".lora_B.default.weight"};
    refused(read_names(twice, 3), ERR_INPUT, "are the same factor of one module");
    const char *const roots[] = {"base_model.model.model.language_model.layers.0.q.lora_A.weight",
                                 "base_model.model.model.layers.0.k.lora_A.weight"};
    refused(read_names(roots, 2), ERR_INPUT, "expected one name");
}
