#include "client/gguf_write.h"
#include "client/model.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>

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
#define SHAPE                                                                                      \
    TEXT("general.architecture", "llama"), NUMBER("llama.block_count", 1),                         \
        NUMBER("llama.embedding_length", 8), NUMBER("llama.feed_forward_length", 8),               \
        NUMBER("llama.attention.head_count", 2),                                                   \
        REAL("llama.attention.layer_norm_rms_epsilon", 1e-5f)
#define GGUF_REFUSED(part, ...)                                                                    \
    gguf_refused((const struct gguf_write_kv[]){__VA_ARGS__},                                      \
                 sizeof((const struct gguf_write_kv[]){__VA_ARGS__}) /                             \
                     sizeof(struct gguf_write_kv),                                                 \
                 (part))

Test(model_gguf, a_gguf_that_is_no_whole_model_of_a_known_kind_is_refused_by_name)
{
    GGUF_REFUSED("general.type \"adapter\": expected model", TEXT("general.type", "adapter"),
                 TEXT("general.architecture", "llama"));
    GGUF_REFUSED("one of 3 parts of a split model", NUMBER("split.count", 3), SHAPE);
    GGUF_REFUSED("general.architecture \"gemma3\": expected llama",
                 TEXT("general.architecture", "gemma3"));
    GGUF_REFUSED("key general.architecture is missing", TEXT("general.name", "x"));
    GGUF_REFUSED("key llama.block_count is missing", TEXT("general.architecture", "llama"));
    GGUF_REFUSED("a mixture of 4 experts", SHAPE, NUMBER("llama.expert_count", 4));
    GGUF_REFUSED("\"yarn\": expected none or linear", SHAPE,
                 TEXT("llama.rope.scaling.type", "yarn"));
    GGUF_REFUSED("rotated 2: expected all equal", SHAPE, NUMBER("llama.rope.dimension_count", 2));
    GGUF_REFUSED("key/value heads is 0", SHAPE, NUMBER("llama.attention.head_count_kv", 0));
    GGUF_REFUSED("tensor blk.0.attn_norm.weight is missing", SHAPE);
}
