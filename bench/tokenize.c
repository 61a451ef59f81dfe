/* Measures tokenizers: the seconds to open one, and its tokens per second over a text as one piece
 * and line by line. With --chats it measures conversations of about 500 tokens instead: the
 * processor time to tokenise their texts, and to render and tokenise them with the learned parts.
 *
 *   bench_tokenize TEXT BASE...
 *   bench_tokenize --chats COUNT TEXT BASE TEMPLATE...
 *
 * TEMPLATE is a name or a file, as with --template of fedlora; "-" is the one of the base. */
#include "base/file.h"
#include "base/text.h"
#include "engine/tokens/chat.h"
#include "engine/tokens/tokenizer.h"

#include <jansson.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TEXT_BYTES_MAX = 1 << 30, REPEATS = 3 };
enum { CHATS = 256, TURNS = 6, TURN_BYTES = 250 }; /* different ones; about 500 tokens each */

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

/* Conversations of three questions and three answers, whose contents follow each other in the text.
 * It must be ASCII, so that it can be cut anywhere. */
static err make_chats(json_t *out[CHATS], const char *text, size_t size)
{
    static const char *const roles[] = {"user", "assistant"};
    if (size < (size_t)CHATS * TURNS * TURN_BYTES)
        return err_make(ERR_INPUT, "the text has %zu bytes, expected at least %d", size,
                        CHATS * TURNS * TURN_BYTES);
    for (int i = 0; i < CHATS; i++) {
        out[i] = json_array();
        for (int k = 0; k < TURNS; k++, text += TURN_BYTES) {
            json_t *m =
                json_pack("{s:s, s:s%}", "role", roles[k % 2], "content", text, (size_t)TURN_BYTES);
            if (!m || json_array_append_new(out[i], m) != 0)
                return err_make(ERR_INPUT, "the text is not ASCII");
        }
    }
    return ERR_NONE;
}

struct chats { /* what one measurement uses again for each conversation */
    struct tokens tokens;
    struct chat_spans spans;
    struct bytes text;
    size_t count, learned; /* tokens; bytes in spans */
};

/* Renders (with `c`) and tokenises one conversation; without `c` its text is there already. */
static err one_chat(struct chats *w, const struct tokenizer *t, const struct chat *c,
                    const json_t *messages, const struct bytes *rendered)
{
    const struct chat_input input = {.messages = messages};
    if (c) {
        bytes_clear(&w->text);
        w->spans.count = 0;
        TRY(chat_render(&w->text, &w->spans, c, &input));
        rendered = &w->text;
        for (size_t i = 0; i < w->spans.count; i++)
            w->learned += w->spans.span[i].end - w->spans.span[i].begin;
    }
    tokens_clear(&w->tokens);
    TRY(tokenizer_encode(&w->tokens, t, (const char *)rendered->data, rendered->size, true));
    w->count += w->tokens.count;
    return ERR_NONE;
}

/* Processor time, because other work on the machine would distort the ratio. */
static double seconds(void)
{
    struct timespec now;
    (void)clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

/* Processor seconds for `count` conversations. */
static err measure_chats(double *out, struct chats *w, const struct tokenizer *t,
                         const struct chat *c, json_t *const messages[CHATS],
                         const struct bytes rendered[CHATS], size_t count)
{
    w->count = w->learned = 0;
    double start = seconds();
    for (size_t i = 0; i < count; i++)
        TRY(one_chat(w, t, c, messages[i % CHATS], &rendered[i % CHATS]));
    *out = seconds() - start;
    return ERR_NONE;
}

static err run_chats(const char *base, const char *choice, json_t *const messages[CHATS],
                     size_t count)
{
    struct tokenizer *t = NULL;
    struct chat *c = NULL;
    struct bytes rendered[CHATS] = {0};
    struct chats w = {.text = {.max = 1 << 20}};
    double alone, both;
    err e;
    TRY(tokenizer_open(&t, base));
    TRY_OUT(e, chat_open(&c, t, strcmp(choice, "-") == 0 ? NULL : choice));
    for (int i = 0; i < CHATS; i++) {
        const struct chat_input input = {.messages = messages[i]};
        rendered[i].max = 1 << 20;
        TRY_OUT(e, chat_render(&rendered[i], NULL, c, &input));
    }
    TRY_OUT(e, measure_chats(&alone, &w, t, NULL, messages, rendered, CHATS)); /* warms up */
    TRY_OUT(e, measure_chats(&alone, &w, t, NULL, messages, rendered, count));
    TRY_OUT(e, measure_chats(&both, &w, t, c, messages, rendered, count));
    printf("| %-34s | %5.1f | %4.0f %% | %7.2f s | %7.2f s | %5.2f |\n", choice,
           (double)w.count / (double)count,
           100.0 * (double)w.learned / (double)(count * TURNS * TURN_BYTES), alone, both,
           both / alone);
out:
    for (int i = 0; i < CHATS; i++)
        bytes_close(&rendered[i]);
    bytes_close(&w.text);
    chat_spans_close(&w.spans);
    tokens_close(&w.tokens);
    chat_close(c);
    tokenizer_close(t);
    return e;
}

/* --chats COUNT TEXT BASE TEMPLATE... */
static err chats(int argc, char **argv)
{
    char *text = NULL;
    size_t size, count = strtoul(argv[2], NULL, 10);
    json_t *messages[CHATS] = {0};
    err e;
    TRY(file_read_all(&text, &size, argv[3], TEXT_BYTES_MAX));
    TRY_OUT(e, make_chats(messages, text, size));
    printf("%zu conversations\n\n"
           "| template | tokens each | learned | tokenise | render, tokenise | ratio |\n"
           "|---|---|---|---|---|---|\n",
           count);
    for (int i = 5; i < argc && !err_is(e); i++)
        e = run_chats(argv[4], argv[i], messages, count);
out:
    for (int i = 0; i < CHATS; i++)
        json_decref(messages[i]);
    free(text);
    return e;
}

static err texts(int argc, char **argv)
{
    char *text = NULL;
    size_t size;
    TRY(file_read_all(&text, &size, argv[1], TEXT_BYTES_MAX));
    err e = ERR_NONE;
    printf(
        "| base | opened in | tokens, whole | tokens, by lines | kind |\n|---|---|---|---|---|\n");
    for (int i = 2; i < argc && !err_is(e); i++)
        e = run(argv[i], text, size);
    free(text);
    return e;
}

int main(int argc, char **argv)
{
    bool with_chats = argc > 1 && strcmp(argv[1], "--chats") == 0;
    if (argc < (with_chats ? 6 : 3)) {
        (void)fprintf(stderr, "usage: bench_tokenize TEXT BASE...\n"
                              "       bench_tokenize --chats COUNT TEXT BASE TEMPLATE...\n");
        return 2;
    }
    err e = with_chats ? chats(argc, argv) : texts(argc, argv);
    if (err_is(e)) (void)fprintf(stderr, "bench_tokenize: %s\n", e.text);
    return err_exit_code(e);
}
