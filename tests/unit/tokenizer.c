#include "engine/tokens/tokenizer.h"
#include "base/file.h"
#include "base/limits.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tokenizer *open_case(const char *name)
{
    char path[SUPPORT_PATH_BYTES], part[128];
    struct tokenizer *t;
    (void)snprintf(part, sizeof part, "tests/golden/tokenizer/%s", name);
    support_source(path, sizeof path, part);
    ok(tokenizer_open(&t, path));
    return t;
}

static struct tokens encode(const struct tokenizer *t, const char *text, size_t size)
{
    struct tokens out = {0};
    ok(tokenizer_encode(&out, t, text, size, true));
    return out;
}

static void check_decoded(const struct tokenizer *t, const struct tokens *k, const char *want,
                          size_t size)
{
    struct bytes out = {.max = 1 << 24};
    ok(tokenizer_decode(&out, t, k->id, k->count, true));
    cr_assert_eq(out.size, size, "%zu bytes of %zu", out.size, size);
    cr_assert(size == 0 || memcmp(out.data, want, size) == 0);
    bytes_close(&out);
}

Test(tokenizer, says_what_it_is)
{
    struct tokenizer *t = open_case("smollm2");
    cr_assert_str_eq(tokenizer_kind(t), "byte-level BPE (tokenizer.json)");
    cr_assert_str_eq(tokenizer_token(t, tokenizer_bos(t)), "<|im_start|>");
    cr_assert_str_eq(tokenizer_token(t, tokenizer_eos(t)), "<|im_end|>");
    cr_assert(tokenizer_ends(t, tokenizer_eos(t)) && !tokenizer_ends(t, tokenizer_bos(t)));
    cr_assert_eq(tokenizer_find(t, "no such token"), -1);
    cr_assert_null(tokenizer_token(t, -1));
    cr_assert_null(tokenizer_token(t, (int32_t)tokenizer_vocab(t)));
    cr_assert_null(tokenizer_template(t, "default"));
    tokenizer_close(t);
    t = open_case("llama2.gguf");
    cr_assert_str_eq(tokenizer_kind(t), "BPE by SentencePiece scores, byte fallback");
    tokenizer_close(t);
}

Test(tokenizer, encode_appends_and_leaves_what_was_there_on_failure)
{
    struct tokenizer *t = open_case("gpt2");
    struct tokens out = {0};
    ok(tokenizer_encode(&out, t, "one", 3, true));
    size_t first = out.count;
    ok(tokenizer_encode(&out, t, "one", 3, true));
    cr_assert_eq(out.count, 2 * first);
    cr_assert_eq(out.id[0], out.id[first]);
    refused(tokenizer_encode(&out, t, "", (size_t)LIMIT_TEXT_BYTES + 1, true), ERR_LIMIT,
            "at most");
    cr_assert_eq(out.count, 2 * first);
    tokens_close(&out);
    tokenizer_close(t);
}

Test(tokenizer, a_token_starts_where_its_first_byte_lies)
{
    static const char text[] = "the <|im_end|>cafe: 3+4 the";
    struct tokenizer *t = open_case("smollm2");
    struct tokens k = encode(t, text, sizeof text - 1);
    for (size_t i = 0; i < k.count; i++) { /* each token's own bytes stand at its start */
        struct bytes one = {.max = 64};
        struct tokenizer_stream s = {.tokenizer = t, .special = true};
        ok(tokenizer_stream_add(&one, &s, k.id[i]));
        uint32_t end = i + 1 < k.count ? k.start[i + 1] : (uint32_t)sizeof text - 1;
        cr_assert_eq(one.size + s.held_count, end - k.start[i], "token %zu", i);
        cr_assert(memcmp(text + k.start[i], one.data ? one.data : s.held, one.size) == 0);
        bytes_close(&one);
    }
    tokens_close(&k);
    tokenizer_close(t);
}

Test(tokenizer, composed_characters_start_at_their_first_part)
{
    static const char text[] = "ab e\xCC\x81 cd"; /* NFC makes one letter of two */
    struct tokenizer *t = open_case("qwen2");
    struct tokens k = encode(t, text, sizeof text - 1), same = encode(t, "ab \xC3\xA9 cd", 8);
    cr_assert_eq(k.count, same.count);
    for (size_t i = 0; i < k.count; i++) {
        cr_assert_eq(k.id[i], same.id[i]);
        cr_assert(k.start[i] < 3 || k.start[i] >= 6 || k.start[i] == 3);
    }
    cr_assert_eq(k.start[k.count - 1] - same.start[k.count - 1], 1);
    tokens_close(&k);
    tokens_close(&same);
    tokenizer_close(t);
}

Test(tokenizer, bytes_that_are_no_utf8_count_as_replacement_characters)
{
    static const char bad[] = "a\xFF\xE2\x82z\xED\xA0\x80",
                      good[] = "a\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBDz"
                               "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    static const char *const names[] = {"gpt2", "llama2", "llama3.gguf", "llama2.gguf"};
    for (int n = 0; n < 4; n++) {
        struct tokenizer *t = open_case(names[n]);
        struct tokens a = encode(t, bad, sizeof bad - 1), b = encode(t, good, sizeof good - 1);
        cr_assert_eq(a.count, b.count);
        for (size_t i = 0; i < a.count; i++) {
            cr_assert_eq(a.id[i], b.id[i]);
            cr_assert(a.start[i] < sizeof bad - 1);
        }
        tokens_close(&a);
        tokens_close(&b);
        tokenizer_close(t);
    }
}

Test(tokenizer, decoding_holds_a_character_back_until_it_is_whole)
{
    static const char text[] = "x \xF0\x9F\x98\x80 y";
    static const char *const names[] = {"gpt2", "llama2", "llama2.gguf"};
    for (int n = 0; n < 3; n++) {
        struct tokenizer *t = open_case(names[n]);
        struct tokens k = encode(t, text, sizeof text - 1);
        struct tokenizer_stream s = {.tokenizer = t, .start = true, .special = true};
        struct bytes out = {.max = 64};
        cr_assert(k.count > 5, "the face is no token of its own");
        for (size_t i = 0; i < k.count; i++) {
            ok(tokenizer_stream_add(&out, &s, k.id[i]));
            cr_assert(out.size == 0 || memcmp(out.data, text, out.size) == 0);
            cr_assert(out.size <= 2 || out.size >= 6, "half a character was given out");
        }
        cr_assert_eq(out.size, sizeof text - 1);
        ok(tokenizer_stream_add(&out, &s, k.id[3]));
        ok(tokenizer_stream_end(&out, &s));
        bytes_close(&out);
        tokens_close(&k);
        tokenizer_close(t);
    }
}

Test(tokenizer, decoding_replaces_what_is_no_character)
{
    struct tokenizer *t = open_case("gpt2");
    struct tokens k = encode(t, "\xF0\x9F\x98\x80", 4);
    struct bytes out = {.max = 64};
    cr_assert_eq(k.count, 4);
    ok(tokenizer_decode(&out, t, k.id, 3, true)); /* cut inside */
    cr_assert_eq(out.size, 3);
    cr_assert(memcmp(out.data, "\xEF\xBF\xBD", 3) == 0);
    bytes_clear(&out);
    ok(tokenizer_decode(&out, t, (int32_t[]){k.id[3], k.id[0], tokenizer_find(t, "a")}, 3, true));
    ok(bytes_append(&out, "", 1));
    cr_assert_str_eq((char *)out.data, "\xEF\xBF\xBD\xEF\xBF\xBD"
                                       "a");
    bytes_close(&out);
    tokens_close(&k);
    tokenizer_close(t);
}

Test(tokenizer, special_tokens_are_printed_only_when_asked_for)
{
    struct tokenizer *t = open_case("smollm2");
    struct tokens k = encode(t, "a<|im_end|>b", 12);
    struct bytes out = {.max = 64};
    cr_assert_eq(k.count, 3);
    ok(tokenizer_decode(&out, t, k.id, 3, false));
    cr_assert(out.size == 2 && memcmp(out.data, "ab", 2) == 0);
    refused(tokenizer_decode(&out, t, (int32_t[]){k.id[0], -1}, 2, true), ERR_INPUT, "outside");
    refused(tokenizer_decode(&out, t, (int32_t[]){(int32_t)tokenizer_vocab(t)}, 1, true), ERR_INPUT,
            "outside");
    cr_assert_eq(out.size, 2, "untouched on failure");
    bytes_close(&out);
    tokens_close(&k);
    tokenizer_close(t);
}

Test(tokenizer, what_is_encoded_decodes_to_itself)
{
    static const char *const names[] = {"gpt2",       "llama3",      "smollm2",      "llama2",
                                        "qwen2.gguf", "llama3.gguf", "smollm2.gguf", "llama2.gguf"};
    char text[64];
    for (int n = 0; n < 8; n++) {
        struct tokenizer *t = open_case(names[n]);
        for (uint32_t c = 1; c < 0x11000; c += n + 3) { /* characters of one to four bytes */
            if (c >= 0xD800 && c < 0xE000) continue;
            int at = snprintf(text, sizeof text, " a%c\n", c % 95 + 32);
            if (c < 0x80)
                text[at++] = (char)c;
            else if (c < 0x800)
                text[at++] = (char)(0xC0 | c >> 6), text[at++] = (char)(0x80 | (c & 63));
            else if (c < 0x10000) {
                text[at++] = (char)(0xE0 | c >> 12), text[at++] = (char)(0x80 | (c >> 6 & 63));
                text[at++] = (char)(0x80 | (c & 63));
            } else {
                text[at++] = (char)(0xF0 | c >> 18), text[at++] = (char)(0x80 | (c >> 12 & 63));
                text[at++] = (char)(0x80 | (c >> 6 & 63)), text[at++] = (char)(0x80 | (c & 63));
            }
            if (c == 0x2581) continue; /* the mark is a space for those that write spaces so */
            struct tokens k = encode(t, text, (size_t)at);
            check_decoded(t, &k, text, (size_t)at);
            tokens_close(&k);
        }
        tokenizer_close(t);
    }
}

/* Long words and long runs finish in time; a method that is not linear would take minutes. */
Test(tokenizer, long_texts_of_every_shape_are_fast, .timeout = 120)
{
    static const char *const shapes[] = {"a",  " ",  "ab",  "\n",          "1", "\xE6\x97\xA5",
                                         "a ", "! ", " \n", "\xE2\x96\x81"};
    static const char *const names[] = {"gpt2", "llama3", "llama2", "qwen2.gguf", "llama2.gguf"};
    size_t size = 100000;
    char *text = malloc(size + 4);
    for (int n = 0; n < 5; n++) {
        struct tokenizer *t = open_case(names[n]);
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            size_t unit = strlen(shapes[s]), whole = size / unit * unit;
            for (size_t at = 0; at < whole; at += unit)
                memcpy(text + at, shapes[s], unit);
            struct tokens k = encode(t, text, whole);
            cr_assert(k.count > 0);
            if (strcmp(shapes[s], "\xE2\x96\x81") != 0) check_decoded(t, &k, text, whole);
            tokens_close(&k);
        }
        tokenizer_close(t);
    }
    free(text);
}

struct worker {
    const struct tokenizer *t;
    const struct tokens *want;
    bool same;
};
static const char shared_text[] = "the same text for everyone, <|im_end|> 12345 \xF0\x9F\x98\x80!";

static void *work(void *object)
{
    struct worker *w = object;
    w->same = true;
    for (int i = 0; i < 200; i++) {
        struct tokens k = {0};
        if (err_is(tokenizer_encode(&k, w->t, shared_text, sizeof shared_text - 1, true)) ||
            k.count != w->want->count || memcmp(k.id, w->want->id, k.count * sizeof *k.id) != 0)
            w->same = false;
        tokens_close(&k);
    }
    return NULL;
}

Test(tokenizer, threads_share_one)
{
    struct tokenizer *t = open_case("smollm2");
    struct tokens want = encode(t, shared_text, sizeof shared_text - 1);
    struct worker w[4];
    pthread_t thread[4];
    for (int i = 0; i < 4; i++) {
        w[i] = (struct worker){.t = t, .want = &want};
        cr_assert_eq(pthread_create(&thread[i], NULL, work, &w[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        pthread_join(thread[i], NULL);
        cr_assert(w[i].same);
    }
    tokens_close(&want);
    tokenizer_close(t);
}

static void check_refused(const char *json, const char *part)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 32];
    struct tokenizer *t = NULL;
    support_dir_make(dir);
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    if (json) ok(file_write(path, json, strlen(json), true));
    refused(tokenizer_open(&t, dir), ERR_INPUT, part);
    cr_assert_null(t);
    support_dir_remove(dir);
}

Test(tokenizer, refuses_what_it_does_not_know_by_name)
{
    check_refused(NULL, "tokenizer.json");
    check_refused("{", "tokenizer.json");
    check_refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "model WordPiece");
    check_refused("{\"model\":{\"type\":\"WordPiece\",\"vocab\":{}}}", "model WordPiece");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"a b\"]}}",
                  "merges[0]");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0},\"merges\":[\"ab\"]}}",
                  "merges[0]: expected two tokens");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},\"merges\":[]}}",
                  "the id of a");
    check_refused("{\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":99999999},\"merges\":[]}}",
                  "the id of a");
    check_refused("{\"normalizer\":{\"type\":\"Precompiled\"},\"model\":{}}",
                  "normalizer Precompiled");
    check_refused("{\"pre_tokenizer\":{\"type\":\"UnicodeScripts\"},\"model\":{}}",
                  "pre_tokenizer UnicodeScripts");
    check_refused(
        "{\"pre_tokenizer\":{\"type\":\"Split\",\"pattern\":{\"Regex\":\"(\"}},\"model\":{}}",
        "pattern (");
    check_refused("{\"decoder\":{\"type\":\"WordPiece\"},\"model\":{}}", "decoder WordPiece");
}
