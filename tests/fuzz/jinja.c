/* An untrusted template is refused, or it renders a text in UTF-8 with spans in order; a refused
 * one leaves nothing behind, and the same template gives the same text again. The input is a list
 * of templates, each before a byte 0x1e, which all see the variables below. */
#include "engine/tokens/jinja.h"
#include "base/json.h"
#include "base/text.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <string.h>

const char *const fuzz_seeds[] = {
    "tests/fuzz/seeds/jinja.expressions", "tests/golden/chat/command-r.jinja",
    "tests/golden/chat/llama3.1.jinja", "tests/golden/chat/smollm3.jinja", NULL};
const int fuzz_runs = 250;

static const char variables[] =
    "{\"n\":7,\"z\":0,\"f\":2.5,\"neg\":-3,\"t\":true,\"no\":false,\"s\":\"Hello "
    "World\",\"e\":\"\","
    "\"pad\":\"  \\n x y \\t\",\"u\":\"Gr\xC3\xB6\xC3\x9F"
    "e \xE6\x97\xA5\",\"l\":[3,1,2],\"le\":[],\"names\":[\"b\",\"A\",\"c\"],"
    "\"mixed\":[1,\"two\",2.5,null,true,[1],{\"k\":\"v\"}],\"d\":{\"b\":1,\"a\":\"x\"},"
    "\"people\":[{\"name\":\"Ann\",\"age\":30},{\"name\":\"bob\"}],\"lines\":\"one\\n\\ntwo\","
    "\"big\":9223372036854775807,\"nested\":{\"a\":{\"b\":[10]}},\"tools\":null,"
    "\"bos_token\":\"<s>\",\"eos_token\":\"</s>\",\"add_generation_prompt\":true,"
    "\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},"
    "{\"role\":\"user\",\"content\":\"One?\"},{\"role\":\"assistant\",\"content\":null,"
    "\"tool_calls\":[{\"id\":\"call00001\",\"type\":\"function\","
    "\"function\":{\"name\":\"f\",\"arguments\":{\"x\":1}}}]},"
    "{\"role\":\"tool\",\"content\":\"2\"},{\"role\":\"assistant\",\"content\":\"2\"}]}";

static void check_spans(const struct jinja_spans *spans, size_t size)
{
    size_t at = 0;
    for (size_t i = 0; i < spans->count; i++) {
        const struct jinja_span *s = &spans->span[i];
        if (s->begin > s->end || s->end > size || s->end < at) abort();
        at = s->end;
    }
}

/* A limit that several calls share makes the second call shorter, so each call gets its own. */
static err render(struct bytes *out, const struct jinja *j, const json_t *given)
{
    uint64_t steps = 20000;
    struct jinja_spans spans = {0};
    const struct jinja_options options = {.now = 1721952000, .steps_left = &steps};
    err e = jinja_render(out, &spans, j, given, &options);
    if (err_is(e) && (out->size || spans.count)) abort();
    if (out->size && !text_is_utf8((const char *)out->data, out->size)) abort();
    check_spans(&spans, out->size);
    jinja_spans_close(&spans);
    return e;
}

static void run(const char *text, size_t size, const json_t *given)
{
    struct jinja *j = NULL;
    struct bytes out[2] = {{.max = 1 << 18}, {.max = 1 << 18}};
    if (err_is(jinja_open(&j, text, size))) return;
    err first = render(&out[0], j, given), again = render(&out[1], j, given);
    if (first.kind != again.kind || out[0].size != out[1].size) abort();
    if (out[0].size && memcmp(out[0].data, out[1].data, out[0].size) != 0) abort();
    for (int i = 0; i < 2; i++)
        bytes_close(&out[i]);
    jinja_close(j);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    json_t *given = NULL;
    if (!text_is_utf8(data, size)) return 0; /* texts come from JSON, whose reader checks that */
    if (err_is(json_parse(&given, variables, sizeof variables - 1, "variables"))) abort();
    const char *text = size ? (const char *)data : "";
    for (size_t at = 0; at <= size;) {
        const char *end = memchr(text + at, 0x1e, size - at);
        size_t part = end ? (size_t)(end - text) - at : size - at;
        run(text + at, part, given);
        at += part + 1;
    }
    json_decref(given);
    return 0;
}
