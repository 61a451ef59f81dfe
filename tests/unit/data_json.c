#include "engine/tokens/data_json.h"
#include "engine/tokens/data_member.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static const struct data_json_known known = {data_member_of_row, data_member_of_message};

static err parse(json_t **out, const char *text)
{
    return data_json_parse(out, text, strlen(text), &known);
}

Test(data_json, members_that_are_not_read_may_hold_anything_valid)
{
    static const char *const values[] = {
        "18446744073709551615",
        "-9223372036854775809",
        "1e400",
        "-1.5E+999",
        "\"a\\u0000b\"",
        "\"\\ud800\"",
        "{\"a\":{\"b\":[1,2,99999999999999999999]},\"c\":\"}\"}",
        "{\"a\":1,\"a\":2}",
        "NaN",
        "-Infinity",
        "[NaN,[Infinity]]",
    };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        char text[256];
        json_t *row;
        (void)snprintf(text, sizeof text, "{ \"x\" : %s , \"text\":\"kept\",\"n\":12}", values[i]);
        err e = parse(&row, text);
        cr_assert_not(err_is(e), "%s: %s", text, e.text);
        cr_expect_str_eq(json_string_value(json_object_get(row, "text")), "kept");
        cr_expect_eq(json_integer_value(json_object_get(row, "n")), 12, "others stay as they are");
        json_decref(row);
        (void)snprintf(text, sizeof text,
                       "{\"messages\":[{\"role\":\"user\",\"content\":\"kept\",\"x\":%s,\"y\":3}]}",
                       values[i]);
        e = parse(&row, text);
        cr_assert_not(err_is(e), "%s: %s", text, e.text);
        const json_t *m = json_array_get(json_object_get(row, "messages"), 0);
        cr_expect_str_eq(json_string_value(json_object_get(m, "content")), "kept");
        cr_expect_eq(json_integer_value(json_object_get(m, "y")), 3);
        json_decref(row);
    }
}

Test(data_json, members_that_are_read_are_refused_by_reason)
{
    static const struct {
        const char *text, *part;
    } cases[] = {
        {"{\"text\":1e400}", "a number is out of range"},
        {"{\"input_ids\":[18446744073709551615]}", "a number is out of range"},
        {"{\"text\":\"a\\u0000\"}", "U+0000"},
        {"{\"text\":NaN}", "Python writes NaN"},
        {"{\"messages\":[{\"content\":Infinity}]}", "Python writes NaN and Infinity"},
        {"{\"text\":\"a\",\"text\":\"b\"}", "not JSON: duplicate object key"},
        {"{\"text\":\"a\"", "a row of JSON Lines is one line"},
        {"{\"x\":1e400", "not JSON"},
        {"{\"x\":01}", "not JSON"},
        {"{\"x\":1e400,}", "not JSON"},
        {"{\"x\":1e400,\"y\":[1,,2]}", "not JSON"},
        {"{\"x\":1e400,\"y\":nul}", "not JSON"},
        {"{\"x\":1e400,\"y\":\"\\x\"}", "not JSON"},
        {"{\"x\":1e400} {}", "not JSON"},
        {"{\"x\":\"\xff\"}", "not JSON"},
        {"", "not JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *row = NULL;
        err e = parse(&row, cases[i].text);
        cr_expect(err_is(e) && e.kind == ERR_INPUT && strstr(e.text, cases[i].part), "%s: %s",
                  cases[i].text, e.text);
        cr_expect_null(row);
    }
}

Test(data_json, nesting_has_a_bound)
{
    char *text = malloc(20000);
    for (int deep = 0; deep < 2; deep++) {
        int depth = deep ? 5000 : 3000; /* jansson stops at 2048, a skipped value at 4096 */
        memcpy(text, "{\"x\":", 5);
        memset(text + 5, '[', (size_t)depth);
        memset(text + 5 + depth, ']', (size_t)depth);
        (void)snprintf(text + 5 + 2 * depth, 64, "%s", ",\"text\":\"a\"}");
        json_t *row = NULL;
        err e = parse(&row, text);
        cr_expect_eq(err_is(e), deep == 1, "%s", e.text);
        if (!err_is(e)) json_decref(row);
    }
    free(text);
}
