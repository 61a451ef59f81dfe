/* Damaged files: opening ends in an error or in a tokenizer that encodes and decodes. The files are
 * small mutations of good ones, from a printed seed. */
#include "base/file.h"
#include "base/rng.h"
#include "engine/tokens/tokenizer.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROUNDS = 250 };

static const char *const pieces[] = {
    "null",
    "true",
    "-1",
    "1e9",
    "99999999999",
    "\"\"",
    "[]",
    "{}",
    "\"\\u0120\"",
    "\"<0x00>\"",
    "\"type\":\"Sequence\"",
    "\"type\":\"Metaspace\"",
    "\"(?=\"",
    "\"\\\\p{L}*\"",
    "\"id\":2097151",
    "\xC4\xA0",
    "\xFF",
    "\"normalized\":true",
    "\"lstrip\":true",
    "\"single_word\":true",
};

/* Some bytes are changed, removed, repeated, or replaced by text with a meaning in JSON. */
static void mutate(struct bytes *out, const char *text, size_t size, struct rng *rng)
{
    size_t at = rng_below(rng, size), length = rng_below(rng, 40), end;
    const char *piece = pieces[rng_below(rng, sizeof pieces / sizeof *pieces)];
    end = at + length < size ? at + length : size;
    bytes_clear(out);
    ok(bytes_append(out, text, at));
    switch (rng_below(rng, 4)) {
    case 0:
        break;
    case 1:
        ok(bytes_append(out, piece, strlen(piece)));
        break;
    case 2:
        ok(bytes_append(out, text + at, end - at));
        end = at;
        break;
    default:
        for (size_t i = at; i < end; i++) {
            uint8_t byte = rng_below(rng, 8) ? (uint8_t)text[i] : (uint8_t)rng_u32(rng);
            ok(bytes_append(out, &byte, 1));
        }
    }
    ok(bytes_append(out, text + end, size - end));
}

static void use(const struct tokenizer *t)
{
    static const char text[] =
        " The cat's 12345 <|im_end|> caf\xC3\xA9\n\n\t\xF0\x9F\x98\x80 <s>\xE2\x96\x81x \xFF";
    struct tokens k = {0};
    struct bytes out = {.max = 1 << 20};
    for (int special = 0; special < 2; special++)
        if (!err_is(tokenizer_encode(&k, t, text, sizeof text - 1, special)))
            for (size_t i = 0; i < k.count; i++) {
                cr_assert(k.id[i] >= 0 && (size_t)k.id[i] < tokenizer_vocab(t));
                cr_assert(k.start[i] < sizeof text - 1);
            }
    ok(tokenizer_decode(&out, t, k.id, k.count, true));
    tokens_close(&k);
    bytes_close(&out);
}

static void run(const char *source, const char *file, uint64_t seed)
{
    char from[SUPPORT_PATH_BYTES], dir[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES + 32], *text;
    struct bytes changed = {.max = 1 << 20};
    struct rng rng;
    size_t size, opened = 0;
    support_source(from, sizeof from, source);
    support_dir_make(dir);
    (void)snprintf(to, sizeof to, "%s/%s", dir, file);
    ok(file_read_all(&text, &size, from, 1 << 20));
    for (uint64_t i = 0; i < ROUNDS; i++) {
        struct tokenizer *t = NULL;
        rng_init(&rng, "mutate", seed, source, i);
        mutate(&changed, text, size, &rng);
        ok(file_write(to, changed.data, changed.size, true));
        err e = tokenizer_open(&t, strcmp(file, "tokenizer.json") == 0 ? dir : to);
        cr_assert(err_is(e) == !t && e.kind != ERR_MACHINE, "seed %llu round %llu: %s",
                  (unsigned long long)seed, (unsigned long long)i, e.text);
        if (t) use(t), opened++;
        tokenizer_close(t);
    }
    cr_assert(opened > 0, "seed %llu: nothing could be opened", (unsigned long long)seed);
    bytes_close(&changed);
    free(text);
    support_dir_remove(dir);
}

static uint64_t seed_of_run(void)
{
    const char *text = getenv("FEDLORA_SEED");
    uint64_t seed = text ? strtoull(text, NULL, 10) : 1;
    printf("seed %llu\n", (unsigned long long)seed);
    return seed;
}

Test(vocab_hf, changed_byte_level_files_are_refused_or_work, .timeout = 120)
{
    run("tests/golden/tokenizer/llama3/tokenizer.json", "tokenizer.json", seed_of_run());
}
Test(vocab_hf, changed_byte_fallback_files_are_refused_or_work, .timeout = 120)
{
    run("tests/golden/tokenizer/llama2/tokenizer.json", "tokenizer.json", seed_of_run());
}
Test(vocab_hf, changed_gguf_byte_level_files_are_refused_or_work, .timeout = 120)
{
    run("tests/golden/tokenizer/smollm2.gguf", "model.gguf", seed_of_run());
}
Test(vocab_hf, changed_gguf_sentencepiece_files_are_refused_or_work, .timeout = 120)
{
    run("tests/golden/tokenizer/llama2.gguf", "model.gguf", seed_of_run());
}

Test(vocab_hf, a_directory_with_another_form_of_tokenizer_is_refused_with_the_remedy)
{
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    struct tokenizer *t = NULL;
    support_dir_make(dir);
    refused(tokenizer_open(&t, dir), ERR_INPUT, "tokenizer.json");
    ok(file_join(path, sizeof path, dir, "tokenizer.model"));
    ok(file_write(path, "x", 1, false));
    refused(tokenizer_open(&t, dir), ERR_INPUT, "tokenizer.model: expected tokenizer.json beside");
    support_dir_remove(dir);
}
