/* An untrusted chat template is refused, or messages are rendered: the learned parts lie in the
 * text, in order, and a refused message leaves nothing behind. The input is the template and,
 * each after a byte 0x1e, messages; the first byte of a message chooses its role. Without messages
 * the template gets a conversation with tools. */
#include "engine/tokens/chat.h"
#include "base/text.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/chat.chatml",
                                  "tests/fuzz/seeds/chat.llama3",
                                  "tests/fuzz/seeds/chat.mistral",
                                  "tests/fuzz/seeds/chat.zephyr",
                                  "tests/fuzz/seeds/chat.llama2",
                                  "tests/golden/chat/qwen3.jinja",
                                  "tests/golden/chat/mistral-v3.jinja",
                                  "tests/golden/chat/deepseek-r1.jinja",
                                  "tests/golden/chat/smollm3.jinja",
                                  "tests/golden/chat/granite3.jinja",
                                  NULL};
const int fuzz_runs = 4000;

enum { MESSAGES = 8 };

static const char tools_json[] =
    "[{\"type\":\"function\",\"function\":{\"name\":\"f\",\"parameters\":{\"a\":[1,2.5,null]}}}]";
static const char messages_json[] =
    "[{\"role\":\"user\",\"content\":\"One?\"},{\"role\":\"assistant\",\"content\":null,"
    "\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\",\"function\":{\"name\":\"f\","
    "\"arguments\":{\"a\":true}}}]},{\"role\":\"tool\",\"tool_call_id\":\"call00001\","
    "\"content\":\"1\"},{\"role\":\"assistant\",\"content\":\"<think>\\na\\n</think>\\n\\n1\","
    "\"reasoning_content\":\"b\"},{\"role\":\"user\",\"content\":\" Two? \"},"
    "{\"role\":\"assistant\",\"content\":\"2\"}]";

static json_t *read_messages(char *text)
{
    if (!text) return json_loads(messages_json, 0, NULL);
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    json_t *list = json_array();
    for (char *at = text; at && json_array_size(list) < MESSAGES;) {
        char *next = strchr(at, 0x1e);
        if (next) *next++ = 0;
        const char *role = roles[(unsigned char)*at % 4], *content = *at ? at + 1 : at;
        json_array_append_new(list, json_pack("{s:s, s:s}", "role", role, "content", content));
        at = next;
    }
    return list;
}

static void check_spans(const struct chat_spans *spans, size_t size)
{
    size_t at = 0;
    for (size_t i = 0; i < spans->count; i++) {
        const struct chat_span *s = &spans->span[i];
        if (s->begin < at || s->end < s->begin || s->end > size) abort();
        at = s->end;
    }
}

static void render(const struct chat *c, const json_t *messages, const json_t *tools)
{
    for (int generate = 0; generate < 2; generate++) {
        struct bytes text = {.max = 1 << 20};
        struct chat_spans spans = {0};
        const struct chat_input input = {
            .messages = messages, .tools = tools, .generate = generate};
        err e = chat_render(&text, &spans, c, &input);
        if (err_is(e) && (text.size || spans.count)) abort();
        check_spans(&spans, text.size);
        chat_spans_close(&spans);
        bytes_close(&text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat *c = NULL;
    if (!text_is_utf8(data, size)) return 0; /* texts come from JSON, whose reader checks that */
    char *text = malloc(size + 1);
    if (!text) abort();
    if (size) memcpy(text, data, size);
    text[size] = 0;
    char *at = strchr(text, 0x1e);
    if (at) *at++ = 0;
    json_t *messages = read_messages(at), *tools = at ? NULL : json_loads(tools_json, 0, NULL);
    json_t *specials = json_pack("{s:s, s:s}", "bos_token", "<s>", "eos_token", "</s>");
    if (!err_is(chat_open_text(&c, text, strlen(text), specials))) render(c, messages, tools);
    chat_close(c);
    json_decref(messages);
    json_decref(tools);
    json_decref(specials);
    free(text);
    return 0;
}
