/* Prompts and completions as tokens, and tokens that a text has already. */
#include "base/file.h"
#include "base/json.h"
#include "engine/tokens/data.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];

static void setup(void)
{
    support_dir_make(dir);
    (void)snprintf(path, sizeof path, "%s/rows.jsonl", dir);
}
static void teardown(void)
{
    support_dir_remove(dir);
}
TestSuite(data_text, .init = setup, .fini = teardown);

static struct tokenizer *open_base(const char *name)
{
    char part[64], base[SUPPORT_PATH_BYTES];
    struct tokenizer *t;
    (void)snprintf(part, sizeof part, "tests/golden/tokenizer/%s", name);
    support_source(base, sizeof base, part);
    ok(tokenizer_open(&t, base));
    return t;
}

static err read_rows(struct dataset *out, const char *text, const struct data_options *o)
{
    ok(file_write(path, text, strlen(text), true));
    return data_open(out, path, o);
}

/* From tests/golden/make_boundary.py, by Hugging Face tokenizers. */
static const struct boundary {
    const char *tokenizer, *prompt, *completion;
    int32_t merged[8], apart[8];
    uint32_t merged_count, apart_count, prompt_count;
    bool joined;
} boundaries[] = {
    /* clang-format off */
    {"smollm2", "it is ", "the end", {276, 338, 270, 335, 271},
     {276, 338, 224, 87, 261, 335, 271}, 5, 7, 3, true},
    {"smollm2", "one wo", "rd", {291, 72, 266, 345}, {291, 72, 266, 82, 85, 71}, 4, 6, 4, true},
    {"llama2", "it is ", "the end", {430, 407, 329, 402, 330},
     {430, 407, 318, 311, 320, 402, 330}, 5, 7, 3, true},
    {"llama2", "one wo", "rd", {446, 296, 325, 417}, {446, 296, 325, 306, 309, 295}, 4, 6, 4, true},
    {"llama2", "it is", " so", {430, 407, 443}, {430, 407, 443}, 3, 3, 2, false},
    /* clang-format on */
};

Test(data_text, a_prompt_and_its_completion_are_one_text_or_two)
{
    for (size_t i = 0; i < sizeof boundaries / sizeof *boundaries; i++) {
        const struct boundary *b = &boundaries[i];
        struct tokenizer *t = open_base(b->tokenizer);
        struct dataset merged, apart;
        char text[128];
        (void)snprintf(text, sizeof text,
                       "{\"text\":\"a\"}\n{\"prompt\":\"%s\",\"completion\":\"%s\"}\n", b->prompt,
                       b->completion);
        ok(read_rows(&merged, text, &(struct data_options){.tokenizer = t, .no_eos = true}));
        ok(read_rows(&apart, text,
                     &(struct data_options){.tokenizer = t, .no_eos = true, .split = true}));
        const struct data_row *m = &merged.row[1], *a = &apart.row[1];
        cr_assert_eq(m->count, b->merged_count, "%s", text);
        cr_assert_arr_eq(m->id, b->merged, m->count * sizeof *m->id, "%s", text);
        cr_assert_eq(a->count, b->apart_count, "%s: %u", text, a->count);
        cr_assert_arr_eq(a->id, b->apart, a->count * sizeof *a->id, "%s", text);
        cr_assert_eq(a->prompt, b->prompt_count);
        cr_assert_eq(a->learned, b->apart_count - b->prompt_count);
        cr_assert_eq(merged.joined.rows, b->joined, "%s", text);
        cr_assert_eq(merged.joined.line, b->joined ? 2 : 0);
        cr_assert_eq(apart.joined.rows, 0);
        data_close(&merged);
        data_close(&apart);
        tokenizer_close(t);
    }
}

/* A tokenizer that drops white space between words. */
static struct tokenizer *open_spaceless(void)
{
    char from[SUPPORT_PATH_BYTES], to[SUPPORT_PATH_BYTES + 32];
    json_t *base;
    struct tokenizer *t;
    support_source(from, sizeof from, "tests/golden/tokenizer/smollm2/tokenizer.json");
    ok(json_open(&base, from, 1 << 20));
    json_object_set_new(base, "pre_tokenizer",
                        json_pack("{s:s, s:[{s:s}, {s:s, s:b, s:b, s:b}]}", "type", "Sequence",
                                  "pretokenizers", "type", "WhitespaceSplit", "type", "ByteLevel",
                                  "add_prefix_space", 0, "trim_offsets", 1, "use_regex", 0));
    (void)snprintf(to, sizeof to, "%s/tokenizer.json", dir);
    cr_assert_eq(json_dump_file(base, to, 0), 0);
    json_decref(base);
    ok(tokenizer_open(&t, dir));
    return t;
}

Test(data_text, dropped_white_space_joins_nothing)
{
    struct tokenizer *t = open_spaceless();
    struct dataset d;
    ok(read_rows(&d,
                 "{\"prompt\":\"it is\",\"completion\":\"  the end\"}\n"
                 "{\"prompt\":\"it is \",\"completion\":\"the end\"}\n"
                 "{\"prompt\":\"one wo\",\"completion\":\"rd\"}\n",
                 &(struct data_options){.tokenizer = t, .no_eos = true}));
    cr_assert_eq(d.joined.rows, 1);
    cr_assert_eq(d.joined.line, 3);
    cr_assert_eq(d.row[0].learned, d.row[1].learned);
    cr_assert(d.row[0].learned > 0);
    data_close(&d);
    tokenizer_close(t);
}

Test(data_text, the_end_token_is_learned_once)
{
    static const char rows[] = "{\"prompt\":\"one\",\"completion\":\" two\"}\n"
                               "{\"prompt\":\"one\",\"completion\":\" two<|im_end|>\"}\n"
                               "{\"text\":\"one two<|im_end|>\\n\"}\n"
                               "{\"text\":\"one<|im_end|>two\"}\n";
    struct tokenizer *t = open_base("smollm2");
    struct dataset d;
    ok(read_rows(&d, rows, &(struct data_options){.tokenizer = t}));
    cr_assert_eq(d.row[1].count, d.row[0].count);
    cr_assert_arr_eq(d.row[1].id, d.row[0].id, d.row[0].count * sizeof(int32_t));
    cr_assert_arr_eq(d.row[1].label, d.row[0].label, d.row[0].count * sizeof(int32_t));
    cr_assert_neq(d.row[2].id[d.row[2].count - 1], tokenizer_eos(t), "after the line break");
    cr_assert_eq(d.row[3].id[d.row[3].count - 1], tokenizer_eos(t), "an end inside is no end");
    cr_assert_eq(d.has_eos.rows, 2);
    cr_assert_eq(d.has_eos.line, 2);
    data_close(&d);
    tokenizer_close(t);
}

Test(data_text, the_first_token_is_put_once)
{
    static const char rows[] = "{\"text\":\"it is\"}\n{\"text\":\"<s>it is\"}\n"
                               "{\"prompt\":\"<s>it\",\"completion\":\" is\"}\n";
    struct tokenizer *t = open_base("llama2");
    struct dataset d;
    ok(read_rows(&d, rows, &(struct data_options){.tokenizer = t, .bos = true}));
    for (int i = 0; i < 3; i++) {
        cr_assert_eq(d.row[i].id[0], tokenizer_bos(t), "%d", i);
        cr_assert_neq(d.row[i].id[1], tokenizer_bos(t), "%d", i);
        cr_assert_eq(d.row[i].count, d.row[0].count, "%d", i);
    }
    cr_assert_eq(d.has_bos.rows, 2);
    cr_assert_eq(d.has_bos.line, 2);
    cr_assert_eq(d.row[0].label[0], DATA_IGNORE, "our own token is not learned");
    data_close(&d);
    tokenizer_close(t);
}

/* The prompts are those of the data set that Stanford published, word for word. */
Test(data_text, alpaca_has_the_prompts_of_stanford)
{
    static const char rows[] =
        "{\"instruction\":\"Say it.\",\"input\":\"\",\"output\":\"Yes.\",\"text\":\"x\"}\n"
        "{\"instruction\":\"Say it.\",\"input\":\"word\",\"output\":\"Yes.\",\"history\":[]}\n"
        "{\"instruction\":\"Say it.\",\"input\":null,\"output\":\"Yes.\",\"prompt\":\"x\"}\n";
    static const char *const prompts[] = {
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.\n\n### Instruction:\nSay it.\n\n### Response:\n",
        "Below is an instruction that describes a task, paired with an input that provides further "
        "context. Write a response that appropriately completes the request.\n\n### "
        "Instruction:\nSay it.\n\n### Input:\nword\n\n### Response:\n"};
    struct tokenizer *t = open_base("smollm2");
    struct dataset d;
    ok(read_rows(&d, rows, &(struct data_options){.tokenizer = t}));
    for (size_t i = 0; i < 3; i++) {
        struct bytes text = {.max = 4096};
        ok(tokenizer_decode(&text, t, d.row[i].id, d.row[i].prompt, true));
        cr_assert_str_eq((char *)text.data, prompts[i % 2]);
        bytes_clear(&text);
        ok(tokenizer_decode(&text, t, d.row[i].id + d.row[i].prompt,
                            d.row[i].count - d.row[i].prompt, true));
        cr_assert_str_eq((char *)text.data, "Yes.<|im_end|>");
        cr_assert_str_eq(d.row[i].completion, "Yes.");
        bytes_close(&text);
    }
    data_close(&d);
    tokenizer_close(t);
}

Test(data_text, a_member_can_be_kept_beside_the_row)
{
    struct tokenizer *t = open_base("smollm2");
    struct dataset d;
    struct data_options o = {.tokenizer = t, .by = "site"};
    ok(read_rows(&d, "{\"text\":\"a\",\"site\":\"north\"}\n{\"text\":\"b\",\"site\":7}\n", &o));
    cr_assert_str_eq(d.row[0].by, "north");
    cr_assert_str_eq(d.row[1].by, "7");
    data_close(&d);
    refused(read_rows(&d, "{\"text\":\"a\"}\n", &o), ERR_INPUT, ":1: no field \"site\"");
    tokenizer_close(t);
}
