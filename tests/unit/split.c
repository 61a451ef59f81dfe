#include "engine/tokens/split.h"
#include "base/json.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static err gather(void *object, const struct piece *word)
{
    struct bytes *out = object;
    TRY(bytes_append(out, word->text, word->size));
    return bytes_append(out, "|", 1);
}

static void check_split(const struct split *s, const char *text, const char *want)
{
    struct split_scratch scratch = {0};
    struct bytes out = {.max = 4096};
    struct piece in = {.text = text, .size = (uint32_t)strlen(text)};
    ok(split_scratch_open(&scratch));
    ok(split_run(s, &scratch, &in, &(struct split_sink){.word = gather, .object = &out}));
    ok(bytes_append(&out, "", 1));
    cr_assert_str_eq((char *)out.data, want, "\"%s\"", text);
    bytes_close(&out);
    split_scratch_close(&scratch);
}

static void check_json(const char *json, const char *text, const char *want)
{
    struct split s = {0};
    struct arena arena = {0};
    json_t *value;
    ok(json_parse(&value, json, strlen(json), "pre_tokenizer"));
    ok(split_read(&s, &arena, value));
    check_split(&s, text, want);
    json_decref(value);
    split_close(&s);
    arena_close(&arena);
}

static void check_named(const char *name, const char *text, const char *want)
{
    struct split s = {0};
    ok(split_named(&s, name));
    check_split(&s, text, want);
    split_close(&s);
}

Test(split, families_part_words_as_their_patterns_say)
{
    check_named("gpt-2",
                "I'll  go, 1234 m\xC3\xBC"
                "de!\n\nx",
                "I|'ll| | go|,| 1234| m\xC3\xBC"
                "de|!|\n|\n|x|");
    check_named("llama-bpe", "I'LL 1234567.\r\n\r\n  x", "I|'LL| |123|456|7|.\r\n\r\n| | x|");
    check_named("qwen2", "a12 'S (b)", "a|1|2| '|S| (|b|)|");
    check_named("smollm", "a12 b", "a|1|2| b|");
    check_named("default", "a,b 1234", "a|,|b| |123|4|");
}

Test(split, the_last_space_of_a_run_belongs_to_the_next_word)
{
    check_named("gpt-2", "a   b", "a|  | b|");
    check_named("qwen2", "a   b", "a|  | b|");
    check_named("gpt-2", "a   ", "a|   |");
}

Test(split, white_space_is_unicodes_not_the_mongolian_separator)
{
    check_named("gpt-2",
                "a\xE2\x80\x83"
                "b\xE1\xA0\x8E"
                "c",
                "a|\xE2\x80\x83|b|\xE1\xA0\x8E|c|");
    check_named("gpt-2",
                "a\xE2\x80\x83\xE2\x80\x83"
                "b",
                "a|\xE2\x80\x83|\xE2\x80\x83|b|");
    check_named("gpt-2", "!\xE1\xA0\x8E!", "!\xE1\xA0\x8E!|");
}

#define BEHAVIOR(name)                                                                             \
    "{\"type\":\"Split\",\"pattern\":{\"String\":\"-\"},\"behavior\":\"" name "\",\"invert\":"     \
    "false}"

Test(split, behaviours_are_those_of_the_format)
{
    check_json(BEHAVIOR("Isolated"), "a-b--c", "a|-|b|-|-|c|");
    check_json(BEHAVIOR("Removed"), "a-b--c", "a|b|c|");
    check_json(BEHAVIOR("MergedWithPrevious"), "a-b--c", "a-|b-|-|c|");
    check_json(BEHAVIOR("MergedWithNext"), "a-b--c", "a|-b|-|-c|");
    check_json(BEHAVIOR("Contiguous"), "a-b--c", "a|-|b|--|c|");
}

Test(split, metaspace_marks_words)
{
    check_json("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"always\"}",
               "a b  c", "_a|_b|_|_c|");
    check_json("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"never\"}", "a b",
               "a|_b|");
    check_json("{\"type\":\"Metaspace\",\"replacement\":\"_\",\"prepend_scheme\":\"first\","
               "\"split\":false}",
               " a b", "_a_b|");
}

/* GPT-2's bytes_to_unicode(): printable bytes stand for themselves, the others get the code points
 * from 256 on in the order of their values. */
static uint32_t letter_of_byte(uint8_t byte)
{
    uint32_t others = 0;
    for (uint32_t b = 0; b <= byte; b++) {
        bool itself = (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
        if (b == byte && itself) return b;
        others += !itself;
    }
    return 255 + others;
}

Test(split, letters_stand_for_all_bytes_and_back)
{
    for (int i = 0; i < 256; i++)
        cr_assert_eq(split_byte_of_letter(letter_of_byte((uint8_t)i)), i);
    cr_assert_eq(split_byte_of_letter(0x120), ' ');
    cr_assert_eq(split_byte_of_letter(0x10A), '\n');
    cr_assert_eq(split_byte_of_letter(0x143), 0xAD);
    cr_assert_eq(split_byte_of_letter(' '), -1);
    cr_assert_eq(split_byte_of_letter(0x144), -1);
}

Test(split, refuses_unknown_parts_by_name)
{
    static const struct {
        const char *json, *part;
    } cases[] = {
        {"{\"type\":\"BertPreTokenizer\"}", "BertPreTokenizer"},
        {"{\"type\":\"Split\",\"pattern\":{}}", "expected a Regex or a String"},
        {"{\"type\":\"Split\",\"pattern\":{\"Regex\":\"[\"}}", "pattern ["},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"\"}}", "empty"},
        {"{\"type\":\"Split\",\"pattern\":{\"String\":\"a\"},\"behavior\":\"X\"}", "behavior X"},
        {"{\"type\":\"Metaspace\",\"prepend_scheme\":\"X\"}", "prepend_scheme X"},
        {"{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"ByteLevel\"},{\"type\":\"Digits\"}]"
         "}",
         "after ByteLevel"},
        {"{\"type\":\"Sequence\"}", "expected a list"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct split s = {0};
        struct arena arena = {0};
        json_t *value;
        ok(json_parse(&value, cases[i].json, strlen(cases[i].json), "case"));
        refused(split_read(&s, &arena, value), ERR_INPUT, cases[i].part);
        json_decref(value);
        split_close(&s);
        arena_close(&arena);
    }
    struct split s = {0};
    refused(split_named(&s, "no-such"), ERR_INPUT, "pre-tokenizer no-such is not known");
    refused(split_named(&s, " "), ERR_INPUT, "not known");
    refused(split_named(&s, ""), ERR_INPUT, "not known");
}
