/* JSON with errors that name the place, and canonical text. */
#include "base/json.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static json_t *parse(const char *text)
{
    json_t *value = NULL;
    ok(json_parse(&value, text, strlen(text), "t"));
    return value;
}

Test(json, says_where_it_broke)
{
    json_t *value = NULL;
    char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "config.json"));
    ok(file_write(path, "{\n \"a\": 1,\n}", 12, false));
    refused(json_open(&value, path, 100), ERR_INPUT, "config.json:3:1: not JSON");
    refused(json_open(&value, path, 5), ERR_INPUT, "expected at most 5");
    refused(json_parse(&value, "{\"a\":1,\"a\":2}", 13, "t"), ERR_INPUT,
            "t:1:10: not JSON: duplicate");
    refused(json_parse(&value, "", 0, "t"), ERR_INPUT, "not JSON");
    refused(json_parse(&value, "1 2", 3, "t"), ERR_INPUT, "not JSON");
    cr_expect_null(value);
    support_dir_remove(dir);
}

/* transformers writes 10^30 for a length without a limit. */
Test(json, whole_numbers_beyond_64_bits_are_reals)
{
    static const char text[] =
        "{\"model_max_length\": 1000000000000000019884624838656, \"a\": -99999999999999999999,"
        " \"b\": [123456789012345678901e2, 0.1234567890123456789012, 9223372036854775807],"
        " \"text\": \"say \\\"99999999999999999999\\\"\"}";
    json_t *value = NULL;
    int64_t whole;
    ok(json_parse(&value, text, strlen(text), "t"));
    cr_expect_eq(json_real_value(json_object_get(value, "model_max_length")), 1e30);
    cr_expect_eq(json_real_value(json_object_get(value, "a")), -1e20);
    const json_t *b = json_object_get(value, "b");
    cr_expect_eq(json_real_value(json_array_get(b, 0)), 123456789012345678901e2);
    cr_expect_eq(json_real_value(json_array_get(b, 1)), 0.1234567890123456789012);
    cr_expect_eq(json_number_value(json_array_get(b, 2)), 9223372036854775807.0);
    cr_expect_str_eq(json_string_value(json_object_get(value, "text")),
                     "say \"99999999999999999999\"");
    refused(json_get_int(&whole, value, "model_max_length", 0, INT64_MAX, "t"), ERR_INPUT,
            "t: model_max_length: expected a whole number");
    json_decref(value);
}

Test(json, required_and_optional_members)
{
    json_t *o = parse(
        "{\"n\":4,\"whole\":4.0,\"x\":0.5,\"s\":\"t\",\"b\":true,\"null\":null,\"big\":1e300}");
    int64_t n = 9;
    double x = 9;
    const char *s = "kept";
    bool b = false;
    ok(json_get_int(&n, o, "n", 0, 10, "f"));
    cr_expect_eq(n, 4);
    ok(json_get_int(&n, o, "whole", 0, 10, "f"));
    ok(json_get_num(&x, o, "n", "f"));
    cr_expect_eq(x, 4);
    ok(json_get_num(&x, o, "x", "f"));
    ok(json_get_str(&s, o, "s", "f"));
    ok(json_opt_bool(&b, o, "b", "f"));
    cr_expect(x == 0.5 && strcmp(s, "t") == 0 && b);
    ok(json_opt_int(&n, o, "absent", 0, 1, "f"));
    ok(json_opt_num(&x, o, "null", "f"));
    ok(json_opt_str(&s, o, "null", "f"));
    ok(json_opt_bool(&b, o, "absent", "f"));
    cr_expect(n == 4 && x == 0.5 && strcmp(s, "t") == 0 && b, "a default was changed");
    refused(json_get_int(&n, o, "absent", 0, 1, "f.json: rope"), ERR_INPUT,
            "f.json: rope: absent is missing");
    refused(json_get_str(&s, o, "null", "f"), ERR_INPUT, "f: null is missing");
    refused(json_get_int(&n, o, "x", 0, 1, "f"), ERR_INPUT, "f: x: expected a whole number");
    refused(json_get_int(&n, o, "big", 0, 1, "f"), ERR_INPUT, "expected a whole number");
    refused(json_get_int(&n, o, "n", 5, 9, "f"), ERR_INPUT,
            "f: n: 4 is out of range: expected 5 to 9");
    refused(json_opt_num(&x, o, "s", "f"), ERR_INPUT, "f: s: expected a number");
    refused(json_opt_str(&s, o, "n", ""), ERR_INPUT, "n: expected a string");
    refused(json_opt_bool(&b, o, "n", "f"), ERR_INPUT, "expected true or false");
    json_decref(o);
    o = parse("[1]");
    refused(json_get_int(&n, o, "n", 0, 1, "f"), ERR_INPUT, "f: n is missing");
    json_decref(o);
}

Test(json, writes_one_text_for_one_value)
{
    struct bytes a = {.max = 1000}, b = {.max = 1000};
    json_t *x = parse("{\"b\": [1, 2.5, \"\\u00e9/\"], \"a\" : {}}"),
           *y = parse("{\"a\":{},\"b\":[1,2.5,\"\xc3\xa9/\"]}");
    ok(json_write(&a, x));
    ok(json_write(&b, y));
    cr_expect_str_eq((char *)a.data, "{\"a\":{},\"b\":[1,2.5,\"\xc3\xa9/\"]}");
    cr_expect_str_eq((char *)a.data, (char *)b.data);
    struct bytes small = {.max = 10};
    ok(bytes_append(&small, "kept", 4));
    refused(json_write(&small, x), ERR_LIMIT, "at most 10 bytes");
    cr_expect_str_eq((char *)small.data, "kept");
    bytes_clear(&a);
    json_t *third = json_real(1.0 / 3), *back = NULL;
    ok(json_write(&a, third));
    ok(json_parse(&back, (char *)a.data, a.size, "t"));
    cr_expect_eq(json_real_value(back), 1.0 / 3);
    json_decref(x);
    json_decref(y);
    json_decref(third);
    json_decref(back);
    bytes_close(&a);
    bytes_close(&b);
    bytes_close(&small);
}
