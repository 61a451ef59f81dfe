#include "engine/model/gguf_write.h"

#include "engine/model/gguf.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

Test(gguf_write, what_is_written_is_read_back)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct file_out out = {0};
    const float values[6] = {1, -2.5f, 0, 3e-30f, 4, 5};
    const struct gguf_write_kv kv[] = {
        {.key = "general.type", .text = "adapter"},
        {.key = "n", .kind = GGUF_WRITE_U32, .u32 = 7},
        {.key = "alpha", .kind = GGUF_WRITE_F32, .f32 = 0.5f},
    };
    const struct gguf_write_tensor tensor[] = {
        {.name = "b", .rows = 2, .cols = 3, .data = values},
        {.name = "a", .rows = 1, .cols = 5, .data = values},
    };
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x.gguf"));
    ok(file_out_open(&out, path, false));
    ok(gguf_write_file(&out, kv, 3, tensor, 2));
    ok(file_out_commit(&out));
    struct gguf g = {0};
    struct gguf_str text;
    uint32_t n;
    float alpha;
    ok(gguf_open(&g, path, GGUF_WITH_DATA));
    ok(gguf_get_str(&text, &g, "general.type"));
    ok(gguf_get_u32(&n, &g, "n"));
    ok(gguf_get_f32(&alpha, &g, "alpha"));
    cr_assert(gguf_str_is(text, "adapter") && n == 7 && alpha == 0.5f);
    const struct gguf_tensor *b = gguf_find_tensor(&g, "b"), *a = gguf_find_tensor(&g, "a");
    cr_assert(b->ne[0] == 3 && b->ne[1] == 2 && a->ne[0] == 5 && a->ne[1] == 1);
    cr_assert_eq(memcmp(b->data, values, sizeof values), 0);
    cr_assert_eq(memcmp(a->data, values, 5 * sizeof *values), 0);
    gguf_close(&g);
    support_dir_remove(dir);
}

Test(gguf_write, a_name_no_loader_takes_is_refused)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], name[65];
    struct file_out out = {0};
    float value = 1;
    memset(name, 'x', 64);
    name[64] = 0;
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "x.gguf"));
    ok(file_out_open(&out, path, false));
    struct gguf_write_tensor tensor = {.name = name, .rows = 1, .cols = 1, .data = &value};
    refused(gguf_write_file(&out, NULL, 0, &tensor, 1), ERR_INPUT, "at most 63 bytes");
    file_out_close(&out);
    cr_assert_not(file_exists(path));
    support_dir_remove(dir);
}
