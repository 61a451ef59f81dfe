#include "engine/tokens/data.h"
#include "base/file.h"
#include "base/limits.h"
#include "tests/support/chat_fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES + 16];
static struct tokenizer *t;

static void setup(void)
{
    char base[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    (void)snprintf(path, sizeof path, "%s/rows.jsonl", dir);
    support_source(base, sizeof base, "tests/golden/tokenizer/smollm2");
    ok(tokenizer_open(&t, base));
}
static void teardown(void)
{
    tokenizer_close(t);
    support_dir_remove(dir);
}
TestSuite(data, .init = setup, .fini = teardown);

static err read_rows(struct dataset *out, const char *text, const struct data_options *o)
{
    ok(file_write(path, text, strlen(text), true));
    return data_open(out, path, o);
}

/* The learned tokens of a row, decoded. */
static void check_learned(const struct data_row *row, const char *want)
{
    struct bytes text = {.max = 4096};
    for (uint32_t i = 0; i < row->count; i++)
        if (row->label[i] != DATA_IGNORE) {
            cr_assert_eq(row->label[i], row->id[i]);
            ok(tokenizer_decode(&text, t, &row->id[i], 1, true));
        }
    ok(bytes_append(&text, "", 1));
    cr_assert_str_eq((char *)text.data, want);
    bytes_close(&text);
}

Test(data, learns_the_completion_and_the_end_of_sequence)
{
    struct dataset d;
    ok(read_rows(&d, "{\"prompt\":\"one two\",\"completion\":\" three.\"}\n",
                 &(struct data_options){.tokenizer = t}));
    cr_assert_eq(d.count, 1);
    check_learned(&d.row[0], " three.<|im_end|>");
    cr_assert_eq(d.row[0].learned, d.row[0].count - d.row[0].prompt);
    cr_assert_str_eq(d.row[0].completion, " three.");
    cr_assert_eq(d.tokens, d.row[0].count);
    data_close(&d);
    ok(read_rows(&d, "{\"prompt\":\"one two\",\"completion\":\" three.\"}\n",
                 &(struct data_options){.tokenizer = t, .no_eos = true}));
    check_learned(&d.row[0], " three.");
    data_close(&d);
}

Test(data, a_token_over_the_prompts_end_is_not_learned)
{
    struct dataset d; /* " the" is one token; its first byte is the prompt's */
    ok(read_rows(&d, "{\"prompt\":\"it is \",\"completion\":\"the end\"}\n",
                 &(struct data_options){.tokenizer = t}));
    struct tokens whole = {0};
    ok(tokenizer_encode(&whole, t, "it is the end", 13, true));
    cr_assert_eq(whole.count + 1, d.row[0].count, "prompt and completion are one text");
    cr_assert(memcmp(whole.id, d.row[0].id, whole.count * sizeof(int32_t)) == 0);
    for (size_t i = 0; i < whole.count; i++)
        cr_assert_eq(d.row[0].label[i] != DATA_IGNORE, whole.start[i] >= 6);
    tokens_close(&whole);
    data_close(&d);
}

Test(data, labels_are_completions_after_a_space_or_a_line)
{
    struct dataset d;
    ok(read_rows(&d,
                 "{\"text\":\"fever and cough  \",\"label\":\"lungs\"}\n"
                 "{\"text\":\"fever\\n\",\"label\":\"lungs\"}\n{\"text\":\"fever\",\"label\":3}\n",
                 &(struct data_options){.tokenizer = t}));
    cr_assert_eq(d.count, 3);
    check_learned(&d.row[0], " lungs<|im_end|>");
    check_learned(&d.row[1], "lungs<|im_end|>");
    check_learned(&d.row[2], " 3<|im_end|>");
    cr_assert_str_eq(d.row[0].completion, "lungs");
    cr_assert_str_eq(d.row[2].completion, "3");
    data_close(&d);
}

Test(data, plain_text_is_learned_whole)
{
    struct dataset d;
    ok(read_rows(&d, "{\"text\":\"all of it\"}\n", &(struct data_options){.tokenizer = t}));
    check_learned(&d.row[0], "all of it<|im_end|>");
    cr_assert_eq(d.row[0].prompt, 0);
    cr_assert_eq(d.row[0].learned, d.row[0].count - 1, "the first token is predicted from none");
    cr_assert_null(d.row[0].completion);
    data_close(&d);
    ok(read_rows(&d, "{\"text\":\"all of it\"}\n",
                 &(struct data_options){.tokenizer = t, .bos = true}));
    cr_assert_eq(d.row[0].id[0], tokenizer_bos(t));
    check_learned(&d.row[0], "all of it<|im_end|>");
    data_close(&d);
}

Test(data, tokenised_rows_are_taken_as_they_are)
{
    struct dataset d;
    ok(read_rows(
        &d,
        "{\"input_ids\":[1,2,3],\"labels\":[-100,-100,3]}\n{\"input_ids\":[4,5],\"labels\":null}\n"
        "{\"input_ids\":[4,5],\"labels\":[-100,-100]}\n",
        &(struct data_options){.vocab = 6}));
    cr_assert_eq(d.count, 3);
    cr_assert_eq(d.row[0].prompt, 2);
    cr_assert_eq(d.row[0].learned, 1);
    cr_assert_eq(d.row[1].learned, 1);
    cr_assert_eq(d.row[1].label[0], 4);
    cr_assert_eq(d.unlearned.rows, 1);
    cr_assert_eq(d.row[2].prompt, 2);
    cr_assert_eq(d.row[2].line, 3);
    data_close(&d);
}

/* TRL's rows that are tokenised already, with padding of a collator. */
Test(data, masks_choose_what_is_learned)
{
    static const char rows[] =
        "{\"input_ids\":[1,2,3,4],\"completion_mask\":[0,0,1,1]}\n"
        "{\"input_ids\":[1,2,3,4],\"assistant_masks\":[0,1,1,0],\"labels\":[1,2,-100,4]}\n"
        "{\"input_ids\":[0,0,3,4,5,0],\"attention_mask\":[0,0,1,1,1,0],"
        "\"labels\":[-100,-100,-100,4,5,-100],\"position_ids\":[0,0,0,1,2,2]}\n"
        "{\"input_ids\":[1,2],\"completion_mask\":null,\"attention_mask\":[1,1],"
        "\"token_type_ids\":[0,0],\"length\":2}\n";
    struct dataset d;
    ok(read_rows(&d, rows, &(struct data_options){.vocab = 6}));
    static const int32_t want[][4] = {
        {-100, -100, 3, 4}, {-100, 2, -100, -100}, {-100, 4, 5}, {1, 2}};
    static const uint32_t count[] = {4, 4, 3, 2};
    for (size_t i = 0; i < 4; i++) {
        cr_assert_eq(d.row[i].count, count[i]);
        cr_assert_arr_eq(d.row[i].label, want[i], count[i] * sizeof(int32_t), "row %zu", i);
    }
    cr_assert_eq(d.row[2].id[0], 3);
    cr_assert_eq(d.row[2].prompt, 1);
    data_close(&d);
}

Test(data, null_is_absent)
{
    struct dataset d;
    ok(read_rows(
        &d,
        "{\"messages\":null,\"prompt\":\"a\",\"completion\":\"b\",\"text\":null}\n"
        "{\"input_ids\":null,\"prompt\":null,\"text\":\"a\",\"label\":null,\"tools\":null}\n",
        &(struct data_options){.tokenizer = t}));
    cr_assert_str_eq(d.row[0].completion, "b");
    cr_assert_null(d.row[1].completion);
    data_close(&d);
}

Test(data, long_rows_are_cut_and_counted)
{
    struct dataset d;
    ok(read_rows(&d,
                 "{\"input_ids\":[1,2,3,4]}\n{\"input_ids\":[1,2,3]}\n"
                 "{\"input_ids\":[1,2,3,4],\"labels\":[-100,-100,-100,4]}\n",
                 &(struct data_options){.vocab = 6, .seq = 3}));
    cr_assert_eq(d.cut.rows, 2);
    cr_assert_eq(d.cut.line, 1);
    cr_assert_eq(d.unlearned.rows, 1);
    cr_assert_eq(d.unlearned.line, 3);
    cr_assert_eq(data_teaching(&d), 2);
    cr_assert_eq(d.longest, 4);
    cr_assert_eq(d.longest_line, 1);
    cr_assert_eq(d.row[0].count, 3);
    cr_assert_eq(d.tokens, 9);
    cr_assert_eq(d.learned, 4);
    data_close(&d);
}

Test(data, marks_windows_line_ends_and_blank_lines_are_no_rows)
{
    struct dataset d;
    ok(read_rows(&d, "\xEF\xBB\xBF{\"text\":\"a\"}\r\n\r\n  \t\n\n{\"text\":\"b\"}",
                 &(struct data_options){.tokenizer = t}));
    cr_assert_eq(d.count, 2);
    cr_assert_eq(d.row[1].line, 5);
    data_close(&d);
}

static const struct {
    const char *text, *part;
} bad_rows[] = {
    {"{\"text\":\"a\"}\n{\"completion\":\"b\"}\n",
     "rows.jsonl:2: \"prompt\" is missing; a row needs prompt and completion, messages, text, "
     "or "
     "input_ids and labels"},
    {"{\"prompt\":\"b\"}\n", ":1: \"completion\" is missing"},
    {"{}\n", ":1: \"prompt\" is missing"},
    {"[1]\n", ":1: expected an object"},
    {"{\"text\":\"a\"}\n{\"text\": \"b\",, }\n", ":2:"},
    {"{\"text\":\"a\xff\"}\n", "not JSON"},
    {"{\"text\":\"a\"} {\"text\":\"b\"}\n", "not JSON"},
    {"{\"text\":7}\n", "\"text\": expected a string"},
    {"{\"prompt\":\"a\",\"completion\":[]}\n", "\"completion\": expected a string"},
    {"{\"prompt\":null,\"completion\":\"a\"}\n", "\"prompt\" is missing"},
    {"{\"messages\":[]}\n", "\"messages\": expected a list"},
    {"{\"input_ids\":[1,2],\"labels\":[1]}\n", "\"labels\": expected a list of 2"},
    {"{\"input_ids\":[1,99999]}\n", "\"input_ids\"[1]: expected a token id below"},
    {"{\"input_ids\":[1,-100]}\n", "\"input_ids\"[1]"},
    {"{\"input_ids\":[1,1.5]}\n", "\"input_ids\"[1]"},
    {"{\"input_ids\":[1,2],\"labels\":[1,-1]}\n", "\"labels\"[1]"},
    {"{\"input_ids\":[]}\n", "\"input_ids\": expected"},
    {"{\"input_ids\":[1,2],\"completion_mask\":[1]}\n", "\"completion_mask\": expected a list"},
    {"{\"input_ids\":[1,2],\"assistant_masks\":[1,2]}\n", "\"assistant_masks\"[1]: expected 0"},
    {"{\"input_ids\":[1,2,3],\"attention_mask\":[1,0,1]}\n", "\"attention_mask\"[1]: 0 between"},
    {"{\"input_ids\":[1,2],\"attention_mask\":[0,0]}\n", "\"attention_mask\": all of it is 0"},
    {"{\"input_ids\":[1,2],\"position_ids\":[0,0]}\n", "\"position_ids\"[1]: expected 1"},
    {"{\"input_ids\":[1,2],\"seq_lengths\":[1,1]}\n", "\"seq_lengths\" cannot be honoured"},
    {"{\"text\":\"a\",\"labels\":[-100]}\n", "\"labels\" cannot be honoured"},
    {"{\"text\":\"a\",\"attention_mask\":[1]}\n", "\"attention_mask\" cannot be honoured"},
    {"{\"text\":\"a\",\"images\":[\"x.png\"]}\n", "\"images\" cannot be honoured: only text"},
    {"{\"text\":\"a\",\"tools\":[{}]}\n", "\"tools\" cannot be honoured: it belongs to messages"},
    {"{\"prompt\":\"a\",\"completion\":\"b\",\"label\":false}\n", "\"label\" cannot be honoured"},
    {"{\"prompt\":\"a\",\"completion\":\"b\",\"label\":\"False\"}\n",
     "\"label\" cannot be honoured"},
    {"{\"prompt\":\"a\",\"completion\":\"b\",\"weight\":0}\n",
     "\"weight\" of 0 cannot be honoured"},
    {"{\"prompt\":\"a\",\"completion\":\"b\",\"system_prompt\":\"c\"}\n",
     "\"system_prompt\" cannot be honoured"},
    {"{\"instruction\":\"a\",\"output\":\"b\",\"context\":\"c\"}\n",
     "\"context\" cannot be honoured"},
    {"{\"prompt\":\"a\",\"chosen\":\"b\",\"rejected\":\"c\"}\n", "rows of preferences"},
    {"{\"instruction\":\"a\",\"output\":\"b\",\"history\":[[\"c\",\"d\"]]}\n", "\"history\""},
    {"{\"prompt\":[{\"role\":\"user\",\"content\":\"a\"}],\"completion\":\"b\"}\n",
     "\"prompt\": expected a string"},
    {"", "holds no rows"},
    {"\n\n", "holds no rows"},
};

Test(data, refuses_bad_rows_by_file_line_and_reason)
{
    struct dataset d = {.count = 77};
    struct data_options o = {.tokenizer = t};
    for (size_t i = 0; i < sizeof bad_rows / sizeof *bad_rows; i++)
        refused(read_rows(&d, bad_rows[i].text, &o), ERR_INPUT, bad_rows[i].part);
    cr_assert_eq(d.count, 77, "untouched on failure");
    refused(data_open(&d, dir, &o), ERR_INPUT, "is a directory");
    refused(data_open(&d, "no/such/file", &o), ERR_INPUT, "no/such/file");
    refused(read_rows(&d, "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}]}\n", &o),
            ERR_INPUT, "no chat template");
    refused(read_rows(&d, "{\"text\":\"a\"}\n", &(struct data_options){.vocab = 3}), ERR_INPUT,
            "no tokenizer");
}

Test(data, a_line_has_a_bound)
{
    struct dataset d;
    size_t size = LIMIT_LINE_BYTES + 32;
    char *text = malloc(size);
    memset(text, 'a', size);
    memcpy(text, "{\"text\":\"", 9);
    memcpy(text + size - 3, "\"}\n", 3);
    ok(file_write(path, text, size, true));
    refused(data_open(&d, path, &(struct data_options){.tokenizer = t}), ERR_INPUT,
            ":1: the line is longer");
    free(text);
}

/* A chat model: the same vocabulary with a template beside it. */
static struct tokenizer *open_chat(void)
{
    return chat_fixture_open(dir, "{% for m in messages %}{{'<|im_start|>' + m['role'] + '\\n' + "
                                  "m['content'] + '<|im_end|>' + "
                                  "'\\n'}}{% endfor %}{% if add_generation_prompt %}"
                                  "{{ '<|im_start|>assistant\\n' }}{% endif %}");
}

Test(data, learns_the_assistants_turns_of_a_chat)
{
    struct dataset d;
    struct tokenizer *chat = open_chat();
    ok(read_rows(
        &d,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"},"
        "{\"role\":\"assistant\",\"content\":\"Hello!\"},{\"role\":\"user\",\"content\":\"?\"},"
        "{\"role\":\"assistant\",\"content\":\"Bye.\"}]}\n",
        &(struct data_options){.tokenizer = chat, .bos = true}));
    check_learned(&d.row[0], "Hello!<|im_end|>Bye.<|im_end|>");
    cr_assert_eq(d.row[0].label[d.row[0].count - 1], DATA_IGNORE, "the line end after a turn");
    data_close(&d);
    ok(read_rows(&d, "{\"messages\":[{\"role\":\"tool\",\"content\":\"Hi\"}]}\n",
                 &(struct data_options){.tokenizer = chat}));
    cr_assert_eq(d.row[0].learned, 0, "the template prints any role");
    data_close(&d);
    refused(read_rows(&d, "{\"messages\":[{\"role\":\"user\"}]}\n",
                      &(struct data_options){.tokenizer = chat}),
            ERR_INPUT, "message 1: expected a role and a content");
    tokenizer_close(chat);
}

/* The same conversation in every form; what is learned follows the form. */
Test(data, conversations_have_several_forms)
{
    static const struct {
        const char *row, *learned;
    } cases[] = {
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"Be.\"},"
         "{\"role\":\"user\",\"content\":\"Hi\"},"
         "{\"role\":\"assistant\",\"content\":\"A.\"},{\"role\":\"user\",\"content\":\"?\"},"
         "{\"role\":\"assistant\",\"content\":\"B.\"}]}\n",
         "A.<|im_end|>B.<|im_end|>"},
        {"{\"conversations\":[{\"from\":\"system\",\"value\":\"Be.\"},"
         "{\"from\":\"human\",\"value\":\"Hi\"},{\"from\":\"gpt\",\"value\":\"A.\"},"
         "{\"from\":\"human\",\"value\":\"?\"},{\"from\":\"gpt\",\"value\":\"B.\"}]}\n",
         "A.<|im_end|>B.<|im_end|>"},
        {"{\"system\":\"Be.\",\"conversations\":["
         "{\"from\":\"human\",\"value\":\"Hi\"},{\"from\":\"gpt\",\"value\":\"A.\",\"weight\":0},"
         "{\"from\":\"human\",\"value\":\"?\"},{\"from\":\"gpt\",\"value\":\"B.\",\"weight\":1}],"
         "\"tools\":[]}\n",
         "B.<|im_end|>"},
        {"{\"prompt\":[{\"role\":\"system\",\"content\":\"Be.\"},"
         "{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"H\"},"
         "{\"type\":\"text\",\"text\":\"i\",\"image\":null}]},"
         "{\"role\":\"assistant\",\"content\":\"A.\"},{\"role\":\"user\",\"content\":\"?\"}],"
         "\"completion\":[{\"role\":\"assistant\",\"content\":\"B.\",\"tool_calls\":null}]}\n",
         "B.<|im_end|>"},
        {"{\"messages\":[{\"role\":\"system\",\"content\":\"Be.\"},"
         "{\"role\":\"user\",\"content\":\"Hi\",\"weight\":1},"
         "{\"role\":\"assistant\",\"content\":\"A.\",\"train\":false},"
         "{\"role\":\"user\",\"content\":\"?\"},"
         "{\"role\":\"assistant\",\"content\":\"B.\",\"loss\":true,\"x\":1}]}\n",
         "B.<|im_end|>"},
    };
    struct dataset first, d;
    struct tokenizer *chat = open_chat();
    const struct data_options o = {.tokenizer = chat};
    ok(read_rows(&first, cases[0].row, &o));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ok(read_rows(&d, cases[i].row, &o));
        check_learned(&d.row[0], cases[i].learned);
        cr_assert_eq(d.row[0].count, first.row[0].count);
        cr_assert_arr_eq(d.row[0].id, first.row[0].id, d.row[0].count * sizeof(int32_t));
        data_close(&d);
    }
    data_close(&first);
    tokenizer_close(chat);
}

#define USER "{\"role\":\"user\",\"content\":\"Hi\"},"
Test(data, messages_that_cannot_be_honoured_are_refused_by_name)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"a\",\"weight\":0.5}]}\n",
         ":1: \"messages\": message 2: \"weight\" cannot be honoured: expected 0 or 1"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"Hi\",\"train\":true}]}\n",
         "message 1: \"train\" cannot be honoured: only the assistant's"},
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"\",\"tool_calls\":[{}]}]}\n",
         "message 2: \"tool_calls\" cannot be honoured"},
        {"{\"messages\":[" USER
         "{\"role\":\"assistant\",\"content\":\"a\",\"reasoning_content\":\"b\"}]}\n",
         "message 2: \"reasoning_content\" cannot be honoured"},
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":null}]}\n",
         "message 2: expected a role and a content"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"image_url\"}]}]}\n",
         "message 1: \"content\" has a part of type image_url: only text is read"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\",\"images\":[1]}]}\n",
         "message 1: \"images\" cannot be honoured"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"tools\":[{\"type\":\"x\"}]}\n",
         "\"tools\" cannot be honoured: the chat template"},
        {"{\"conversations\":[{\"from\":\"narrator\",\"value\":\"a\"}]}\n",
         "\"conversations\": message 1: \"from\" is narrator"},
        {"{\"messages\":[{\"role\":\"user\",\"content\":\"a\"},"
         "{\"role\":\"Assistant\",\"content\":\"b\"}]}\n",
         "message 2: the role is \"Assistant\": expected \"assistant\""},
        {"{\"messages\":[{\"role\":\"model\",\"content\":\"b\"}]}\n",
         "message 1: the role is \"model\": expected \"assistant\""},
        {"{\"conversations\":[3]}\n", "message 1: expected a role"},
        {"{\"system\":\"a\",\"messages\":[{\"role\":\"system\",\"content\":\"b\"}]}\n",
         "\"system\" cannot be honoured"},
        {"{\"prompt\":[],\"completion\":[]}\n", "\"prompt\": expected a list of messages"},
    };
    struct dataset d;
    struct tokenizer *chat = open_chat();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(read_rows(&d, cases[i].text, &(struct data_options){.tokenizer = chat}), ERR_INPUT,
                cases[i].part);
    tokenizer_close(chat);
}
