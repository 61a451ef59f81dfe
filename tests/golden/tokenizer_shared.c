/* Tokenizers against published ids: llama.cpp's vocabularies and the golden texts of a real model,
 * in the shared data. A test is skipped if its data is missing. */
#include "base/file.h"
#include "engine/tokens/tokenizer.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"

static char *read_shared(const char *name)
{
    char path[1024], *text;
    size_t size;
    (void)snprintf(path, sizeof path, "%s/../shared/data/%s", FEDLORA_SOURCE_DIR, name);
    if (!file_exists(path)) cr_skip_test("%s is missing", path);
    err e = file_read_all(&text, &size, path, 1 << 20);
    cr_assert(!err_is(e), "%s", e.text);
    return text;
}

/* Every text of NAME.inp has the ids of the same line of NAME.out. */
static void check_vocabulary(const char *name)
{
    char file[256], path[1024];
    (void)snprintf(file, sizeof file, "ggml-vocab/ggml-vocab-%s.gguf.inp", name);
    char *texts = read_shared(file);
    (void)snprintf(file, sizeof file, "ggml-vocab/ggml-vocab-%s.gguf.out", name);
    char *ids = read_shared(file), *line = ids, *text = texts;
    (void)snprintf(path, sizeof path, "%s/../shared/data/ggml-vocab/ggml-vocab-%s.gguf",
                   FEDLORA_SOURCE_DIR, name);
    struct tokenizer *t;
    struct tokens got = {0};
    err e = tokenizer_open(&t, path);
    cr_assert(!err_is(e), "%s", e.text);
    int count = 0;
    for (bool last = false; !last; count++) {
        char *end = strstr(text, SEPARATOR);
        last = !end;
        size_t size = end ? (size_t)(end - text) : strlen(text);
        tokens_clear(&got);
        e = tokenizer_encode(&got, t, text, size, false);
        cr_assert(!err_is(e), "%s", e.text);
        char *at = line;
        for (size_t i = 0; i < got.count; i++)
            cr_assert_eq(strtol(at, &at, 10), got.id[i], "%s: text %d, token %zu", name, count, i);
        while (*at == ' ')
            at++;
        cr_assert(*at == '\n' || (last && !*at), "%s: text %d has more tokens", name, count);
        line = *at ? at + 1 : at;
        text = end ? end + strlen(SEPARATOR) : NULL;
    }
    cr_assert_geq(count, 46);
    tokens_close(&got);
    tokenizer_close(t);
    free(texts);
    free(ids);
}

Test(tokenizer_shared, gpt2_vocabulary_gives_the_published_ids)
{
    check_vocabulary("gpt-2");
}
Test(tokenizer_shared, starcoder_vocabulary_gives_the_published_ids)
{
    check_vocabulary("starcoder");
}
Test(tokenizer_shared, llama_spm_vocabulary_gives_the_published_ids)
{
    check_vocabulary("llama-spm");
}
