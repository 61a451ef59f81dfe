#include "engine/tokens/jinja.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* tests/golden/chat.c compares texts with jinja2; here are the bounds and the errors. */

static err render(const char *template, uint64_t steps, size_t most)
{
    struct jinja *j = NULL;
    struct bytes out = {.max = most};
    struct jinja_spans spans = {0};
    json_t *variables = json_pack("{s:s}", "s", "abc");
    err e = jinja_open(&j, template, strlen(template));
    if (!err_is(e))
        e = jinja_render(&out, &spans, j, variables, &(struct jinja_options){.steps_left = &steps});
    cr_expect(!err_is(e) || (out.size == 0 && spans.count == 0), "a failure leaves text behind");
    json_decref(variables);
    jinja_spans_close(&spans);
    bytes_close(&out);
    jinja_close(j);
    return e;
}

static void expect(const char *template, enum err_kind kind, const char *text)
{
    refused(render(template, 5000000, 1 << 20), kind, text);
}

/* before + part * count + after */
static char *repeated(const char *before, const char *part, size_t count, const char *after)
{
    size_t n = strlen(part), first = strlen(before);
    char *text = malloc(first + count * n + strlen(after) + 1);
    cr_assert(text);
    memcpy(text, before, first);
    for (size_t i = 0; i < count; i++)
        memcpy(text + first + i * n, part, n);
    memcpy(text + first + count * n, after, strlen(after) + 1);
    return text;
}

Test(jinja, steps_memory_output_and_depth_are_bounded)
{
    refused(render("{% for i in range(1000) %}{% endfor %}", 500, 100), ERR_LIMIT,
            "line 1: the template needs more than");
    refused(render("{% for i in range(1000) %}{{ s }}{% endfor %}", 100000, 100), ERR_LIMIT,
            "a buffer of at most 100 bytes");
    expect("{% set ns = namespace(x=s) %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}"
           "{% endfor %}",
           ERR_LIMIT, "the template's values need more than");
    expect("{{ s * 1000000000 }}", ERR_INPUT, "line 1: a whole number");
    /* lists that share their items have 2^60 of them */
    expect("{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(60) %}"
           "{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}{% endfor %}"
           "{{ ns.a == ns.b }}",
           ERR_LIMIT, "the template needs more than");
    expect("{% set a = 'a' * 1000000 %}{% set b = 'a' * 500000 %}{{ a.rfind(b + 'b') }}", ERR_LIMIT,
           "the template needs more than");
    expect("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", ERR_INPUT, "nested deeper");
    expect("{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x] %}"
           "{% endfor %}{{ ns.x }}",
           ERR_INPUT, "lists and dicts are nested deeper than");
    static const struct {
        const char *before, *part, *after;
    } deep[] = {{"{{ ", "(", "1 }}"},         {"{{ ", "not ", "1 }}"},
                {"{{ ", "-", "1 }}"},         {"{{ 1", "+1", " }}"},
                {"{{ s", ".a", " }}"},        {"{{ s", "|trim", " }}"},
                {"", "{% if 1 %}", "x"},      {"{{ ", "[", "1 }}"},
                {"{% set ", "(", "a = 1 %}"}, {"{{ ", "1 if 1 else ", "1 }}"}};
    for (size_t i = 0; i < sizeof deep / sizeof *deep; i++) {
        char *text = repeated(deep[i].before, deep[i].part, 5000, deep[i].after);
        cr_expect_eq(render(text, 5000000, 1 << 20).kind, ERR_INPUT, "%s", deep[i].part);
        free(text);
    }
    char *large = repeated("", "0123456789", 110000, "");
    expect(large, ERR_INPUT, "the template has 1100000 bytes");
    free(large);
    char *chain = repeated("{% if 0 %}", "{% elif 0 %}", 5000, "{% else %}x{% endif %}");
    ok(render(chain, 5000000, 1 << 20));
    free(chain);
}

Test(jinja, a_construct_that_is_not_known_is_refused_by_name_and_line)
{
    expect("a\n{% include 'x' %}", ERR_INPUT, "line 2: the statement \"include\"");
    expect("a\n\n{{ s | nosuch }}", ERR_INPUT, "line 3: there is no filter \"nosuch\"");
    expect("{% if s is nosuch %}{% endif %}", ERR_INPUT, "line 1: there is no test \"nosuch\"");
    expect("\n{{ s | truncate(2) }}", ERR_INPUT, "line 2: the filter \"truncate\"");
    expect("{{ s.format(1) }}", ERR_INPUT, "line 1: 'format' of a str is not supported");
    expect("{{ [].append(1) }}", ERR_INPUT, "line 1: 'append' of a list is not supported");
    expect("{{ joiner() }}", ERR_INPUT, "line 1: the function \"joiner\"");
    expect("{% for x in s %}", ERR_INPUT, "line 1: a statement has no end: expected {% endfor %}");
    expect("{% break %}", ERR_INPUT, "line 1: \"break\" outside of a loop");
    expect("{{ 9223372036854775807 + 1 }}", ERR_INPUT, "needs more than 64 bits");
    expect("{{ 10.0 ** 400 }}", ERR_INPUT, "line 1: the power is too large");
    expect("{{ 1.5 | round(0, 'ceiling') }}", ERR_INPUT, "common, ceil or floor");
    expect("{% macro f() %}{% generation %}{% endgeneration %}{% endmacro %}{{ f() }}", ERR_INPUT,
           "inside a macro");
    ok(render("{% if false %}{{ s | truncate(2) }}{% endif %}", 1000, 100));
}

/* The texts are jinja2's: only + escapes, because the settings of transformers do not. */
Test(jinja, text_marked_as_safe_escapes_what_is_added_to_it)
{
    static const struct {
        const char *template, *text;
    } cases[] = {
        {"{{ ({'a': '<'} | tojson | safe) + '\\n<' }}", "{\"a\": \"<\"}\n&lt;"},
        {"{{ '<b>' + ('<i>' | safe) + '&' }}", "&lt;b&gt;<i>&amp;"},
        {"{{ ('<i>' | safe) ~ '<b>' }}", "<i><b>"},
        {"{{ ('<' | e) + ('>' | e) }}", "&lt;&gt;"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct jinja *j;
        struct bytes out = {.max = 1000};
        json_t *none = json_object();
        ok(jinja_open(&j, cases[i].template, strlen(cases[i].template)));
        ok(jinja_render(&out, NULL, j, none, &(struct jinja_options){0}));
        cr_expect_str_eq((char *)out.data, cases[i].text);
        json_decref(none);
        bytes_close(&out);
        jinja_close(j);
    }
}
