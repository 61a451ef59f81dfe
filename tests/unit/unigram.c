#include "engine/tokens/unigram.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static void put(struct unigram *u, const char *text, int32_t id, double score)
{
    const struct unigram_token token = {text, (uint32_t)strlen(text), id, score};
    ok(unigram_add(u, &token));
}

/* The ids with their starts: "1:0 2:3 ". */
static void check(const struct unigram *u, const char *word, const char *want)
{
    struct unigram_scratch s = {0};
    char got[256] = "";
    size_t n = 0;
    ok(unigram_encode(&s, u, word, (uint32_t)strlen(word)));
    for (size_t i = 0; i < s.count; i++)
        n += (size_t)snprintf(got + n, sizeof got - n, "%d:%u ", s.id[i], s.start[i]);
    cr_expect_str_eq(got, want, "%s: %s, expected %s", word, got, want);
    unigram_scratch_close(&s);
}

Test(unigram, takes_the_path_with_the_highest_sum)
{
    struct unigram u = {.unknown = 0};
    put(&u, "a", 1, -1.0);
    put(&u, "b", 2, -1.0);
    put(&u, "ab", 3, -1.5);
    put(&u, "ba", 4, -3.0);
    put(&u, "aba", 5, -2.5); /* as much as ab + a */
    unigram_seal(&u);
    check(&u, "", "");
    check(&u, "ab", "3:0 ");
    check(&u, "ba", "2:0 1:1 ");
    check(&u, "aba", "5:0 "); /* of equal sums the path found first */
    check(&u, "bab", "2:0 3:1 ");
    unigram_close(&u);
}

Test(unigram, joins_unknown_neighbours_and_falls_back_to_bytes)
{
    struct unigram u = {.unknown = 0};
    put(&u, "<unk>", 0, 0.0);
    put(&u, "a", 1, -1.0);
    unigram_seal(&u);
    check(&u, "aéza", "1:0 0:1 1:4 ");
    check(&u, "<unk>z", "0:0 ");
    unigram_close(&u);

    struct unigram b = {.unknown = 0, .byte_fallback = true};
    put(&b, "<unk>", 0, 0.0);
    put(&b, "a", 1, -1.0);
    put(&b, "<0xC3>", 2, -2.0);
    put(&b, "<0xA9>", 3, -2.0);
    unigram_seal(&b);
    check(&b, "aé", "1:0 2:1 3:2 ");
    check(&b, "aéz", "1:0 0:1 "); /* z has no token of its byte */
    check(&b, "<unk>", "0:0 ");
    unigram_close(&b);
}

Test(unigram, refuses_unknown_text_without_an_unknown_token)
{
    struct unigram u = {.unknown = -1};
    struct unigram_scratch s = {0};
    put(&u, "a", 1, -1.0);
    unigram_seal(&u);
    refused(unigram_encode(&s, &u, "az", 2), ERR_INPUT, "no unknown token");
    check(&u, "aa", "1:0 1:1 ");
    unigram_scratch_close(&s);
    unigram_close(&u);
}

Test(unigram, of_two_tokens_with_one_text_the_later_counts)
{
    struct unigram u = {.unknown = 0};
    put(&u, "a", 1, -1.0);
    put(&u, "a", 2, -9.0);
    put(&u, "aa", 3, -15.0);
    unigram_seal(&u);
    check(&u, "aa", "3:0 ");
    unigram_close(&u);
}

Test(unigram, refuses_tokens_that_would_make_encoding_slow)
{
    static char text[5000];
    struct unigram u = {0};
    memset(text, 'a', sizeof text - 1);
    const struct unigram_token token = {text, sizeof text - 1, 7, -1.0};
    refused(unigram_add(&u, &token), ERR_INPUT, "token 7 has 4999 bytes");
    unigram_close(&u);
}
