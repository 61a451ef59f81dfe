#include "client/export/export.h"
#include "engine/model/gguf_write.h"
#include "engine/model/model.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>

/* A GGUF file of keys and small tensors of our own. */
static void gguf_refused(const struct gguf_write_kv *kv, size_t kv_count, const char *part)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    static const float values[8 * 8];
    const struct gguf_write_tensor tensor[] = {
        {.name = "token_embd.weight", .rows = 8, .cols = 8, .data = values},
        {.name = "blk.0.ffn_gate_exps.weight", .rows = 1, .cols = 8, .data = values},
    };
    struct file_out out = {0};
    struct model m = {0};
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "m.gguf"));
    ok(file_out_open(&out, path, false));
    ok(gguf_write_file(&out, kv, kv_count, tensor, 2));
    ok(file_out_commit(&out));
    refused(model_open(&m, path), ERR_INPUT, part);
    support_dir_remove(dir);
}

#define TEXT(k, v)                                                                                 \
    {                                                                                              \
        .key = (k), .text = (v)                                                                    \
    }
#define NUMBER(k, v)                                                                               \
    {                                                                                              \
        .key = (k), .kind = GGUF_WRITE_U32, .u32 = (v)                                             \
    }
#define REAL(k, v)                                                                                 \
    {                                                                                              \
        .key = (k), .kind = GGUF_WRITE_F32, .f32 = (v)                                             \
    }
#define SHAPE_OF(a)                                                                                \
    TEXT("general.architecture", a), NUMBER(a ".block_count", 1),                                  \
        NUMBER(a ".embedding_length", 8), NUMBER(a ".feed_forward_length", 8),                     \
        NUMBER(a ".attention.head_count", 2), REAL(a ".attention.layer_norm_rms_epsilon", 1e-5f)
#define SHAPE SHAPE_OF("llama")
#define GGUF_REFUSED(part, ...)                                                                    \
    gguf_refused((const struct gguf_write_kv[]){__VA_ARGS__},                                      \
                 sizeof((const struct gguf_write_kv[]){__VA_ARGS__}) /                             \
                     sizeof(struct gguf_write_kv),                                                 \
                 (part))

Test(model_gguf, a_gguf_that_is_no_whole_model_of_a_known_kind_is_refused_by_name)
{
    GGUF_REFUSED("general.type \"adapter\": this is a LoRA adapter",
                 TEXT("general.type", "adapter"), TEXT("general.architecture", "llama"));
    GGUF_REFUSED("file 1 of a model that is split into 3", NUMBER("split.count", 3), SHAPE);
    GGUF_REFUSED("general.architecture \"gemma3n\": expected llama",
                 TEXT("general.architecture", "gemma3n"));
    GGUF_REFUSED("key general.architecture is missing", TEXT("general.name", "x"));
    GGUF_REFUSED("key llama.block_count is missing", TEXT("general.architecture", "llama"));
    GGUF_REFUSED("a mixture of 4 experts", SHAPE, NUMBER("llama.expert_count", 4));
    GGUF_REFUSED("\"ntk\": expected none, linear", SHAPE, TEXT("llama.rope.scaling.type", "ntk"));
    GGUF_REFUSED("rope_factors_long.weight is missing", SHAPE,
                 TEXT("llama.rope.scaling.type", "longrope"));
    GGUF_REFUSED("windows of olmo2 models are not supported", SHAPE_OF("olmo2"),
                 NUMBER("olmo2.attention.sliding_window", 4096));
    GGUF_REFUSED("sliding_window_pattern is 0", SHAPE_OF("gemma2"),
                 NUMBER("gemma2.attention.sliding_window_pattern", 0));
    GGUF_REFUSED("cap of logits", SHAPE_OF("gemma2"), REAL("gemma2.final_logit_softcapping", -3));
    GGUF_REFUSED("factor of a block", SHAPE_OF("granite"), REAL("granite.residual_scale", -1));
    GGUF_REFUSED("rotated dimension 6", SHAPE_OF("phi3"), NUMBER("phi3.rope.dimension_count", 6));
    GGUF_REFUSED("rotated dimension 2: expected all equal", SHAPE,
                 NUMBER("llama.rope.dimension_count", 2));
    GGUF_REFUSED("key/value heads is 0", SHAPE, NUMBER("llama.attention.head_count_kv", 0));
    GGUF_REFUSED("tensor blk.0.attn_norm.weight is missing", SHAPE);
}

/* A whole model of our own, all weights 0.5, with these factors of its two frequencies and this
 * window. */
static void write_model(const char *path, const float factors[2], uint32_t window)
{
    static float half[8 * 8];
    for (int i = 0; i < 64; i++)
        half[i] = 0.5f;
    const struct gguf_write_kv kv[] = {SHAPE, NUMBER("llama.attention.sliding_window", window)};
    const struct gguf_write_tensor tensor[] = {
        {.name = "token_embd.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "output_norm.weight", .rows = 1, .cols = 8, .data = half},
        {.name = "rope_freqs.weight", .rows = 1, .cols = 2, .data = factors},
        {.name = "blk.0.attn_norm.weight", .rows = 1, .cols = 8, .data = half},
        {.name = "blk.0.ffn_norm.weight", .rows = 1, .cols = 8, .data = half},
        {.name = "blk.0.attn_q.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.attn_k.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.attn_v.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.attn_output.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.ffn_gate.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.ffn_up.weight", .rows = 8, .cols = 8, .data = half},
        {.name = "blk.0.ffn_down.weight", .rows = 8, .cols = 8, .data = half},
    };
    struct file_out out = {0};
    ok(file_out_open(&out, path, true));
    ok(gguf_write_file(&out, kv, sizeof kv / sizeof kv[0], tensor,
                       sizeof tensor / sizeof tensor[0]));
    ok(file_out_commit(&out));
}

Test(model_gguf, frequency_factors_are_llama3s_or_their_own)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], merged[SUPPORT_PATH_BYTES];
    struct model m = {0}, again = {0};
    struct digest own, plain;
    float f[2];
    const struct flatten nothing = {0};
    const struct export_merged_options options = {.type = DTYPE_F32, .replace = true};
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "m.gguf"));
    ok(file_join(merged, sizeof merged, dir, "merged"));

    write_model(path, (const float[]){3, 5}, 0); /* llama3 never scales the fastest */
    ok(model_open(&m, path));
    cr_assert_eq(m.arch.rope.kind, ROPE_FACTORS);
    model_rope_frequencies(f, &m.arch.rope, m.arch.head_dim, 0);
    cr_assert(fabs((double)f[0] - 1.0 / 3) < 1e-7 && fabs((double)f[1] - 0.01 / 5) < 1e-9);
    ok(model_digest(&own, &m));
    refused(export_merged(merged, &nothing, &m, &options), ERR_INPUT,
            "rope_freqs.weight, which config.json cannot express");
    model_close(&m);

    write_model(path, (const float[]){1, 1}, 6);
    ok(model_open(&m, path));
    cr_assert_eq(m.arch.rope.kind, ROPE_DEFAULT);
    cr_assert_eq(m.layer[0].window, 6);
    ok(model_digest(&plain, &m));
    cr_assert_not(digest_equal(&own, &plain));
    ok(export_merged(merged, &nothing, &m, &options)); /* a window makes it Mistral there */
    ok(model_open(&again, merged));
    cr_assert_str_eq(again.arch.family->model_type, "mistral");
    ok(model_digest(&own, &again));
    cr_assert(digest_equal(&own, &plain));
    model_close(&again);
    model_close(&m);

    write_model(path, (const float[]){1, 8}, 0);
    ok(model_open(&m, path));
    cr_assert_eq(m.arch.rope.kind, ROPE_LLAMA3);
    cr_assert_eq(m.arch.rope.factor, 8);
    model_rope_frequencies(f, &m.arch.rope, m.arch.head_dim, 0);
    cr_assert(f[0] == 1 && fabs((double)f[1] - 0.01 / 8) < 1e-9);
    model_close(&m);

    write_model(path, (const float[]){1, -8}, 0);
    refused(model_open(&m, path), ERR_INPUT, "rope_freqs.weight: expected positive numbers");
    support_dir_remove(dir);
}
