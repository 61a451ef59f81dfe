/* Members of conversations that only a chat template can honour. */
#include "base/file.h"
#include "engine/tokens/data.h"
#include "tests/support/chat_fixture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
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
TestSuite(data_chat, .init = setup, .fini = teardown);

/* Prints tools, calls, reasoning and every role. */
static const char all[] =
    "{% if tools %}<s>{{ tools | tojson }}</s>{% endif %}{% if hint %}{{ hint }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}{{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
/* Mentions calls, but prints them only beside an absent content, as some published templates do;
 * prints nothing of roles that it does not know. */
static const char some[] =
    "{% for m in messages %}{% if m.role == 'assistant' and m.content is none %}<|im_start|>"
    "assistant\n{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}<|im_end|>\n"
    "{% elif m.role in ['user', 'assistant'] %}<|im_start|>{{ m.role }}\n{{ m.content "
    "}}<|im_end|>\n"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

static err read_row(struct dataset *out, const struct tokenizer *t, const char *row)
{
    ok(file_write(path, row, strlen(row), true));
    return data_open(out, path, &(struct data_options){.tokenizer = t});
}

/* All of the row as text, its learned parts in braces. */
static void check_row(const struct tokenizer *t, const char *row, const char *want)
{
    struct dataset d;
    struct bytes text = {.max = 4096};
    err e = read_row(&d, t, row);
    cr_assert_not(err_is(e), "%s: %s", row, e.text);
    for (uint32_t i = 0; i < d.row[0].count; i++) {
        bool in = d.row[0].label[i] != DATA_IGNORE;
        bool was = i > 0 && d.row[0].label[i - 1] != DATA_IGNORE;
        if (in != was) ok(bytes_append(&text, in ? "{" : "}", 1));
        ok(tokenizer_decode(&text, t, &d.row[0].id[i], 1, true));
    }
    cr_expect_str_eq((char *)text.data, want);
    bytes_close(&text);
    data_close(&d);
}

#define USER "{\"role\":\"user\",\"content\":\"Hi\"},"
#define CALL                                                                                       \
    "\"tool_calls\":[{\"type\":\"function\",\"function\":{\"name\":\"now\",\"arguments\":{}}}]"

Test(data_chat, tools_and_calls_reach_the_template)
{
    struct tokenizer *t = chat_fixture_open(dir, all);
    check_row(t, "{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":null," CALL "}]}",
              "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
              "{{\"name\": \"now\", \"arguments\": {}}<|im_end|>}\n");
    check_row(t,
              "{\"messages\":[" USER "{\"role\":\"assistant\"," CALL ",\"weight\":0},"
              "{\"role\":\"tool\",\"content\":\"noon\"},"
              "{\"role\":\"assistant\",\"content\":\"It is noon.\",\"reasoning_content\":\"so\"}]}",
              "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
              "{\"name\": \"now\", \"arguments\": {}}<|im_end|>\n<|im_start|>tool\nnoon<|im_end|>\n"
              "<|im_start|>assistant\n{(so)It is noon.<|im_end|>}\n");
    static const char want[] = "<s>[{\"name\": \"now\"}]</s>!<|im_start|>user\nHi<|im_end|>\n"
                               "<|im_start|>assistant\n{Yes<|im_end|>}\n";
#define ROW(tools_)                                                                                \
    "{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"Yes\"}],\"tools\":" tools_       \
    ",\"chat_template_kwargs\":{\"hint\":\"!\"}}"
    check_row(t, ROW("[{\"name\":\"now\"}]"), want);
    check_row(t, ROW("\"[{\\\"name\\\":\\\"now\\\"}]\""), want);
    tokenizer_close(t);
}

/* The masks of transformers hold the token of the first character of a turn, here that of the space
 * and the word. */
Test(data_chat, the_first_token_of_a_turn_is_learned_with_the_space_before_it)
{
    static const char tagged[] =
        "{% for m in messages %}{% if m.role == 'assistant' %}assistant: {% generation %}"
        "{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}\n{% endif %}"
        "{% endfor %}";
    static const char plain[] =
        "{% for m in messages %}{% if m.role == 'assistant' %}assistant: {{ m.content }}<|im_end|>"
        "{% else %}{{ m.content }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}";
    static const char *const templates[] = {tagged, plain};
    for (int i = 0; i < 2; i++) {
        struct tokenizer *t = chat_fixture_open(dir, templates[i]);
        check_row(t, "{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"the king\"}]}",
                  "Hi\nassistant:{ the king<|im_end|>");
        tokenizer_close(t);
    }
}

/* As in transformers; without a tokenizer_config.json the ids of the model name them. */
Test(data_chat, special_tokens_that_the_files_do_not_name_are_undefined)
{
    char config[SUPPORT_PATH_BYTES + 32];
    struct tokenizer *t = chat_fixture_open(dir, some);
    cr_expect_str_eq(json_string_value(json_object_get(tokenizer_specials(t), "bos_token")),
                     "<|im_start|>");
    tokenizer_close(t);
    (void)snprintf(config, sizeof config, "%s/tokenizer_config.json", dir);
    ok(file_write(config, "{\"eos_token\":\"<|im_end|>\"}", 26, true));
    (void)snprintf(config, sizeof config, "%s/config.json", dir);
    ok(file_write(config, "{\"bos_token_id\":1}", 18, true));
    ok(tokenizer_open(&t, dir));
    cr_expect_null(json_object_get(tokenizer_specials(t), "bos_token"));
    cr_expect_not_null(json_object_get(tokenizer_specials(t), "eos_token"));
    tokenizer_close(t);
}

Test(data_chat, what_a_template_does_not_print_is_refused_by_name)
{
    static const struct {
        const char *row, *part;
    } cases[] = {
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"\"," CALL "}]}",
         ":1: message 2: \"tool_calls\" cannot be honoured"},
        {"{\"messages\":[{\"role\":\"developer\",\"content\":\"Be kind.\"}," USER
         "{\"role\":\"assistant\",\"content\":\"Yes\"}]}",
         ":1: message 1: the chat template leaves out this message of role developer"},
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"Yes\"}],\"tools\":[{}]}",
         ":1: \"tools\" cannot be honoured"},
        {"{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":\"Yes\"}],\"tools\":\"[\"}",
         ":1: \"tools\""},
        {"{\"messages\":[" USER
         "{\"role\":\"assistant\",\"content\":\"Yes\"}],\"documents\":{\"a\":1}}",
         ":1: \"documents\""},
        {"{\"messages\":[" USER
         "{\"role\":\"assistant\",\"content\":\"Yes\"}],\"chat_template_kwargs\":[1]}",
         ":1: \"chat_template_kwargs\": expected an object"},
    };
    struct tokenizer *t = chat_fixture_open(dir, some);
    struct dataset d;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refused(read_row(&d, t, cases[i].row), ERR_INPUT, cases[i].part);
    check_row(t, "{\"messages\":[" USER "{\"role\":\"assistant\",\"content\":null," CALL "}]}",
              "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
              "{{\"name\": \"now\", \"arguments\": {}}<|im_end|>}\n");
    tokenizer_close(t);
}
