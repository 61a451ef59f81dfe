/* An untrusted tokenizer.json is refused, or every text has tokens of its vocabulary at places of
 * the text, and every list of tokens has a text in UTF-8. */
#include "engine/tokens/tokenizer.h"
#include "base/text.h"
#include "tests/fuzz/folder.h"
#include "tests/fuzz/fuzz.h"

#include <string.h>

const char *const fuzz_seeds[] = {
    "tests/golden/tokenizer/gpt2/tokenizer.json",   "tests/golden/tokenizer/llama2/tokenizer.json",
    "tests/golden/tokenizer/llama3/tokenizer.json", "tests/golden/tokenizer/mistral/tokenizer.json",
    "tests/golden/tokenizer/qwen2/tokenizer.json",  "tests/fuzz/seeds/tokenizer.json",
    "tests/fuzz/seeds/tokenizer_unigram.json",      NULL};
const int fuzz_runs = 120;

static void check_text(const struct tokenizer *t, const char *text, bool special)
{
    struct tokens tokens = {0};
    struct bytes again = {.max = 1 << 20};
    size_t size = strlen(text);
    err e = tokenizer_encode(&tokens, t, text, size, special);
    if (err_is(e)) {
        if (tokens.count) abort();
        goto out;
    }
    for (size_t i = 0; i < tokens.count; i++) {
        if (tokens.id[i] < 0 || (size_t)tokens.id[i] >= tokenizer_vocab(t)) abort();
        if (tokens.start[i] > size) abort(); /* not always in order: bpe.c, unknown tokens */
    }
    e = tokenizer_decode(&again, t, tokens.id, tokens.count, true);
    if (err_is(e) && e.kind != ERR_LIMIT) abort();
    if (again.size && !text_is_utf8((const char *)again.data, again.size)) abort();
out:
    tokens_close(&tokens);
    bytes_close(&again);
}

static void check_ids(const struct tokenizer *t)
{
    struct tokenizer_stream s = {.tokenizer = t, .start = true, .special = true};
    struct bytes text = {.max = 1 << 20};
    for (int32_t id = -2; id < 400; id++) {
        err e = tokenizer_stream_add(&text, &s, id);
        bool known = id >= 0 && (size_t)id < tokenizer_vocab(t);
        if (known == (e.kind == ERR_INPUT)) abort();
        (void)tokenizer_ends(t, id);
    }
    (void)tokenizer_stream_end(&text, &s).kind;
    if (text.size && !text_is_utf8((const char *)text.data, text.size)) abort();
    bytes_close(&text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char *const texts[] = {
        "", "The nurse's 12 notes:\n\n  caf\303\251 \360\237\231\202!",
        "<|im_start|>user\n<s>[INST] x</s>", "\377\376 a\t\r\n   b\302\240c 1234567 I'LL"};
    struct tokenizer *t = NULL;
    if (folder_begin()) {
        static const char config[] = "{\"bos_token\":\"<s>\",\"eos_token\":\"</s>\"}";
        folder_put("tokenizer_config.json", config, sizeof config - 1);
    }
    folder_put("tokenizer.json", data, size);
    if (err_is(tokenizer_open(&t, folder))) return 0;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        check_text(t, texts[i], false);
        check_text(t, texts[i], true);
    }
    check_ids(t);
    tokenizer_close(t);
    return 0;
}
