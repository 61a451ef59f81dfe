#include "engine/tokens/chat.h"
#include "base/json.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

/* ChatML with a default system turn, in which only the last answer keeps its thinking, as Qwen3
 * writes it. */
static const char thinking[] =
    "{%- for m in messages %}{%- if m.role == 'assistant' %}"
    "{%- set c = m.content.split('</think>')[-1].lstrip('\\n') %}"
    "{{- '<|im_start|>assistant\\n' }}{%- if loop.last %}"
    "{{- '<think>\\n' + m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') + "
    "'\\n</think>\\n\\n' if '</think>' in m.content else '<think>\\n\\n</think>\\n\\n' }}{%- endif "
    "%}"
    "{{- c + '<|im_end|>\\n' }}{%- else %}"
    "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{%- endif %}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}";

static const char tulu[] =
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\\n' + m.content + '\\n' }}"
    "{% elif not loop.last %}{{ '<|assistant|>\\n' + m.content + '\\n' }}"
    "{% else %}{{ '<|assistant|>\\n' + m.content + eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

static const char tagged[] =
    "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content }}"
    "{% endif %}{% endfor %}";

static json_t *parse(const char *text)
{
    json_t *json;
    ok(json_parse(&json, text, strlen(text), "test"));
    return json;
}

static struct chat *open_text(const char *jinja, const char *eos)
{
    struct chat *c;
    json_t *specials = json_pack("{s:s, s:s}", "bos_token", "<s>", "eos_token", eos);
    ok(chat_open_text(&c, jinja, strlen(jinja), specials));
    json_decref(specials);
    return c;
}

/* The text with its learned parts in brackets. */
static void expect(const struct chat *c, const char *messages, const bool *unlearned,
                   const char *want)
{
    struct bytes text = {.max = 1 << 16}, got = {.max = 1 << 16};
    struct chat_spans spans = {0};
    json_t *list = parse(messages);
    size_t at = 0;
    ok(chat_render(&text, &spans, c,
                   &(struct chat_input){.messages = list, .unlearned = unlearned}));
    for (size_t i = 0; i < spans.count; i++) {
        struct chat_span s = spans.span[i];
        cr_assert(s.begin >= at && s.end >= s.begin && s.end <= text.size);
        ok(bytes_printf(&got, "%.*s[%.*s]", (int)(s.begin - at), text.data + at,
                        (int)(s.end - s.begin), text.data + s.begin));
        at = s.end;
    }
    ok(bytes_printf(&got, "%.*s", (int)(text.size - at), text.data + at));
    cr_expect_str_eq((char *)got.data, want);
    json_decref(list);
    chat_spans_close(&spans);
    bytes_close(&text);
    bytes_close(&got);
}

#define USER(text) "{\"role\":\"user\",\"content\":\"" text "\"}"
#define ANSWER(text) "{\"role\":\"assistant\",\"content\":\"" text "\"}"
#define FOUR "[" USER("a") "," ANSWER("b") "," USER("c") "," ANSWER("d") "]"

Test(chat, a_turn_is_learned_up_to_the_token_that_ends_it)
{
    struct chat *c = open_text("{% for m in messages %}{{ '<' + m.role + '>' + m.content | trim + "
                               "eos_token + '\\n' }}{% endfor %}{% if add_generation_prompt %}"
                               "{{ '<assistant>' }}{% endif %}",
                               "</s>");
    expect(c, FOUR, NULL, "<user>a</s>\n<assistant>[b</s>]\n<user>c</s>\n<assistant>[d</s>]\n");
    expect(c, "[" USER("a") "," ANSWER(" b </s> x ") "]", NULL,
           "<user>a</s>\n<assistant>[b </s> x</s>]\n");
    const bool unlearned[] = {false, true, false, false};
    expect(c, FOUR, unlearned, "<user>a</s>\n<assistant>b</s>\n<user>c</s>\n<assistant>[d</s>]\n");
    expect(c, "[" USER("a") "," ANSWER("") "]", NULL, "<user>a</s>\n<assistant>[</s>]\n");
    chat_close(c);
}

Test(chat, a_template_that_ignores_the_generation_prompt_teaches_the_difference)
{
    struct chat *c = open_text("{% for m in messages %}{% if m.role == 'user' %}"
                               "{{ '[INST] ' + m.content + ' [/INST]' }}{% else %}"
                               "{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}",
                               "</s>");
    expect(c, FOUR, NULL, "[INST] a [/INST][ b </s>][INST] c [/INST][ d </s>]");
    chat_close(c);
}

Test(chat, an_end_token_that_only_the_last_turn_gets_is_learned_only_there)
{
    struct chat *c = open_text(tulu, "</s>");
    expect(c, FOUR, NULL, "<|user|>\na\n<|assistant|>\n[b]\n<|user|>\nc\n<|assistant|>\n[d</s>]");
    chat_close(c);
}

Test(chat, turns_that_are_rewritten_later_are_found_and_reported)
{
    struct chat *c = open_text(thinking, "<|im_end|>");
    struct chat_spans spans = {0};
    struct bytes text = {.max = 1 << 16};
    json_t *one = parse("[" USER("a") "," ANSWER("<think>\\nx\\n</think>\\n\\nb") "]");
    expect(
        c,
        "[" USER("a") "," ANSWER("<think>\\nx\\n</think>\\n\\nb") "," USER("c") "," ANSWER("d") "]",
        NULL,
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n[b<|im_end|>]\n"
        "<|im_start|>user\nc<|im_end|>\n<|im_start|>assistant\n"
        "[<think>\n\n</think>\n\nd<|im_end|>]\n");
    ok(chat_render(&text, &spans, c, &(struct chat_input){.messages = one}));
    cr_expect(!spans.earlier_changed && spans.count == 1);
    json_decref(one);
    one = parse("[" USER("a") "," ANSWER("<think>x</think>b") "," USER("c") "," ANSWER("d") "]");
    ok(chat_render(&text, &spans, c, &(struct chat_input){.messages = one}));
    cr_expect(spans.earlier_changed && spans.count == 3);
    json_decref(one);
    chat_spans_close(&spans);
    bytes_close(&text);
    chat_close(c);
}

Test(chat, generation_tags_decide_what_is_learned)
{
    struct chat *c = open_text(tagged, "</s>");
    const bool unlearned[] = {false, true, false, false};
    expect(c, FOUR, NULL, "user:aassistant:[b</s>]user:cassistant:[d</s>]");
    expect(c, FOUR, unlearned, "user:aassistant:b</s>user:cassistant:[d</s>]");
    chat_close(c);
}

static void expect_refused(const char *jinja, const char *messages, const char *why)
{
    struct chat *c = open_text(jinja, "</s>");
    struct bytes text = {.max = 1 << 16};
    struct chat_spans spans = {0};
    json_t *list = parse(messages);
    refused(chat_render(&text, &spans, c, &(struct chat_input){.messages = list}), ERR_INPUT, why);
    cr_expect(text.size == 0 && spans.count == 0);
    json_decref(list);
    bytes_close(&text);
    chat_close(c);
}

Test(chat, messages_that_cannot_be_rendered_or_found_are_refused)
{
    expect_refused("x", "[]", "messages are empty");
    expect_refused("x", "[{\"content\":\"a\"}]", "message 1: expected a role");
    expect_refused("{{ raise_exception('no ' ~ messages[0].role) }}", FOUR,
                   "the chat template refuses the messages: no user");
    expect_refused("\n{{ nothing.at_all }}", FOUR, "chat template, line 2: 'nothing' is undefined");
    expect_refused("{{ messages | length }}ac", FOUR, "message 2: the text of this turn");
    expect_refused("{{ messages[0].content }}",
                   "[" USER("a") ",{\"role\":\"tool\",\"content\":\"b\"}]",
                   "message 2: the chat template leaves out this message of role tool");
}

Test(chat, tools_and_further_variables_reach_the_template)
{
    struct chat *c = open_text("{{ tools }}{{ x }}{{ messages[0].tool_calls[0].function.name }}"
                               "{{ strftime_now('%Y-%m-%d') }}",
                               "</s>");
    struct bytes text = {.max = 1 << 16};
    json_t *list = parse("[{\"role\":\"assistant\",\"content\":null,"
                         "\"tool_calls\":[{\"function\":{\"name\":\"f\"}}]}]");
    json_t *tools = parse("[{\"name\":\"f\"}]"), *more = parse("{\"x\":1}");
    ok(chat_render(&text, NULL, c,
                   &(struct chat_input){.messages = list, .tools = tools, .variables = more}));
    cr_expect_str_eq((char *)text.data, "[{'name': 'f'}]1f2024-07-26");
    cr_expect(chat_mentions(c, "tool_calls") && !chat_mentions(c, "reasoning_content"));
    json_decref(list);
    json_decref(tools);
    json_decref(more);
    bytes_close(&text);
    chat_close(c);
}

Test(chat, built_in_templates_have_the_names_of_the_help_and_render)
{
    char path[SUPPORT_PATH_BYTES], names[512] = "";
    struct tokenizer *t;
    support_source(path, sizeof path, "tests/golden/tokenizer/gpt2");
    ok(tokenizer_open(&t, path));
    json_t *list = parse("[{\"role\":\"system\",\"content\":\"s\"}," USER("a") "," ANSWER("b") "]");
    const char *all[CHAT_BUILTINS];
    chat_names(all);
    for (const char *const *name = all; name < all + CHAT_BUILTINS; name++) {
        struct chat *c;
        struct bytes text = {.max = 1 << 16};
        struct chat_spans spans = {0};
        (void)snprintf(names + strlen(names), sizeof names - strlen(names), "%s%s",
                       *names ? ", " : "", *name);
        ok(chat_open(&c, t, *name));
        cr_expect_str_eq(chat_name(c), *name);
        ok(chat_render(&text, &spans, c, &(struct chat_input){.messages = list}));
        cr_expect_eq(spans.count, 1, "%s", *name);
        chat_spans_close(&spans);
        bytes_close(&text);
        chat_close(c);
    }
    cr_expect_str_eq(names, CHAT_NAMES);
    json_decref(list);
    tokenizer_close(t);
}

Test(chat, a_model_without_a_template_and_an_unknown_name_are_refused)
{
    struct tokenizer *t;
    struct chat *c;
    char path[SUPPORT_PATH_BYTES];
    support_source(path, sizeof path, "tests/golden/tokenizer/gpt2");
    ok(tokenizer_open(&t, path));
    refused(chat_open(&c, t, NULL), ERR_INPUT, "no chat template");
    refused(chat_open(&c, t, "chatlm"), ERR_INPUT, "did you mean chatml?");
    tokenizer_close(t);
}
