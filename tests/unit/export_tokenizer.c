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
