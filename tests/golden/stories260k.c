/* The tokenizer, the engine and generation with a real, tiny model, stories260K of llama2.c, which
 * tests/stories260k/convert.py converted. The results are compared with the reference program and
 * PyTorch. */
#include "base/json.h"
#include "engine/engine.h"
#include "engine/generate.h"
#include "engine/tokens/tokenizer.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

enum { VOCAB = 512, POSITIONS = 512, GREEDY = 256, BOS = 1 };

struct stories {
    char dir[SUPPORT_PATH_BYTES];
    struct model model;
    struct engine *engine;
    struct tokenizer *tokenizer;
};

static void stories_open(struct stories *s)
{
    char script[SUPPORT_PATH_BYTES], data[SUPPORT_PATH_BYTES], command[4 * SUPPORT_PATH_BYTES + 64];
    *s = (struct stories){0};
    support_shared(data, sizeof data, "data/stories260k");
    support_source(script, sizeof script, "tests/stories260k/convert.py");
    support_dir_make(s->dir);
    (void)snprintf(command, sizeof command,
                   "python3 '%s' '%s/stories260K.bin' '%s/tok512.bin' '%s'", script, data, data,
                   s->dir);
    int status = system(command);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 127) cr_skip_test("no python3");
    cr_assert_eq(status, 0, "%s", command);
    ok(model_open(&s->model, s->dir));
    ok(engine_open(
        &s->engine, &s->model,
        &(struct engine_options){.device = "cpu", .precision = DTYPE_F32, .threads = 1}));
    ok(tokenizer_open(&s->tokenizer, s->dir));
}

static void stories_close(struct stories *s)
{
    tokenizer_close(s->tokenizer);
    engine_close(s->engine);
    model_close(&s->model);
    support_dir_remove(s->dir);
}

static void *read_shared(size_t *size, const char *name)
{
    char path[SUPPORT_PATH_BYTES];
    char *text;
    support_shared(path, sizeof path, name);
    ok(file_read_all(&text, size, path, 16 << 20));
    return text;
}

Test(stories260k, logits_are_those_of_the_reference_program)
{
    struct stories s;
    size_t size, rows = 0;
    int32_t id[16];
    static float wanted[16][VOCAB], got[16][VOCAB];
    char *rest = NULL, *text = read_shared(&size, "data/stories260k/golden_logits_first16.jsonl");
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        json_t *row;
        ok(json_parse(&row, line, strlen(line), "golden_logits_first16.jsonl"));
        id[rows] = (int32_t)json_integer_value(json_object_get(row, "token"));
        for (size_t i = 0; i < VOCAB; i++)
            wanted[rows][i] =
                (float)json_number_value(json_array_get(json_object_get(row, "logits"), i));
        json_decref(row);
        cr_assert_leq(++rows, 16);
    }
    free(text);
    stories_open(&s);
    ok(engine_logits(&got[0][0], s.engine,
                     &(struct engine_row){.id = id, .count = (uint32_t)rows}));
    /* the file has six digits */
    double distance = support_distance_max(&got[0][0], &wanted[0][0], rows * VOCAB);
    cr_assert(distance < 1e-5, "%g", distance);
    stories_close(&s);
}

Test(stories260k, greedy_text_is_that_of_the_reference_program)
{
    struct stories s;
    size_t size;
    int32_t out[GREEDY];
    uint32_t count;
    struct bytes text = {.max = 1 << 16};
    char *wanted = read_shared(&size, "data/stories260k/golden_greedy256.txt");
    stories_open(&s);
    const struct generate_prompt prompt = {.id = &(int32_t){BOS}, .count = 1};
    ok(generate_one(out, &count, s.engine, NULL, &prompt,
                    &(struct generate_options){.tokens = GREEDY}));
    cr_assert_eq(count, GREEDY);
    ok(tokenizer_decode(&text, s.tokenizer, out, count, false));
    while (size > 0 && wanted[size - 1] == '\n')
        size--;
    cr_assert_geq(text.size, size);
    cr_assert_eq(memcmp(text.data, wanted, size), 0, "%s", (const char *)text.data);
    bytes_close(&text);
    free(wanted);
    stories_close(&s);
}

Test(stories260k, the_loss_of_real_stories_is_pytorchs)
{
    /* transformers in float64: the first 40 stories, bos and at most 511 tokens each */
    const double wanted = 1.245085164;
    enum { STORIES = 40, TOKENS = 12571 };
    static const char between[] = "<|endoftext|>";
    struct stories s;
    size_t size, learned = 0;
    double sum = 0;
    char *text = read_shared(&size, "data/tinystories/sample.txt"), *story = text;
    stories_open(&s);
    for (int i = 0; i < STORIES; i++) {
        struct tokens tokens = {0};
        double nll;
        int32_t id[POSITIONS] = {BOS};
        char *end = strstr(story, between);
        cr_assert_not_null(end);
        char *first = story + strspn(story, " \n"), *last = end;
        while (last > first && strchr(" \n", last[-1]))
            last--;
        ok(tokenizer_encode(&tokens, s.tokenizer, first, (size_t)(last - first), true));
        uint32_t count = tokens.count < POSITIONS ? (uint32_t)tokens.count : POSITIONS - 1;
        memcpy(id + 1, tokens.id, count * sizeof *id);
        const struct engine_row row = {.id = id, .label = id, .count = count + 1};
        ok(engine_nll(&nll, s.engine, &row, 1));
        sum += nll;
        learned += count;
        tokens_close(&tokens);
        story = end + sizeof between - 1;
    }
    cr_assert_eq(learned, TOKENS, "%zu", learned);
    cr_assert(fabs(sum / TOKENS - wanted) < 1e-5, "%.9f", sum / TOKENS);
    free(text);
    stories_close(&s);
}
