#include "engine/tokens/chat.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

#define TURN "{{'<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n'}}"

Test(chat_find, the_system_text_is_read_from_the_template)
{
    struct chat_template c;
    ok(chat_recognise(&c,
                      "{{'<|im_start|>system\\nDon\\'t \\\"lie\\\".\\nEver.<|im_end|>\\n'}}" TURN));
    cr_assert_str_eq(c.name, "chatml");
    cr_assert_str_eq(c.system, "Don't \"lie\".\nEver.");
    ok(chat_recognise(&c, "{{'<|im_start|>system\\n' + x + '<|im_end|>\\n'}}" TURN));
    cr_assert_str_eq(c.system, "");
    ok(chat_recognise(&c,
                      "{{'<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'}}" TURN));
    cr_assert_str_eq(c.name, "qwen2");
}

Test(chat_find, templates_that_are_rendered_otherwise_are_refused)
{
    static const char *const cases[] = {
        "{{ messages }}",
        "",
        "{{'<|im_start|>' + m['role'] + '<|im_sep|>' + m['content'] + '<|im_end|>'}}",
        "{{'<|im_start|>' + m['role'] + '\\n' + m['content'] | trim + '<|im_end|>\\n'}}",
        TURN "{{ strftime_now('%d') }}",
        "[INST] <<SYS>> without bos_token in front of turns",
        "[SYSTEM_PROMPT] [INST] bos_token",
        "{{ '<|user|>\n' + m['content'] + '<|end|>\n' }}",
        "<start_of_turn>",
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct chat_template c;
        refused(chat_recognise(&c, cases[i]), ERR_INPUT, "chat template");
    }
}

static err render(enum chat_family family, const char *role)
{
    struct chat_template c = {.family = family,
                              .bos = "<s>",
                              .eos = "</s>",
                              .user_before = "[INST] ",
                              .user_after = "[/INST]",
                              .answer_before = "",
                              .answer_after = "",
                              .no_system = true};
    struct bytes out = {.max = 4096};
    struct chat_message m = {role, "x"};
    err e = chat_render(&out, NULL, &c, &m, 1, &(struct chat_options){0});
    cr_assert(err_is(e) || out.size > 0);
    bytes_close(&out);
    return e;
}

Test(chat_find, every_family_renders_users_and_refuses_unknown_roles)
{
    for (int family = CHAT_CHATML; family <= CHAT_ZEPHYR; family++) {
        ok(render((enum chat_family)family, "user"));
        refused(render((enum chat_family)family, "tool"), ERR_INPUT, "message 1 has role tool");
    }
    refused(render(CHAT_LLAMA2, "assistant"), ERR_INPUT, "must alternate");
    refused(render(CHAT_MISTRAL, "system"), ERR_INPUT, "does not allow system messages");
}

Test(chat_find, a_model_without_a_template_says_so)
{
    struct tokenizer *t;
    struct chat_template c;
    char path[SUPPORT_PATH_BYTES];
    support_source(path, sizeof path, "tests/golden/tokenizer/gpt2");
    ok(tokenizer_open(&t, path));
    refused(chat_find(&c, t), ERR_INPUT, "no chat template");
    tokenizer_close(t);
}
