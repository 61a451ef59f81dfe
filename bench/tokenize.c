/* Measures tokenizers: the seconds to open one, and its tokens per second over a text as one piece
 * and line by line.
 *
 *   bench_tokenize TEXT BASE... */
#include "base/file.h"
#include "base/text.h"
#include "engine/tokens/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_BYTES_MAX = 1 << 30, REPEATS = 3 };

static err encode_lines(struct tokens *out, const struct tokenizer *t, const char *text,
                        size_t size)
{
    for (size_t at = 0; at < size;) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t line = end ? (size_t)(end - text) - at : size - at;
        TRY(tokenizer_encode(out, t, text + at, line, true));
        at += line + 1;
    }
    return ERR_NONE;
}

/* Millions of tokens per second, the best of several runs. */
static err measure(double *out, const struct tokenizer *t, const char *text, size_t size,
                   bool lines)
{
    struct tokens k = {0};
    double best = 0;
    for (int i = 0; i < REPEATS; i++) {
        tokens_clear(&k);
        uint64_t start = text_now_ms();
        err e = lines ? encode_lines(&k, t, text, size) : tokenizer_encode(&k, t, text, size, true);
        double ms = (double)(text_now_ms() - start);
        if (err_is(e)) return tokens_close(&k), e;
        double rate = (double)k.count / (ms > 0 ? ms : 1) / 1e3;
        if (rate > best) best = rate;
    }
    tokens_close(&k);
    *out = best;
    return ERR_NONE;
}

static err run(const char *base, const char *text, size_t size)
{
    struct tokenizer *t = NULL;
    double whole = 0, lines = 0;
    uint64_t start = text_now_ms();
    TRY(tokenizer_open(&t, base));
    uint64_t opened = text_now_ms() - start;
    err e = measure(&whole, t, text, size, false);
    if (!err_is(e)) e = measure(&lines, t, text, size, true);
    if (!err_is(e))
        printf("| %-48s | %6llu ms | %5.2f M/s | %5.2f M/s | %s |\n", base,
               (unsigned long long)opened, whole, lines, tokenizer_kind(t));
    tokenizer_close(t);
    return e;
}

int main(int argc, char **argv)
{
    char *text = NULL;
    size_t size;
    if (argc < 3) {
        (void)fprintf(stderr, "usage: bench_tokenize TEXT BASE...\n");
        return 2;
    }
    err e = file_read_all(&text, &size, argv[1], TEXT_BYTES_MAX);
    printf(
        "| base | opened in | tokens, whole | tokens, by lines | kind |\n|---|---|---|---|---|\n");
    for (int i = 2; i < argc && !err_is(e); i++)
        e = run(argv[i], text, size);
    if (err_is(e)) (void)fprintf(stderr, "bench_tokenize: %s\n", e.text);
    free(text);
    return err_exit_code(e);
}
