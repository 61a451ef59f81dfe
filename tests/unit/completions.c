#include "engine/completions.h"
#include "tests/support/engine_fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

/* A model without a tokenizer of its own writes with the first tokens of one, whose <|im_end|> and
 * </s> end an answer. */
static struct setup s;
static struct tokenizer *tokenizer;
static struct arena arena;

static bool is_right(const char *completion, const char **found)
{
    struct completions done;
    const struct completions_task task = {
        .model = &s.model, .tokenizer = tokenizer, .engine = s.engine, .data = &s.data};
    s.row[0].completion = completion;
    ok(completions_measure(&done, &task, &arena));
    cr_assert_eq(done.asked, 1);
    if (found) *found = done.found[0];
    return done.right == 1;
}

Test(completions, compares_without_white_space_and_ends_of_answers)
{
    static const struct {
        const char *before, *after;
        bool right;
    } cases[] = {
        {"", "", true},
        {" \n", "\n", true},
        {"", "<|im_end|>", true},
        {" ", " <|im_end|>\n", true},
        {"", "<|im_end|><|im_end|>", true},
        {"", "<|im_end|> x", false},
        {"<|im_end|>", "", false},
        {"", "<|im_start|>", false}, /* begins a turn, and ends none */
        {"", "|im_end|>", false},
    };
    struct rng rng;
    char path[SUPPORT_PATH_BYTES], text[1024];
    const char *found = NULL;
    setup_model(&s, "llama");
    setup_engine(&s, DTYPE_F32, 1);
    support_source(path, sizeof path, "tests/golden/tokenizer/smollm2");
    ok(tokenizer_open(&tokenizer, path));
    rng_init(&rng, "test", 4, "completions", 0);
    setup_row(&s, &rng, 8, 4);
    s.row[0].prompt = 4;
    cr_expect_not(is_right("an answer that it does not give", &found));
    cr_assert_gt(strlen(found), 0, "the model ends at once; use another row");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        snprintf(text, sizeof text, "%s%s%s", cases[i].before, found, cases[i].after);
        cr_expect_eq(is_right(text, NULL), cases[i].right, "\"%s\", found \"%s\"", text, found);
    }
    arena_close(&arena);
    tokenizer_close(tokenizer);
    setup_close(&s);
}
