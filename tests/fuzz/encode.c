/* Any bytes as text, for every kind of tokenizer: ids must lie in the vocabulary and offsets in
 * the text, and valid UTF-8 must come back unchanged from decoding. */
#include "base/text.h"
#include "engine/tokens/tokenizer.h"
#include "tests/fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"README.md", "tests/golden/tokenizer/make.py",
                                  "tests/golden/tokenizer/llama2/tokenizer.json", NULL};
const int fuzz_runs = 60;

enum { KINDS = 6, TEXT_BYTES_MAX = 20000 };
static const struct {
    const char *name;
    bool returns; /* decoding gives the text back */
} kinds[KINDS] = {{"gpt2", true},   {"llama3", true},      {"qwen2", false} /* NFC */,
                  {"llama2", true}, {"llama3.gguf", true}, {"llama2.gguf", true}};
static struct tokenizer *opened[KINDS];

static void close_all(void)
{
    for (int i = 0; i < KINDS; i++)
        tokenizer_close(opened[i]);
}

static void open_all(void)
{
    char path[1024];
    for (int i = 0; i < KINDS; i++) {
        (void)snprintf(path, sizeof path, "%s/tests/golden/tokenizer/%s", FEDLORA_SOURCE_DIR,
                       kinds[i].name);
        if (err_is(tokenizer_open(&opened[i], path))) abort();
    }
    atexit(close_all);
}

static void check(const struct tokenizer *t, const char *text, size_t size, bool returns)
{
    struct tokens k = {0};
    struct bytes back = {.max = 1 << 20};
    if (err_is(tokenizer_encode(&k, t, text, size, false))) abort();
    for (size_t i = 0; i < k.count; i++) {
        if (k.id[i] < 0 || (size_t)k.id[i] >= tokenizer_vocab(t)) abort();
        if (k.start[i] >= size || (i > 0 && k.start[i] < k.start[i - 1])) abort();
    }
    if (err_is(tokenizer_decode(&back, t, k.id, k.count, true))) abort();
    if (!text_is_utf8(back.data ? (char *)back.data : "", back.size)) abort();
    bool mark = memmem(text, size, "\xE2\x96\x81", 3) != NULL; /* some write a space so */
    if (returns && !mark && text_is_utf8(text, size) &&
        (back.size != size || (size && memcmp(back.data, text, size) != 0)))
        abort();
    tokens_close(&k);
    bytes_close(&back);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (!opened[0]) open_all();
    if (size > TEXT_BYTES_MAX) size = TEXT_BYTES_MAX;
    for (int i = 0; i < KINDS; i++)
        check(opened[i], (const char *)data, size, kinds[i].returns);
    return 0;
}
