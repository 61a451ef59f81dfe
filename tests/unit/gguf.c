#include "engine/model/gguf.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void shared_path(char out[1024], const char *name)
{
    snprintf(out, 1024, "%s/../shared/data/%s", FEDLORA_SOURCE_DIR, name);
}

/* Bytes of a file built by hand. */
struct build {
    uint8_t data[4096];
    size_t size;
};

static void put(struct build *b, const void *data, size_t size)
{
    cr_assert(b->size + size <= sizeof b->data);
    memcpy(b->data + b->size, data, size);
    b->size += size;
}
static void put_u32(struct build *b, uint32_t v)
{
    put(b, &v, sizeof v);
}
static void put_u64(struct build *b, uint64_t v)
{
    put(b, &v, sizeof v);
}
static void put_str(struct build *b, const char *s)
{
    put_u64(b, strlen(s));
    put(b, s, strlen(s));
}
static void put_header(struct build *b, uint64_t tensors, uint64_t kvs)
{
    put(b, "GGUF", 4);
    put_u32(b, 3);
    put_u64(b, tensors);
    put_u64(b, kvs);
}

Test(gguf, says_what_the_reference_loader_says_of_every_handcrafted_file)
{
    char path[1024], line[512], name[256], verdict[32];
    int with_data, kvs, tensors, checked = 0;
    shared_path(path, "gguf-handcrafted/expected_seed42.tsv");
    FILE *f = fopen(path, "r");
    if (f == NULL) cr_skip_test("no ../shared/data/gguf-handcrafted");
    cr_assert_not_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f) != NULL) {
        cr_assert_eq(sscanf(line, "%255s %d %31s %d %d", name, &with_data, verdict, &kvs, &tensors),
                     5);
        char relative[512];
        snprintf(relative, sizeof relative, "gguf-handcrafted/%s", name);
        shared_path(path, relative);
        struct gguf g = {0};
        err e = gguf_open(&g, path, with_data ? GGUF_WITH_DATA : GGUF_HEADER_ONLY);
        if (strcmp(verdict, "ok") == 0) {
            cr_assert(!err_is(e), "%s: %s", name, e.text);
            cr_assert_eq(g.kv_count, (size_t)kvs, "%s: %zu keys", name, g.kv_count);
            cr_assert_eq(g.tensor_count, (size_t)tensors, "%s: %zu tensors", name, g.tensor_count);
        } else {
            cr_assert_eq(e.kind, ERR_INPUT, "%s: accepted", name);
            cr_assert_not_null(strstr(e.text, name), "%s: %s", name, e.text);
        }
        gguf_close(&g);
        checked++;
    }
    fclose(f);
    cr_assert_eq(checked, 27);
}

Test(gguf, reads_a_whole_model)
{
    char path[1024];
    shared_path(path, "llama-2-tiny-random/llama-2-tiny-random.gguf");
    if (!file_exists(path)) cr_skip_test("no ../shared/data/llama-2-tiny-random");
    struct gguf g = {0};
    struct arena arena = {0};
    err e = gguf_open(&g, path, GGUF_WITH_DATA);
    cr_assert(!err_is(e), "%s", e.text);
    struct gguf_str architecture;
    cr_assert(!err_is(gguf_get_str(&architecture, &g, "general.architecture")));
    cr_assert(gguf_str_is(architecture, "llama"));
    const struct gguf_str *tokens;
    const float *scores;
    const int32_t *types;
    size_t token_count, score_count, type_count;
    cr_assert(
        !err_is(gguf_get_strings(&tokens, &token_count, &g, "tokenizer.ggml.tokens", &arena)));
    cr_assert(!err_is(gguf_get_f32s(&scores, &score_count, &g, "tokenizer.ggml.scores", &arena)));
    cr_assert(!err_is(gguf_get_i32s(&types, &type_count, &g, "tokenizer.ggml.token_type", &arena)));
    cr_assert_eq(token_count, 32000);
    cr_assert_eq(score_count, 32000);
    cr_assert_eq(type_count, 32000);
    cr_assert(gguf_str_is(tokens[1], "<s>"));
    const struct gguf_tensor *embed = gguf_find_tensor(&g, "token_embd.weight");
    cr_assert_not_null(embed);
    cr_assert_eq(embed->ne[1], 32000);
    cr_assert_null(gguf_find_tensor(&g, "token_embd"));
    arena_close(&arena);
    gguf_close(&g);
}

Test(gguf, typed_values_are_found_and_checked)
{
    struct build b = {0};
    put_header(&b, 0, 5);
    put_str(&b, "whole");
    put_u32(&b, GGUF_U64);
    put_u64(&b, 7);
    put_str(&b, "negative");
    put_u32(&b, GGUF_I32);
    put_u32(&b, (uint32_t)-3);
    put_str(&b, "nan");
    put_u32(&b, GGUF_F32);
    put(&b, &(float){NAN}, 4);
    put_str(&b, "words");
    put_u32(&b, GGUF_ARRAY);
    put_u32(&b, GGUF_STRING);
    put_u64(&b, 2);
    put_str(&b, "");
    put_str(&b, "two");
    put_str(&b, "yes");
    put_u32(&b, GGUF_BOOL);
    put(&b, "\1", 1);

    struct gguf g = {0};
    struct arena arena = {0};
    err e = gguf_parse(&g, b.data, b.size, GGUF_WITH_DATA);
    cr_assert(!err_is(e), "%s", e.text);
    uint32_t u = 99;
    float real = 1;
    bool yes = false;
    const struct gguf_str *words;
    size_t count;
    cr_assert(!err_is(gguf_get_u32(&u, &g, "whole")));
    cr_assert_eq(u, 7);
    cr_assert_eq(gguf_get_u32(&u, &g, "negative").kind, ERR_INPUT);
    cr_assert_eq(gguf_get_u32(&u, &g, "words").kind, ERR_INPUT);
    cr_assert_eq(gguf_get_u32(&u, &g, "missing").kind, ERR_INPUT);
    cr_assert(!err_is(gguf_opt_u32(&u, &g, "missing")));
    cr_assert_eq(u, 7, "an output changed on failure or absence");
    cr_assert_eq(gguf_get_f32(&real, &g, "nan").kind, ERR_INPUT);
    cr_assert_eq(gguf_get_f32(&real, &g, "whole").kind, ERR_INPUT);
    cr_assert(!err_is(gguf_opt_bool(&yes, &g, "yes")));
    cr_assert(yes);
    cr_assert(!err_is(gguf_get_strings(&words, &count, &g, "words", &arena)));
    cr_assert_eq(count, 2);
    cr_assert(gguf_str_is(words[0], "") && gguf_str_is(words[1], "two"));
    arena_close(&arena);
    gguf_close(&g);
}

Test(gguf, a_file_cut_anywhere_is_refused_without_a_crash)
{
    struct build b = {0};
    put_header(&b, 1, 1);
    put_str(&b, "words");
    put_u32(&b, GGUF_ARRAY);
    put_u32(&b, GGUF_STRING);
    put_u64(&b, 2);
    put_str(&b, "one");
    put_str(&b, "two");
    put_str(&b, "t");
    put_u32(&b, 2);
    put_u64(&b, 32);
    put_u64(&b, 3);
    put_u32(&b, 8); /* Q8_0: 3 rows of 34 bytes */
    put_u64(&b, 0);
    while (b.size % 32 != 0)
        put(&b, "", 1);
    for (int i = 0; i < 128; i++) /* 102 and their padding */
        put(&b, "", 1);
    for (size_t size = 0; size <= b.size; size++) {
        uint8_t *exact = malloc(size + 1); /* so that the sanitizer sees a read past the end */
        cr_assert_not_null(exact);
        exact = realloc(exact, size > 0 ? size : 1);
        memcpy(exact, b.data, size);
        struct gguf g = {0};
        err e = gguf_parse(&g, exact, size, GGUF_WITH_DATA);
        cr_assert_eq(err_is(e), size < b.size, "%zu bytes: %s", size, e.text);
        gguf_close(&g);
        free(exact);
    }
}

static err one_tensor(uint64_t ne0, uint64_t ne1, uint32_t type, uint64_t offset)
{
    struct build b = {0};
    put_header(&b, 1, 0);
    put_str(&b, "t");
    put_u32(&b, 2);
    put_u64(&b, ne0);
    put_u64(&b, ne1);
    put_u32(&b, type);
    put_u64(&b, offset);
    struct gguf g = {0};
    err e = gguf_parse(&g, b.data, b.size, GGUF_HEADER_ONLY);
    gguf_close(&g);
    return e;
}

Test(gguf, sizes_that_overflow_are_refused)
{
    cr_assert(!err_is(one_tensor(32, 4, 0, 0)));
    cr_assert(err_is(one_tensor(1ull << 40, 1ull << 40, 0, 0)));
    cr_assert(err_is(one_tensor(1ull << 62, 1, 0, 0)), "2^64 bytes");
    cr_assert(err_is(one_tensor(UINT64_MAX, 1, 0, 0)));
    cr_assert(err_is(one_tensor(33, 1, 2, 0)), "a row that is no whole number of blocks");
    cr_assert(err_is(one_tensor(32, 1, 4, 0)), "a removed type");
    cr_assert(err_is(one_tensor(32, 1, 0, 32)), "a hole before the first tensor");
}
