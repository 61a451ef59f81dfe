/* Directories as people have them whose weights cannot be read. */
#include "base/file.h"
#include "engine/model/model.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES];

static void put(const char *name, const void *data, size_t size)
{
    char path[SUPPORT_PATH_BYTES + 64];
    snprintf(path, sizeof path, "%s/%s", dir, name);
    ok(file_write(path, data, size, true));
}

/* The directory has a valid config.json and nothing else. */
static void begin(void)
{
    char path[SUPPORT_PATH_BYTES], *data;
    size_t size;
    support_dir_make(dir);
    support_source(path, sizeof path, "tests/models/llama/config.json");
    ok(file_read_all(&data, &size, path, 1 << 20));
    put("config.json", data, size);
    free(data);
}

static void end(void)
{
    support_dir_remove(dir);
}

static void refused_with(const char *expected)
{
    struct model m = {0};
    err e = model_open(&m, dir);
    cr_expect(err_is(e) && strstr(e.text, expected), "%s", e.text);
    cr_expect_eq(e.kind, ERR_INPUT);
}

/* One tensor of four bytes. */
static void put_tensor(const char *name)
{
    char file[512];
    int header =
        snprintf(file + 8, sizeof file - 8,
                 "{\"%s\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}", name);
    uint64_t size = (uint64_t)header;
    memcpy(file, &size, sizeof size);
    memset(file + 8 + header, 0, 4);
    put("model.safetensors", file, 8 + (size_t)header + 4);
}

Test(model_refuse, quantised_weights_are_named_by_their_tensors, .init = begin, .fini = end)
{
    static const char *const cases[][2] = {
        {"q_proj.qweight", "by GPTQ or AWQ"},
        {"q_proj.weight.absmax", "by bitsandbytes"},
        {"q_proj.weight_packed", "by compressed-tensors"},
        {"q_proj.weight_scale", "by FP8 or compressed-tensors"},
        {"q_proj.weight_scale_inv", "by FP8"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.0.self_attn.%s", cases[i][0]);
        put_tensor(name);
        refused_with(name);
        refused_with(cases[i][1]);
        refused_with("give the model that they were made from, or a GGUF file of it");
    }
    put_tensor("model.layers.0.self_attn.q_proj.weight");
    refused_with("is missing");
}

Test(model_refuse, quantised_weights_are_named_by_the_configuration, .init = begin, .fini = end)
{
    static const char *const methods[] = {"bitsandbytes", "gptq", "awq", "fp8"};
    for (size_t i = 0; i < sizeof methods / sizeof methods[0]; i++) {
        char text[256], expected[128];
        snprintf(text, sizeof text,
                 "{\"model_type\":\"llama\",\"_name_or_path\":\"org/base\","
                 "\"quantization_config\":{\"quant_method\":\"%s\"}}",
                 methods[i]);
        put("config.json", text, strlen(text));
        snprintf(expected, sizeof expected, "quantised by %s: expected F32, F16 or BF16",
                 methods[i]);
        refused_with(expected);
        refused_with("the model that they were made from (org/base), or a GGUF file of it");
    }
}

Test(model_refuse, other_formats_are_named_with_the_way_out, .init = begin, .fini = end)
{
    refused_with("(other formats of weights are not supported)");
    put("pytorch_model-00001-of-00002.bin", "x", 1);
    refused_with("convert it with: python3 -c");
    put("adapter_model.safetensors", "x", 1);
    refused_with("this is an adapter; give it with --adapter");
    put("small.gguf", "x", 1);
    put("large.gguf", "x", 1);
    refused_with("/large.gguf");
    put("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
        62);
    refused_with("is a Git LFS pointer");
}
