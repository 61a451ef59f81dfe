#include "engine/tokens/piece.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

Test(piece, knows_valid_utf8_from_every_kind_of_invalid)
{
    static const struct {
        const char *text;
        uint32_t want;
    } cases[] = {
        {"a", 1},
        {"\xC2\x80", 2},
        {"\xC1\xBF", 0}, /* overlong */
        {"\xE0\xA0\x80", 3},
        {"\xE0\x9F\xBF", 0}, /* overlong */
        {"\xED\x9F\xBF", 3},
        {"\xED\xA0\x80", 0}, /* surrogate */
        {"\xF0\x90\x80\x80", 4},
        {"\xF0\x8F\xBF\xBF", 0}, /* overlong */
        {"\xF4\x8F\xBF\xBF", 4},
        {"\xF4\x90\x80\x80", 0}, /* past U+10FFFF */
        {"\xF5\x80\x80\x80", 0},
        {"\x80", 0},
        {"\xFF", 0},
        {"\xE2\x82", 0}, /* cut */
        {"\xE2\x28\xA1", 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        cr_assert_eq(piece_valid(cases[i].text, strlen(cases[i].text)), cases[i].want, "case %zu",
                     i);
    cr_assert_eq(piece_valid("", 0), 0);
}

Test(piece, reads_characters_of_every_length)
{
    uint32_t n;
    cr_assert_eq(piece_char("z", &n), 'z');
    cr_assert_eq(piece_char("\xC3\xA9", &n), 0xE9);
    cr_assert_eq(piece_char("\xE2\x96\x81", &n), 0x2581);
    cr_assert_eq(piece_char("\xF0\x9F\x98\x80", &n), 0x1F600);
    cr_assert_eq(n, 4);
}

Test(piece, remembers_where_bytes_came_from)
{
    struct piece_buffer b = {0};
    struct piece in = {.text = "abcdef", .size = 6, .base = 10};
    ok(piece_copy(&b, &in, 1, 3));
    ok(piece_put(&b, "XYZ", 3, 13));
    ok(piece_copy(&b, &in, 4, 6));
    struct piece all = piece_of(&b), part = piece_part(&all, 1, 6);
    cr_assert_eq(all.size, 7);
    cr_assert(memcmp(all.text, "bcXYZef", 7) == 0);
    static const uint32_t want[] = {12, 13, 13, 13, 14};
    for (uint32_t i = 0; i < 5; i++)
        cr_assert_eq(piece_origin(&part, i), want[i]);
    struct piece again = piece_part(&in, 2, 5);
    cr_assert_eq(piece_origin(&again, 2), 14);
    piece_close(&b);
}

Test(piece, repairs_each_bad_byte_in_its_place)
{
    struct piece_buffer b = {0};
    ok(piece_repair(&b, "a\xE2\x82z\xFF", 5));
    struct piece p = piece_of(&b);
    cr_assert_eq(p.size, 11);
    cr_assert(memcmp(p.text, "a\xEF\xBF\xBD\xEF\xBF\xBDz\xEF\xBF\xBD", 11) == 0);
    cr_assert_eq(piece_origin(&p, 4), 2);
    cr_assert_eq(piece_origin(&p, 7), 3);
    cr_assert_eq(piece_origin(&p, 10), 4);
    piece_close(&b);
}
