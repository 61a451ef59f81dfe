/* Tokenizers and chat templates against Hugging Face tokenizers, llama.cpp and Jinja: the cases of
 * tests/golden/tokenizer, which make.py in that folder makes. */
#include "base/file.h"
#include "base/json.h"
#include "engine/tokens/chat.h"
#include "engine/tokens/tokenizer.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static json_t *open_cases(const char *name)
{
    char path[SUPPORT_PATH_BYTES], part[256];
    json_t *json;
    (void)snprintf(part, sizeof part, "tests/golden/tokenizer/%s", name);
    support_source(path, sizeof path, part);
    ok(json_open(&json, path, 1 << 20));
    return json;
}

static struct tokenizer *open_tokenizer(const char *name)
{
    char path[SUPPORT_PATH_BYTES], part[128];
    struct tokenizer *t;
    (void)snprintf(part, sizeof part, "tests/golden/tokenizer/%s", name);
    support_source(path, sizeof path, part);
    ok(tokenizer_open(&t, path));
    return t;
}

static void check_ids(const struct tokenizer *t, const json_t *text, const json_t *want,
                      bool special, const char *name)
{
    struct tokens got = {0};
    size_t size = json_string_length(text), i;
    ok(tokenizer_encode(&got, t, json_string_value(text), size, special));
    for (i = 0; i < got.count; i++) {
        cr_assert_eq(got.id[i], json_integer_value(json_array_get(want, i)),
                     "%s: \"%s\": token %zu is %d", name, json_string_value(text), i, got.id[i]);
        cr_assert(got.start[i] < size && (i == 0 || got.start[i] >= got.start[i - 1]),
                  "%s: \"%s\": token %zu starts at %u", name, json_string_value(text), i,
                  got.start[i]);
    }
    cr_assert_eq(got.count, json_array_size(want), "%s: \"%s\": %zu tokens", name,
                 json_string_value(text), got.count);
    tokens_close(&got);
}

static void check_text(const struct tokenizer *t, const json_t *ids, const json_t *want,
                       const char *name)
{
    int32_t id[512];
    struct bytes got = {.max = 1 << 16};
    size_t i, count = json_array_size(ids);
    cr_assert(count <= 512);
    for (i = 0; i < count; i++)
        id[i] = (int32_t)json_integer_value(json_array_get(ids, i));
    ok(tokenizer_decode(&got, t, id, count, true));
    ok(bytes_append(&got, "", 1));
    cr_assert_str_eq((char *)got.data, json_string_value(want), "%s", name);
    bytes_close(&got);
}

/* Every text, with special tokens parsed and not; where known, what the ids decode to. */
static void check_tokenizer(const char *name)
{
    json_t *cases = open_cases("ids.json"), *texts = json_object_get(cases, "texts"), *text;
    json_t *want = json_object_get(json_object_get(cases, "ids"), name);
    json_t *decoded = json_object_get(want, "decoded");
    struct tokenizer *t = open_tokenizer(name);
    size_t i;
    cr_assert(want && json_array_size(texts) > 50);
    json_array_foreach(texts, i, text)
    {
        const json_t *special = json_array_get(json_object_get(want, "special"), i);
        check_ids(t, text, special, true, name);
        check_ids(t, text, json_array_get(json_object_get(want, "plain"), i), false, name);
        if (decoded) check_text(t, special, json_array_get(decoded, i), name);
    }
    tokenizer_close(t);
    json_decref(cases);
}

Test(tokenizer_cases, gpt2_directory_agrees_with_hugging_face)
{
    check_tokenizer("gpt2");
}
Test(tokenizer_cases, llama3_directory_agrees_with_hugging_face)
{
    check_tokenizer("llama3");
}
Test(tokenizer_cases, qwen2_directory_agrees_with_hugging_face)
{
    check_tokenizer("qwen2");
}
Test(tokenizer_cases, smollm2_directory_agrees_with_hugging_face)
{
    check_tokenizer("smollm2");
}
Test(tokenizer_cases, llama2_directory_agrees_with_hugging_face)
{
    check_tokenizer("llama2");
}
Test(tokenizer_cases, mistral_directory_agrees_with_hugging_face)
{
    check_tokenizer("mistral");
}
Test(tokenizer_cases, gpt2_file_agrees_with_llama_cpp)
{
    check_tokenizer("gpt2.gguf");
}
Test(tokenizer_cases, llama3_file_agrees_with_llama_cpp)
{
    check_tokenizer("llama3.gguf");
}
Test(tokenizer_cases, qwen2_file_agrees_with_llama_cpp)
{
    check_tokenizer("qwen2.gguf");
}
Test(tokenizer_cases, smollm2_file_agrees_with_llama_cpp)
{
    check_tokenizer("smollm2.gguf");
}
Test(tokenizer_cases, default_file_agrees_with_llama_cpp)
{
    check_tokenizer("default.gguf");
}
Test(tokenizer_cases, falcon_file_agrees_with_llama_cpp)
{
    check_tokenizer("falcon.gguf");
}
Test(tokenizer_cases, llama2_file_agrees_with_llama_cpp)
{
    check_tokenizer("llama2.gguf");
}

/* The spans cover as many turns as there are, and each ends with the token that ends a turn. */
static void check_spans(const struct chat_spans *spans, const struct bytes *text,
                        const json_t *messages, const char *end)
{
    size_t answers = 0, i;
    json_t *item;
    json_array_foreach(messages, i, item) answers +=
        strcmp(json_string_value(json_object_get(item, "role")), "assistant") == 0;
    cr_assert_eq(spans->count, answers);
    for (i = 0; i < spans->count; i++) {
        struct chat_span s = spans->span[i];
        cr_assert(s.begin < s.end && s.end <= text->size);
        cr_assert(memcmp(text->data + s.end - strlen(end), end, strlen(end)) == 0,
                  "%s: learned to byte %zu", (char *)text->data, s.end);
        cr_assert_null(memmem(text->data + s.begin, s.end - s.begin - 1, end, strlen(end)));
    }
}

static void check_chat(const json_t *templates, const json_t *one)
{
    const char *name = json_string_value(json_object_get(one, "template"));
    const char *jinja = json_string_value(json_object_get(templates, name));
    const char *want = json_string_value(json_object_get(one, "rendered"));
    const char *end = strstr(jinja, "<|im_end|>")   ? "<|im_end|>"
                      : strstr(jinja, "<|eot_id|>") ? "<|eot_id|>"
                                                    : "</s>";
    json_t *specials =
        json_pack("{s:s, s:s, s:s}", "bos_token", "<s>", "eos_token", "</s>", "eot_token", end);
    struct chat *c;
    struct chat_spans spans = {0};
    struct bytes text = {.max = 1 << 16};
    ok(chat_open_text(&c, jinja, strlen(jinja), specials));
    const struct chat_input input = {.messages = json_object_get(one, "messages"),
                                     .generate = json_is_true(json_object_get(one, "generate"))};
    err e = chat_render(&text, &spans, c, &input);
    if (!want) {
        cr_assert_eq(e.kind, ERR_INPUT, "%s: the template refuses", name);
        cr_assert(text.size == 0 && spans.count == 0);
    } else {
        ok(e);
        cr_assert_str_eq((char *)text.data, want, "%s", name);
        check_spans(&spans, &text, input.messages, end);
    }
    json_decref(specials);
    chat_spans_close(&spans);
    bytes_close(&text);
    chat_close(c);
}

Test(tokenizer_cases, chats_are_rendered_as_the_models_own_templates_do)
{
    json_t *cases = open_cases("chats.json"), *one;
    json_t *list = json_object_get(cases, "cases");
    size_t i;
    cr_assert(json_array_size(list) >= 100);
    json_array_foreach(list, i, one) check_chat(json_object_get(cases, "templates"), one);
    json_decref(cases);
}

/* A tokenizer.json with some of its parts replaced, and added tokens of all kinds. */
static struct tokenizer *open_variant(const json_t *variant, const char *dir)
{
    char path[SUPPORT_PATH_BYTES], part[128];
    const char *base = json_string_value(json_object_get(variant, "base"));
    json_t *whole, *added, *token;
    struct tokenizer *t;
    struct bytes text = {.max = 1 << 20};
    size_t i;
    (void)snprintf(part, sizeof part, "%s/tokenizer.json", base);
    whole = open_cases(part);
    cr_assert_eq(json_object_update(whole, json_object_get(variant, "parts")), 0);
    added = json_object_get(whole, "added_tokens");
    json_array_foreach(json_object_get(variant, "added"), i, token) json_array_append(added, token);
    ok(json_write(&text, whole));
    ok(file_join(path, sizeof path, dir, "tokenizer.json"));
    ok(file_write(path, text.data, text.size, true));
    ok(tokenizer_open(&t, dir));
    bytes_close(&text);
    json_decref(whole);
    return t;
}

/* Every variant of a file gives the ids, and the decoded texts where the file has them. */
static size_t check_variants(const char *file)
{
    char dir[SUPPORT_PATH_BYTES], name[64];
    json_t *cases = open_cases(file), *texts = json_object_get(cases, "texts");
    json_t *variant, *text;
    size_t i, k;
    support_dir_make(dir);
    json_array_foreach(json_object_get(cases, "variants"), i, variant)
    {
        struct tokenizer *t = open_variant(variant, dir);
        const char *given = json_string_value(json_object_get(variant, "name"));
        const json_t *decoded = json_object_get(variant, "decoded");
        (void)snprintf(name, sizeof name, "variant %zu %s", i, given ? given : "");
        json_array_foreach(texts, k, text)
        {
            const json_t *ids = json_array_get(json_object_get(variant, "ids"), k);
            check_ids(t, text, ids, true, name);
            if (decoded) check_text(t, ids, json_array_get(decoded, k), name);
        }
        tokenizer_close(t);
    }
    json_decref(cases);
    support_dir_remove(dir);
    return i;
}

Test(tokenizer_cases, every_part_of_a_tokenizer_file_agrees_with_hugging_face)
{
    cr_assert_gt(check_variants("variants.json"), 30);
}

/* Unigram, Gemma, Phi, Granite, OLMo 2, SmolLM3, Tekken and DeepSeek.
 * tests/oracle/tokenizer_families.py makes the file. */
Test(tokenizer_cases, tokenizers_of_public_families_agree_with_hugging_face)
{
    cr_assert_gt(check_variants("families.json"), 12);
}
