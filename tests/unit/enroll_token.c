/* Tokens of enrolment. SHA-256 is compared with the published vector of FIPS 180-4 for "abc". */
#include "proto/enroll_token.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#define SECRET "000102030405060708090a0b0c0d0eff"
#define HASH "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"

Test(enroll_token, has_the_parts_that_an_operator_reads)
{
    struct enroll_token token;
    char text[ENROLL_TOKEN_BYTES];
    ok(enroll_token_parse(&token, "fedlora1:fed.example.org:7444:north:" SECRET ":" HASH));
    cr_expect_str_eq(token.server, "fed.example.org:7444");
    cr_expect_str_eq(token.id, "north");
    cr_expect_eq(token.secret[0], 0);
    cr_expect_eq(token.secret[15], 0xff);
    cr_expect_eq(token.ca.byte[0], 0xba);
    cr_expect_eq(token.ca.byte[31], 0xad);
    ok(enroll_token_print(text, &token));
    cr_expect_str_eq(text, "fedlora1:fed.example.org:7444:north:" SECRET ":" HASH);
}

Test(enroll_token, keeps_the_brackets_of_an_ipv6_address)
{
    struct enroll_token token;
    char text[ENROLL_TOKEN_BYTES];
    ok(enroll_token_parse(&token, " fedlora1:[fd00::1]:443:a.b-c:" SECRET ":" HASH "\r\n"));
    cr_expect_str_eq(token.server, "[fd00::1]:443");
    cr_expect_str_eq(token.id, "a.b-c");
    ok(enroll_token_print(text, &token));
    cr_expect_str_eq(text, "fedlora1:[fd00::1]:443:a.b-c:" SECRET ":" HASH);
}

Test(enroll_token, says_which_part_is_wrong)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "this is no token: expected fedlora1:HOST:PORT:ID:SECRET:CAHASH"},
        {"fedlora2:h:1:north:" SECRET ":" HASH, "this is no token"},
        {"FEDLORA1:h:1:north:" SECRET ":" HASH, "this is no token"},
        {"fedlora1:h:1:north", "is not complete"},
        {"fedlora1:h:1", "is not complete"},
        {"fedlora1:h:1:north:" SECRET ":ba7816bf", "has 8 characters: expected 64"},
        {"fedlora1:h:1:north:" SECRET ":" HASH "0", "has 65 characters"},
        {"fedlora1:h:1:north:0001:" HASH, "the token's secret is damaged"},
        {"fedlora1:h:1:north:000102030405060708090A0B0C0D0EFF:" HASH, "secret is damaged"},
        {"fedlora1:h:1:-x:" SECRET ":" HASH, "the token's ID is damaged"},
        {"fedlora1:h:1::" SECRET ":" HASH, "the token's ID is damaged"},
        {"fedlora1:h:0:north:" SECRET ":" HASH, "\"h:0\" is no address: expected HOST:PORT"},
        {"fedlora1:h:65536:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1::1:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1:a b:1:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1:fd00::1:443:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1:[]:443:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1:[::1:443:north:" SECRET ":" HASH, "is no address"},
        {"fedlora1:h:1:north: " SECRET ":" HASH, "secret is damaged"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct enroll_token token = {.id = "untouched"};
        err e = enroll_token_parse(&token, cases[i].text);
        cr_expect_eq(e.kind, ERR_INPUT, "case %zu", i);
        cr_expect(strstr(e.text, cases[i].says) != NULL, "case %zu: %s", i, e.text);
        cr_expect(strstr(e.text, "0001") == NULL, "case %zu shows the secret: %s", i, e.text);
        cr_expect_str_eq(token.id, "untouched", "case %zu", i);
    }
}

Test(enroll_token, refuses_parts_that_are_too_long)
{
    struct enroll_token token = {.server = "h:1"};
    char text[2 * ENROLL_TOKEN_BYTES], name[400];
    memset(name, 'a', sizeof name);
    snprintf(text, sizeof text, "fedlora1:%.*s:1:north:" SECRET ":" HASH, 269, name);
    ok(enroll_token_parse(&token, text));
    snprintf(text, sizeof text, "fedlora1:%.*s:1:north:" SECRET ":" HASH, 270, name);
    refused(enroll_token_parse(&token, text), ERR_INPUT, "HOST:PORT is too long");
    snprintf(text, sizeof text, "fedlora1:h:1:%.*s:" SECRET ":" HASH, 127, name);
    ok(enroll_token_parse(&token, text));
    snprintf(text, sizeof text, "fedlora1:h:1:%.*s:" SECRET ":" HASH, 128, name);
    refused(enroll_token_parse(&token, text), ERR_INPUT, "ID is damaged");
    snprintf(text, sizeof text, "fedlora1:%.*s%.*s:1:n:" SECRET ":" HASH, 400, name, 200, name);
    refused(enroll_token_parse(&token, text), ERR_INPUT, "bytes: expected fedlora1:");
}

Test(enroll_token, is_not_printed_for_an_address_or_a_name_that_cannot_be_read_back)
{
    struct enroll_token token = {.server = "h", .id = "north"};
    char text[ENROLL_TOKEN_BYTES] = "untouched";
    refused(enroll_token_print(text, &token), ERR_INPUT, "\"h\" is no address");
    snprintf(token.server, sizeof token.server, "h:1");
    snprintf(token.id, sizeof token.id, "no:rth");
    refused(enroll_token_print(text, &token), ERR_INPUT, "expected a name");
    cr_expect_str_eq(text, "untouched");
}

Test(enroll_token, hashes_the_authority_with_sha_256)
{
    struct enroll_hash hash = enroll_token_hash_of("abc", 3), same;
    char text[ENROLL_HASH_TEXT_BYTES];
    enroll_token_hash_text(text, &hash);
    cr_expect_str_eq(text, HASH);
    ok(enroll_token_hash_parse(&same, text));
    cr_expect_arr_eq(same.byte, hash.byte, sizeof same.byte);
    refused(enroll_token_hash_parse(&same, "ba78"), ERR_INPUT,
            "\"ba78\" is not the hash of an authority: expected 64 lower-case hexadecimal digits");
}
