/* Sizes, times, numbers, names, and the nearest word. */
#include "base/text.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

Test(text, reads_sizes)
{
    static const struct {
        const char *text;
        uint64_t value;
    } good[] = {{"512", 512},
                {"0", 0},
                {"40MB", 40000000},
                {"2GiB", 2147483648ull},
                {"1.5KiB", 1536},
                {"40 MB", 40000000},
                {"3b", 3},
                {"0.1kB", 100},
                {"16777215TiB", 18446742974197923840ull},
                {"18446744073709551615", UINT64_MAX}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t value = 1;
        ok(text_parse_size(&value, good[i].text));
        cr_expect_eq(value, good[i].value, "%s: %lu", good[i].text, (unsigned long)value);
    }
    static const char *const bad[] = {"",
                                      "MB",
                                      "-1",
                                      "+1",
                                      "1.MB",
                                      "1..5MB",
                                      "1XB",
                                      "1MBs",
                                      " 1",
                                      "0x10",
                                      "18446744073709551616",
                                      "16777216TiB",
                                      "1e3",
                                      "1M B"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t value = 77;
        refused(text_parse_size(&value, bad[i]), ERR_INPUT,
                "is not a size: expected a number such as");
        cr_expect_eq(value, 77);
    }
}

Test(text, reads_durations)
{
    static const struct {
        const char *text;
        uint64_t ms;
    } good[] = {{"90s", 90000},    {"15m", 900000},  {"2h", 7200000}, {"250ms", 250},   {"3", 3000},
                {"1.5h", 5400000}, {"1d", 86400000}, {"0.001", 1},    {"10min", 600000}};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        uint64_t ms = 1;
        ok(text_parse_duration_ms(&ms, good[i].text));
        cr_expect_eq(ms, good[i].ms, "%s: %lu", good[i].text, (unsigned long)ms);
    }
    static const char *const bad[] = {"", "s", "-1s", "5 weeks", "99999999999999999999s", "1h30m"};
    uint64_t ms = 77;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(text_parse_duration_ms(&ms, bad[i]), ERR_INPUT, "is not a duration");
    cr_expect_eq(ms, 77);
}

Test(text, reads_numbers_in_their_range)
{
    int64_t n = 5;
    double x = 5;
    ok(text_parse_int(&n, "-12", -12, 12));
    cr_expect_eq(n, -12);
    refused(text_parse_int(&n, "13", -12, 12), ERR_INPUT, "13 is out of range: expected -12 to 12");
    refused(text_parse_int(&n, "99999999999999999999", 0, INT64_MAX), ERR_INPUT, "out of range");
    refused(text_parse_int(&n, "1.0", 0, 9), ERR_INPUT, "is not a whole number");
    refused(text_parse_int(&n, "", 0, 9), ERR_INPUT, "is not a whole number");
    refused(text_parse_int(&n, " 1", 0, 9), ERR_INPUT, "is not a whole number");
    cr_expect_eq(n, -12);
    ok(text_parse_num(&x, "2e-4", 0, 1));
    cr_expect_eq(x, 2e-4);
    static const char *const bad[] = {"nan", "inf", "0x1p3", "1,5", "", " 1", "1e999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refused(text_parse_num(&x, bad[i], 0, 1), ERR_INPUT, "is not a number");
    refused(text_parse_num(&x, "1.01", 0, 1), ERR_INPUT, "out of range: expected 0 to 1");
    ok(text_parse_part(&x, "12.5 %", 0, 1));
    cr_expect_eq(x, 0.125);
    ok(text_parse_part(&x, "0.5", 0, 1));
    cr_expect_eq(x, 0.5);
    refused(text_parse_part(&x, "101%", 0, 1), ERR_INPUT, "out of range: expected 0 to 1");
    refused(text_parse_part(&x, "%", 0, 1), ERR_INPUT, "is not a number");
}

Test(text, writes_sizes_and_durations)
{
    char text[32];
    static const struct {
        uint64_t n;
        const char *size;
    } sizes[] = {
        {0, "0 B"},         {999, "999 B"},        {1000, "1.0 kB"},          {999949, "999.9 kB"},
        {999950, "1.0 MB"}, {40200000, "40.2 MB"}, {UINT64_MAX, "18446.7 PB"}};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        text_size(text, sizeof text, sizes[i].n);
        cr_expect_str_eq(text, sizes[i].size);
    }
    static const struct {
        uint64_t ms;
        const char *time;
    } times[] = {{0, "0.0s"},       {1250, "1.2s"},      {9999, "9.9s"},     {59999, "59s"},
                 {125000, "2m05s"}, {3599999, "59m59s"}, {3600000, "1h00m"}, {90000000, "25h00m"}};
    for (size_t i = 0; i < sizeof times / sizeof *times; i++) {
        text_duration(text, sizeof text, times[i].ms);
        cr_expect_str_eq(text, times[i].time);
    }
}

Test(text, finds_the_nearest_word)
{
    static const char *const words[] = {"train", "tokenize", "eval", "export", "rank", "adapter"};
    static const struct {
        const char *word, *nearest;
    } cases[] = {{"trian", "train"},  {"tokenise", "tokenize"}, {"evall", "eval"}, {"rnak", "rank"},
                 {"adap", "adapter"}, {"xport", "export"},      {"train", "train"}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const char *found = text_nearest(cases[i].word, words, 6);
        cr_assert_not_null(found, "%s", cases[i].word);
        cr_expect_str_eq(found, cases[i].nearest);
    }
    static const char *const groups[] = {"run list", "simulate plan", "simulate", "simulate all"};
    cr_expect_str_eq(text_nearest("simulat", groups, 4), "simulate");
    cr_expect_null(text_nearest("zebra", words, 6));
    cr_expect_null(text_nearest("", words, 6));
    cr_expect_null(text_nearest("train", words, 0));
    char longer[200];
    memset(longer, 'a', sizeof longer);
    longer[199] = 0;
    cr_expect_null(text_nearest(longer, words, 6));
}

Test(text, knows_utf8)
{
    static const char *const good[] = {"",
                                       "abc",
                                       "\xc3\xa9",
                                       "\xe2\x82\xac",
                                       "\xf0\x9f\x98\x80",
                                       "\xed\x9f\xbf",
                                       "\xee\x80\x80",
                                       "\xf4\x8f\xbf\xbf",
                                       "\xc2\x80"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        cr_expect(text_is_utf8(good[i], strlen(good[i])), "good %zu", i);
    static const char *const bad[] = {"\x80",
                                      "\xc3",
                                      "\xc0\x80",
                                      "\xc1\xbf",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "\xe2\x82",
                                      "a\xff",
                                      "\xe2\x28\xa1"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!text_is_utf8(bad[i], strlen(bad[i])), "bad %zu", i);
    cr_expect(text_is_utf8("a\0b", 3));
}

Test(text, of_other_machines_cannot_move_the_cursor_or_turn_the_line)
{
    static const char *const pairs[][2] = {
        {"round 3 of 10: ann, b\xc3\xb6rge", "round 3 of 10: ann, b\xc3\xb6rge"},
        {"\x1b[2Jgone\x07\x7f", "?[2Jgone??"},
        {"two\nlines\tof\r text", "two lines of  text"},
        {"a\xc2\x9b"
         "31m",
         "a?31m"},
        {"txt\xe2\x80\xae"
         "exe\xe2\x81\xa6.\xe2\x80\x8f\xe2\x80\xa8",
         "txt?exe?.??"},
        {"euro \xe2\x82\xac, dash \xe2\x80\x94", "euro \xe2\x82\xac, dash \xe2\x80\x94"},
        {"not UTF-8 \x9b"
         "A \xe2\x80",
         "not UTF-8 ?A ??"},
        {"", ""},
    };
    for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++) {
        char text[64];
        snprintf(text, sizeof text, "%s", pairs[i][0]);
        text_tame(text);
        cr_expect_str_eq(text, pairs[i][1]);
    }
}

Test(text, names_are_safe_in_paths)
{
    cr_expect(text_is_name("hospital-a_1.x", 64));
    cr_expect(text_is_name("a", 1) && !text_is_name("ab", 1));
    static const char *const bad[] = {"",    ".",   "..",  "-a",       ".hidden",
                                      "a/b", "a b", "a\n", "\xc3\xa9", "a=b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!text_is_name(bad[i], 64), "%s", bad[i]);
}

Test(text, ends_and_control_characters_are_found)
{
    static const struct {
        const char *text;
        size_t size, control;
    } cases[] = {{"\n", 1, 1},
                 {"\x7f", 1, 1},
                 {"a", 1, 0},
                 {"", 0, 0},
                 {"\xc2\x9b"
                  "31m",
                  5, 2},
                 {"\xc2\xa0", 2, 0},
                 {"\xc2", 1, 0},
                 {"\xe2\x80\x8e", 3, 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_expect_eq(text_control(cases[i].text, cases[i].size), cases[i].control, "case %zu", i);
    cr_expect(text_ends_with("a.json", ".json") && text_ends_with("a", ""));
    cr_expect(!text_ends_with("json", ".json") && !text_ends_with("a.json5", ".json"));
}
