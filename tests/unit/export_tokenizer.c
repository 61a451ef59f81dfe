#include "base/file.h"
#include "client/export/export_parts.h"
#include "engine/tokens/tokenizer.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_shared(const char *name, const char *ending)
{
    char relative[256], path[SUPPORT_PATH_BYTES], *text;
    size_t size;
    (void)snprintf(relative, sizeof relative, "data/ggml-vocab/ggml-vocab-%s.gguf%s", name, ending);
    support_shared(path, sizeof path, relative);
    ok(file_read_all(&text, &size, path, 1 << 20));
    return text;
}

/* One line of ids. */
static bool same_ids(const struct tokens *got, char **line)
{
    size_t count = 0;
    bool same = true;
    while (**line != '\n' && **line != 0) {
        char *end;
        long id = strtol(*line, &end, 10);
        if (end == *line) break;
        same = same && count < got->count && got->id[count] == id;
        count++;
        *line = end + strspn(end, " ");
    }
    *line += **line == '\n';
    return same && count == got->count;
}

/* tokenizer.json made from the GGUF, read by our Hugging Face reader (proved against the tokenizers
 * library), gives the ids that llama.cpp gives for the GGUF itself. */
static void check_vocabulary(const char *name)
{
    static const char between[] = "\n__ggml_vocab_test__\n";
    char dir[SUPPORT_PATH_BYTES], relative[256], path[SUPPORT_PATH_BYTES];
    struct gguf g = {0};
    struct tokenizer *t;
    char *input = read_shared(name, ".inp"), *output = read_shared(name, ".out");
    char *text = input, *line = output;
    (void)snprintf(relative, sizeof relative, "data/ggml-vocab/ggml-vocab-%s.gguf", name);
    support_shared(path, sizeof path, relative);
    support_dir_make(dir);
    ok(gguf_open(&g, path, GGUF_HEADER_ONLY));
    ok(export_tokenizer(dir, &g));
    ok(tokenizer_open(&t, dir));
    int checked = 0;
    for (bool more = true; more; checked++) {
        struct tokens tokens = {0};
        char *end = strstr(text, between);
        size_t size = end != NULL ? (size_t)(end - text) : strlen(text);
        ok(tokenizer_encode(&tokens, t, text, size, false));
        cr_expect(same_ids(&tokens, &line), "%s: text %d: %.*s", name, checked, (int)size, text);
        tokens_close(&tokens);
        more = end != NULL;
        if (more) text = end + sizeof between - 1;
    }
    cr_assert_gt(checked, 40);
    tokenizer_close(t);
    gguf_close(&g);
    free(input);
    free(output);
    support_dir_remove(dir);
}

Test(export_tokenizer, gpt2_keeps_its_ids)
{
    check_vocabulary("gpt-2");
}
Test(export_tokenizer, starcoder_keeps_its_ids)
{
    check_vocabulary("starcoder");
}
Test(export_tokenizer, sentencepiece_scores_become_merges_that_give_the_same_ids)
{
    check_vocabulary("llama-spm");
}

/* Appends bytes [from, to) of the file, with the text of a key replaced. The key's value is a
 * string of another length, so its size is written again. */
static void put_gguf(const char *path, const char *from, const char *key, const char *value)
{
    char source[SUPPORT_PATH_BYTES], *data;
    size_t size;
    struct bytes out = {.max = 1 << 20};
    support_source(source, sizeof source, from);
    ok(file_read_all(&data, &size, source, 1 << 20));
    char *at = memmem(data, size, key, strlen(key));
    cr_assert_not_null(at);
    at += strlen(key) + 4; /* the type of the value */
    uint64_t old, length = strlen(value);
    memcpy(&old, at, sizeof old);
    ok(bytes_append(&out, data, (size_t)(at - data)));
    ok(bytes_append(&out, &length, sizeof length));
    ok(bytes_append(&out, value, strlen(value)));
    at += sizeof old + old;
    ok(bytes_append(&out, at, size - (size_t)(at - data)));
    ok(file_write(path, out.data, out.size, true));
    bytes_close(&out);
    free(data);
}

/* The file and its export give the same ids; letters outside ASCII are left out, because llama.cpp
 * does not tell their cases apart where the original patterns do. */
static void check_pre(const char *file, const char *pre)
{
    static const char *const texts[] = {
        "Hello world, it's THE cat. I'LL go", "x=1;\n\tif(a){i++;} // 12345 6",
        "  camelCase SHOUTing aB/c\r\n\n  end ", "\u00bd \u65e5\u672c\u8a9e 3.14159\n/\n",
        "<|im_start|>user\nHi<|im_end|>  \n"};
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct gguf g = {0};
    struct tokenizer *from, *to;
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "model.gguf"));
    put_gguf(path, file, "tokenizer.ggml.pre", pre);
    ok(gguf_open(&g, path, GGUF_HEADER_ONLY));
    ok(export_tokenizer(dir, &g));
    ok(tokenizer_open(&from, path));
    ok(tokenizer_open(&to, dir));
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        struct tokens want = {0}, got = {0};
        ok(tokenizer_encode(&want, from, texts[i], strlen(texts[i]), true));
        ok(tokenizer_encode(&got, to, texts[i], strlen(texts[i]), true));
        cr_expect(want.count == got.count &&
                      memcmp(want.id, got.id, want.count * sizeof *want.id) == 0,
                  "%s: text %zu", pre, i);
        tokens_close(&want);
        tokens_close(&got);
    }
    tokenizer_close(from);
    tokenizer_close(to);
    gguf_close(&g);
    support_dir_remove(dir);
}

Test(export_tokenizer, families_of_byte_level_vocabularies_keep_their_ids)
{
    static const char gpt2[] = "tests/golden/tokenizer/gpt2.gguf";
    check_pre(gpt2, "dbrx");
    check_pre(gpt2, "smaug-bpe");
    check_pre(gpt2, "gpt-4o");
    check_pre(gpt2, "deepseek-r1-qwen");
    check_pre(gpt2, "refact");
    check_pre("tests/golden/tokenizer/llama3.gguf", "tekken");
}

/* The special tokens of Phi-3, which its GGUF is only known for by its name. */
Test(export_tokenizer, phi3_keeps_the_tokens_that_take_white_space)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES], *data;
    static const char key[] = "general.name", name[] = "Phi-3 Mini", text[] = "a</s>  \n b<s> c";
    const uint64_t key_size = sizeof key - 1, name_size = sizeof name - 1;
    const uint32_t string = 8;
    struct gguf g = {0};
    struct tokenizer *t;
    struct bytes out = {.max = 1 << 20};
    struct tokens ids = {0};
    size_t size;
    uint64_t keys;
    support_source(path, sizeof path, "tests/golden/tokenizer/llama2.gguf");
    ok(file_read_all(&data, &size, path, 1 << 20));
    memcpy(&keys, data + 16, sizeof keys);
    keys++;
    memcpy(data + 16, &keys, sizeof keys);
    ok(bytes_append(&out, data, 24));
    ok(bytes_append(&out, &key_size, sizeof key_size));
    ok(bytes_append(&out, key, key_size));
    ok(bytes_append(&out, &string, sizeof string));
    ok(bytes_append(&out, &name_size, sizeof name_size));
    ok(bytes_append(&out, name, name_size));
    ok(bytes_append(&out, data + 24, size - 24));
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "model.gguf"));
    ok(file_write(path, out.data, out.size, true));
    ok(gguf_open(&g, path, GGUF_HEADER_ONLY));
    ok(export_tokenizer(dir, &g));
    ok(tokenizer_open(&t, dir));
    ok(tokenizer_encode(&ids, t, text, strlen(text), true));
    static const int32_t want[] = {322, 2, 331, 1, 318, 341}; /* the space before c is kept */
    cr_assert_eq(ids.count, sizeof want / sizeof *want, "%zu", ids.count);
    for (size_t i = 0; i < ids.count; i++)
        cr_expect_eq(ids.id[i], want[i], "%zu: %d", i, ids.id[i]);
    tokens_close(&ids);
    tokenizer_close(t);
    gguf_close(&g);
    bytes_close(&out);
    free(data);
    support_dir_remove(dir);
}

Test(export_tokenizer, a_kind_without_a_known_form_is_refused_by_name)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct gguf g = {0};
    support_source(path, sizeof path, "tests/models/llama/f16.gguf");
    support_dir_make(dir);
    ok(gguf_open(&g, path, GGUF_HEADER_ONLY));
    refused(export_tokenizer(dir, &g), ERR_INPUT, "the GGUF's tokenizer no_vocab");
    gguf_close(&g);
    support_dir_remove(dir);
}

/* A template is copied as it is, and with it those of other names; an abandoned copy leaves
 * nothing. */
Test(export_tokenizer, chat_templates_are_copied_as_they_are)
{
    static const char text[] = "{# kept #}{{ messages }}\r\n";
    char dir[SUPPORT_PATH_BYTES], from[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES],
        path[SUPPORT_PATH_BYTES + 64];
    static const char *const files[] = {"chat_template.jinja",
                                        "additional_chat_templates/tool_use.jinja"};
    support_dir_make(dir);
    ok(file_join(from, sizeof from, dir, "from"));
    ok(file_join(to, sizeof to, dir, "to"));
    (void)snprintf(path, sizeof path, "%s/additional_chat_templates", from);
    ok(file_make_dirs(path));
    ok(file_make_dirs(to));
    for (int i = 0; i < 2; i++) {
        ok(file_join(path, sizeof path, from, files[i]));
        ok(file_write(path, text, sizeof text - 1, true));
    }
    ok(export_copy_tokenizer(to, from));
    for (int i = 0; i < 2; i++) {
        char *copy;
        size_t size;
        ok(file_join(path, sizeof path, to, files[i]));
        ok(file_read_all(&copy, &size, path, 1000));
        cr_expect_str_eq(copy, text, "%s", files[i]);
        free(copy);
    }
    export_dir_abandon(to);
    cr_expect(!file_exists(to));
    support_dir_remove(dir);
}
