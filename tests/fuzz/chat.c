/* An untrusted chat template is refused, or messages are rendered: the places of the answers lie in
 * the text, in order, and a refused message leaves nothing behind. The input is the template and,
 * each after a byte 0x1e, messages; the first byte of a message chooses its role. */
#include "engine/tokens/chat.h"
#include "base/text.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {"tests/fuzz/seeds/chat.chatml",  "tests/fuzz/seeds/chat.llama3",
                                  "tests/fuzz/seeds/chat.mistral", "tests/fuzz/seeds/chat.zephyr",
                                  "tests/fuzz/seeds/chat.llama2",  NULL};
const int fuzz_runs = 4000;

enum { MESSAGES = 8 };

static size_t read_messages(struct chat_message *out, char *text)
{
    static const char *const roles[] = {"system", "user", "assistant", "tool"};
    size_t count = 0;
    for (char *at = text; at && count < MESSAGES; count++) {
        char *next = strchr(at, 0x1e);
        if (next) *next++ = 0;
        const char *role = roles[(unsigned char)*at % 4];
        out[count] = (struct chat_message){.role = role, .content = *at ? at + 1 : at};
        at = next;
    }
    return count;
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

static void render(const struct chat_template *c, const struct chat_message *message, size_t count)
{
    for (int generate = 0; generate < 2; generate++) {
        struct bytes text = {.max = 1 << 20};
        struct chat_spans spans = {0};
        const struct chat_options options = {.generate = generate};
        err e = chat_render(&text, &spans, c, message, count, &options);
        if (err_is(e) && (text.size || spans.count)) abort();
        check_spans(&spans, text.size);
        chat_spans_close(&spans);
        bytes_close(&text);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct chat_template c;
    struct chat_message message[MESSAGES];
    if (!text_is_utf8(data, size)) return 0; /* texts come from JSON, whose reader checks that */
    char *text = malloc(size + 1);
    if (!text) abort();
    if (size) memcpy(text, data, size);
    text[size] = 0;
    char *messages = strchr(text, 0x1e);
    if (messages) *messages++ = 0;
    size_t count = messages ? read_messages(message, messages) : 0;
    if (!err_is(chat_recognise(&c, text))) render(&c, message, count);
    free(text);
    return 0;
}
