/* Chat templates against jinja2 with the settings of transformers: the cases of tests/golden/chat,
 * which tests/oracle/chat_golden.py makes. A case has "text"; or "error", the text that the
 * template gives to raise_exception; or "fails", an error of jinja2 itself, whose wording is not
 * compared. An expression with "refused" is rendered by jinja2 but not implemented here. */
#include "engine/tokens/chat.h"
#include "base/file.h"
#include "base/json.h"
#include "engine/tokens/jinja.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOW = 1721952000 }; /* 2024-07-26, the date of chat_golden.py */

static json_t *open_cases(const char *name)
{
    char path[SUPPORT_PATH_BYTES], part[64];
    json_t *json = NULL;
    (void)snprintf(part, sizeof part, "tests/golden/chat/%s", name);
    support_source(path, sizeof path, part);
    ok(json_open(&json, path, 1 << 20));
    return json;
}

static err open_template(struct jinja **out, const char *name)
{
    char path[SUPPORT_PATH_BYTES], part[64], *text = NULL;
    size_t size;
    (void)snprintf(part, sizeof part, "tests/golden/chat/%s.jinja", name);
    support_source(path, sizeof path, part);
    ok(file_read_all(&text, &size, path, 1 << 20));
    err e = jinja_open(out, text, size);
    free(text);
    return e;
}

/* err_make() replaces control characters, so the comparison stops at the first. */
static bool has_text(const char *error, const char *part)
{
    char head[ERR_TEXT_BYTES];
    size_t size = strcspn(part, "\n");
    (void)snprintf(head, sizeof head, "%.*s", (int)(size < 200 ? size : 200), part);
    return strstr(error, head) != NULL;
}

static size_t check_spans(const struct jinja_spans *got, const json_t *want, const char *name)
{
    size_t bad = got->count != json_array_size(want);
    for (size_t i = 0; i < got->count && !bad; i++) {
        const json_t *span = json_array_get(want, i);
        bad = got->span[i].begin != (size_t)json_integer_value(json_array_get(span, 0)) ||
              got->span[i].end != (size_t)json_integer_value(json_array_get(span, 1));
    }
    if (bad) (void)fprintf(stderr, "%s: other spans\n", name);
    return bad;
}

/* Returns 1 for a case that differs, after printing it; a refused case must be refused with its
 * line. */
static size_t check(const json_t *one, const struct jinja *j, err opened, const json_t *variables,
                    const char *name)
{
    struct bytes out = {.max = 1 << 20};
    struct jinja_spans spans = {0};
    const struct jinja_options options = {.now = NOW};
    const char *text = json_string_value(json_object_get(one, "text"));
    const char *error = json_string_value(json_object_get(one, "error"));
    bool refusal = json_is_true(json_object_get(one, "refused"));
    err e = err_is(opened) ? opened : jinja_render(&out, &spans, j, variables, &options);
    size_t bad = 0;
    if (refusal)
        bad = e.kind != ERR_INPUT || strstr(e.text, "line ") == NULL;
    else if (text)
        bad = err_is(e) || out.size != strlen(text) || memcmp(out.data, text, out.size) != 0;
    else
        bad = e.kind != ERR_INPUT || (error && !has_text(e.text, error));
    if (bad)
        (void)fprintf(stderr, "%s:\n  expected %s\n  got      %.*s %s\n", name,
                      refusal ? "a refusal"
                      : text  ? text
                      : error ? error
                              : "an error",
                      (int)out.size, out.data ? (const char *)out.data : "",
                      err_is(e) ? e.text : "");
    const json_t *want = json_object_get(one, "spans");
    if (!bad && text && !refusal && want) bad = check_spans(&spans, want, name);
    jinja_spans_close(&spans);
    bytes_close(&out);
    return bad;
}

/* transformers gives tools and documents to every template; they are None without a value. */
static json_t *variables_of(const json_t *conversation, const json_t *tokens)
{
    json_t *v = json_pack("{s:n, s:n}", "tools", "documents");
    cr_assert(v != NULL);
    cr_assert_eq(json_object_update(v, (json_t *)tokens), 0);
    if (json_object_get(conversation, "variables"))
        cr_assert_eq(json_object_update(v, json_object_get(conversation, "variables")), 0);
    static const char *const keys[] = {"messages", "tools", "add_generation_prompt"};
    for (int i = 0; i < 3; i++)
        if (json_object_get(conversation, keys[i]))
            cr_assert_eq(json_object_set(v, keys[i], json_object_get(conversation, keys[i])), 0);
    return v;
}

Test(chat, renders_public_templates_as_jinja2_does)
{
    json_t *root = open_cases("cases.json"), *one;
    const json_t *templates = json_object_get(root, "templates");
    const json_t *conversations = json_object_get(root, "conversations");
    const char *opened = "";
    struct jinja *j = NULL;
    err opening = ERR_NONE;
    size_t i, bad = 0;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        char name[128];
        const char *template = json_string_value(json_object_get(one, "template"));
        const char *conversation = json_string_value(json_object_get(one, "conversation"));
        if (strcmp(template, opened) != 0) { /* cases are sorted by template */
            jinja_close(j);
            j = NULL;
            opening = open_template(&j, template);
            opened = template;
        }
        (void)snprintf(name, sizeof name, "%s, %s", template, conversation);
        json_t *variables = variables_of(json_object_get(conversations, conversation),
                                         json_object_get(templates, template));
        bad += check(one, j, opening, variables, name);
        json_decref(variables);
    }
    jinja_close(j);
    cr_assert_eq(bad, 0, "%zu of %zu cases differ", bad, i);
    cr_assert_geq(i, 30 * 6);
    json_decref(root);
}

/* The same conversations as rows of data: the same text, and what the template marks is learned. */
static size_t check_row(const json_t *one, const struct chat *c, const json_t *conversation,
                        const char *name)
{
    struct bytes out = {.max = 1 << 20}, plain = {.max = 1 << 20};
    struct chat_spans spans = {0};
    const json_t *variables = json_object_get(conversation, "variables");
    const json_t *want = json_object_get(one, "spans");
    const char *text = json_string_value(json_object_get(one, "text"));
    const struct chat_input input = {
        .messages = json_object_get(conversation, "messages"),
        .tools = json_object_get(conversation, "tools"),
        .documents = json_object_get(variables, "documents"),
        .variables = variables,
        .generate = json_is_true(json_object_get(conversation, "add_generation_prompt"))};
    err e = chat_render(&plain, NULL, c, &input);
    size_t bad =
        text ? err_is(e) || plain.size != strlen(text) || memcmp(plain.data, text, plain.size) != 0
             : e.kind != ERR_INPUT;
    e = chat_render(&out, &spans, c, &input);
    if (err_is(e)) /* a turn that is not in the text is refused, never left out */
        bad += e.kind != ERR_INPUT || out.size != 0 || spans.count != 0;
    else if (text)
        bad += out.size != strlen(text) || memcmp(out.data, text, out.size) != 0;
    for (size_t i = 0; want && !err_is(e) && i < spans.count; i++) {
        const json_t *span = json_array_get(want, i);
        bad += spans.span[i].begin != (size_t)json_integer_value(json_array_get(span, 0)) ||
               spans.span[i].end != (size_t)json_integer_value(json_array_get(span, 1));
    }
    if (want && !err_is(e)) bad += spans.count != json_array_size(want);
    if (bad) (void)fprintf(stderr, "%s: %s\n", name, err_is(e) ? e.text : "another text or span");
    chat_spans_close(&spans);
    bytes_close(&plain);
    bytes_close(&out);
    return bad != 0;
}

Test(chat, renders_rows_of_data_as_jinja2_does)
{
    json_t *root = open_cases("cases.json"), *one;
    const json_t *conversations = json_object_get(root, "conversations");
    const char *opened = "";
    struct chat *c = NULL;
    size_t i, bad = 0;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        char name[128], *text = NULL, path[SUPPORT_PATH_BYTES];
        size_t size;
        const char *template = json_string_value(json_object_get(one, "template"));
        const char *conversation = json_string_value(json_object_get(one, "conversation"));
        if (strcmp(template, opened) != 0) {
            chat_close(c);
            (void)snprintf(name, sizeof name, "tests/golden/chat/%s.jinja", template);
            support_source(path, sizeof path, name);
            ok(file_read_all(&text, &size, path, 1 << 20));
            ok(chat_open_text(&c, text, size,
                              json_object_get(json_object_get(root, "templates"), template)));
            free(text);
            opened = template;
        }
        (void)snprintf(name, sizeof name, "%s, %s", template, conversation);
        bad += check_row(one, c, json_object_get(conversations, conversation), name);
    }
    chat_close(c);
    cr_assert_eq(bad, 0, "%zu of %zu cases differ", bad, i);
    json_decref(root);
}

Test(chat, evaluates_expressions_as_jinja2_does)
{
    json_t *root = open_cases("expressions.json"), *one;
    json_t *variables =
        json_pack("{s:n, s:n, s:b, s:O}", "tools", "documents", "add_generation_prompt", 0,
                  "messages", json_object_get(root, "messages"));
    cr_assert_eq(json_object_update(variables, json_object_get(root, "variables")), 0);
    size_t i, bad = 0, refusals = 0;
    json_array_foreach(json_object_get(root, "cases"), i, one)
    {
        const char *template = json_string_value(json_object_get(one, "template"));
        struct jinja *j = NULL;
        err opening = jinja_open(&j, template, strlen(template));
        bad += check(one, j, opening, variables, template);
        refusals += json_is_true(json_object_get(one, "refused"));
        jinja_close(j);
    }
    cr_assert_eq(bad, 0, "%zu of %zu expressions differ", bad, i);
    cr_assert_geq(i - refusals, 150);
    json_decref(variables);
    json_decref(root);
}
