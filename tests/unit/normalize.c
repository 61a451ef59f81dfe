#include "engine/tokens/normalize.h"
#include "base/json.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static void check(const char *json, const char *text, const char *want)
{
    struct normalize n = {0};
    struct normalize_buffers buffers = {0};
    struct arena arena = {0};
    struct piece in = {.text = text, .size = (uint32_t)strlen(text)}, out;
    json_t *value;
    ok(json_parse(&value, json, strlen(json), "normalizer"));
    ok(normalize_read(&n, &arena, value));
    ok(normalize_run(&out, &n, &in, &buffers));
    cr_assert_eq(out.size, strlen(want), "\"%s\" gave \"%.*s\"", text, (int)out.size, out.text);
    cr_assert(memcmp(out.text, want, out.size) == 0, "\"%s\" gave \"%.*s\"", text, (int)out.size,
              out.text);
    for (uint32_t i = 0; i < out.size; i++) /* places never go back, and lie in the text */
        cr_assert(piece_origin(&out, i) < in.size &&
                  (i == 0 || piece_origin(&out, i) >= piece_origin(&out, i - 1)));
    normalize_buffers_close(&buffers);
    json_decref(value);
    arena_close(&arena);
}

Test(normalize, forms_are_unicodes)
{
    /* From NormalizationTest.txt: composition, canonical order,
     * singletons, Hangul, compatibility. */
    check("{\"type\":\"NFC\"}", "e\xCC\x81 x", "\xC3\xA9 x");
    check("{\"type\":\"NFC\"}", "D\xCC\x87\xCC\xA3", "\xE1\xB8\x8C\xCC\x87");
    check("{\"type\":\"NFC\"}", "\xE2\x84\xAB", "\xC3\x85");
    check("{\"type\":\"NFC\"}", "\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81");
    check("{\"type\":\"NFC\"}", "\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC"); /* excluded */
    check("{\"type\":\"NFC\"}", "plain \xE6\x97\xA5", "plain \xE6\x97\xA5");
    check("{\"type\":\"NFD\"}", "\xC3\xA9", "e\xCC\x81");
    check("{\"type\":\"NFKC\"}", "\xEF\xAC\x81 \xC2\xBD",
          "fi 1\xE2\x81\x84"
          "2");
    check("{\"type\":\"NFKD\"}", "\xEF\xBC\xA1", "A");
    check("null", "e\xCC\x81", "e\xCC\x81");
}

Test(normalize, texts_are_put_in_front_replaced_stripped_and_lowered)
{
    check("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "a", "_a");
    check("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "", "");
    check("{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},\"content\":\"__\"}", " a  b",
          "__a____b");
    check("{\"type\":\"Strip\",\"strip_left\":true,\"strip_right\":true}", "\t a b\xC2\xA0\n",
          "a b");
    check("{\"type\":\"Strip\",\"strip_left\":false,\"strip_right\":true}", " a ", " a");
    check("{\"type\":\"Lowercase\"}", "A\xC3\x89\xC4\xB0", "a\xC3\xA9i\xCC\x87");
    check("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\",\"prepend\":\"_\"},"
          "{\"type\":\"Replace\",\"pattern\":{\"String\":\"_\"},\"content\":\"=\"}]}",
          "a_b", "=a=b");
}

Test(normalize, refuses_unknown_steps_by_name)
{
    static const char *const cases[][2] = {
        {"{\"type\":\"Nmt\"}", "normalizer Nmt"},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"a\"},\"content\":\"\"}", "String pattern"},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\"\"}", "is empty"},
        {"{\"type\":\"Prepend\"}", "expected a string"},
        {"{}", "type is missing"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct normalize n;
        struct arena arena = {0};
        json_t *value;
        ok(json_parse(&value, cases[i][0], strlen(cases[i][0]), "case"));
        refused(normalize_read(&n, &arena, value), ERR_INPUT, cases[i][1]);
        json_decref(value);
        arena_close(&arena);
    }
}
