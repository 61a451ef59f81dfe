#include "engine/tokens/bpe.h"
#include "base/rng.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static void token(struct bpe *b, const char *text, int32_t id)
{
    ok(bpe_add_token(b, text, strlen(text), id));
}

static void merge(struct bpe *b, const char *left, const char *right, uint32_t rank)
{
    struct bpe_merge m = {.left = left,
                          .right = right,
                          .left_size = strlen(left),
                          .right_size = strlen(right),
                          .rank = rank};
    ok(bpe_add_merge(b, &m));
}

static void check(const struct bpe *b, const char *word, const char *want)
{
    struct bpe_scratch s = {0};
    char got[256] = "";
    for (int again = 0; again < 2; again++) { /* worked out, then remembered */
        got[0] = 0;
        ok(bpe_encode(&s, b, word, (uint32_t)strlen(word)));
        for (size_t i = 0; i < s.count; i++)
            (void)snprintf(got + strlen(got), sizeof got - strlen(got), "%d@%u ", s.id[i],
                           s.start[i]);
        cr_assert_str_eq(got, want, "\"%s\"", word);
    }
    bpe_scratch_close(&s);
}

Test(bpe, joins_the_lowest_rank_first_and_of_equals_the_leftmost)
{
    struct bpe b;
    bpe_init(&b);
    b.bytes = true;
    token(&b, "a", 0), token(&b, "b", 1), token(&b, "c", 2);
    token(&b, "ab", 3), token(&b, "bc", 4), token(&b, "aa", 5), token(&b, "abc", 6);
    merge(&b, "b", "c", 0);
    merge(&b, "a", "b", 1);
    merge(&b, "a", "a", 2);
    merge(&b, "a", "bc", 3);
    bpe_seal(&b);
    check(&b, "abc", "6@0 ");
    check(&b, "ab", "3@0 ");
    check(&b, "aaa", "5@0 0@2 ");
    check(&b, "aaaa", "5@0 5@2 ");
    check(&b, "abcab", "6@0 3@3 ");
    check(&b, "", "");
    bpe_close(&b);
}

Test(bpe, a_step_that_is_no_token_is_taken_but_not_given_out)
{
    struct bpe b;
    bpe_init(&b);
    b.bytes = true;
    token(&b, "a", 0), token(&b, "b", 1), token(&b, "c", 2), token(&b, "abc", 3);
    merge(&b, "a", "b", 0); /* "ab" is no token */
    merge(&b, "ab", "c", 1);
    bpe_seal(&b);
    check(&b, "abc", "3@0 ");
    check(&b, "ab", "0@0 1@1 ");
    bpe_close(&b);
}

Test(bpe, whole_words_are_not_taken_apart_when_the_model_says_so)
{
    struct bpe b;
    bpe_init(&b);
    b.bytes = true;
    token(&b, "a", 0), token(&b, "b", 1), token(&b, "ab", 2);
    bpe_seal(&b);
    check(&b, "ab", "0@0 1@1 ");
    b.whole = true;
    check(&b, "ab", "2@0 ");
    check(&b, "aba", "0@0 1@1 0@2 ");
    bpe_close(&b);
}

Test(bpe, unknown_characters_become_bytes_or_the_unknown_token)
{
    struct bpe b;
    bpe_init(&b);
    b.early = b.fuse_unknown = true;
    token(&b, "a", 0), token(&b, "?", 1), token(&b, "<0xC3>", 2), token(&b, "<0xA9>", 3);
    bpe_seal(&b);
    check(&b,
          "a\xC3\xA9"
          "a",
          "0@0 0@3 ");
    b.unknown = bpe_find(&b, "?", 1);
    check(&b,
          "a\xC3\xA9\xC3\xA9"
          "a",
          "0@0 1@1 0@5 ");
    b.fuse_unknown = false;
    check(&b,
          "a\xC3\xA9\xC3\xA9"
          "a",
          "0@0 1@1 1@3 0@5 ");
    b.byte_fallback = true;
    bpe_seal(&b);
    check(&b,
          "a\xC3\xA9"
          "a",
          "0@0 2@1 3@2 0@3 ");
    b.early = false;
    check(&b,
          "a\xC3\xA9"
          "a",
          "0@0 2@1 3@2 0@3 ");
    bpe_close(&b);
}

Test(bpe, scores_decide_which_neighbours_join)
{
    static const float score[] = {0, 0, 0, -1, -2, -3};
    struct bpe b;
    bpe_init(&b);
    token(&b, "a", 0), token(&b, "b", 1), token(&b, "c", 2);
    token(&b, "bc", 3), token(&b, "ab", 4), token(&b, "abc", 5);
    ok(bpe_merge_by_score(&b, score, 6));
    bpe_seal(&b);
    check(&b, "abc", "5@0 ");
    check(&b, "abab", "4@0 4@2 ");
    check(&b, "abbc", "4@0 3@2 ");
    bpe_close(&b);
}

/* The plain definition, quadratic: as long as a pair may join, the best does. */
static size_t join_slowly(uint32_t *symbol, size_t count, const uint32_t rank[8][8])
{
    for (;;) {
        size_t best = count;
        for (size_t i = 0; i + 1 < count; i++)
            if (symbol[i] < 8 && symbol[i + 1] < 8 && rank[symbol[i]][symbol[i + 1]] != BPE_NONE &&
                (best == count ||
                 rank[symbol[i]][symbol[i + 1]] < rank[symbol[best]][symbol[best + 1]]))
                best = i;
        if (best == count) return count;
        symbol[best] = 8 + 8 * symbol[best] + symbol[best + 1];
        memmove(symbol + best + 1, symbol + best + 2, (count - best - 2) * sizeof *symbol);
        count--;
    }
}

Test(bpe, agrees_with_the_plain_definition_on_random_words)
{
    uint32_t rank[8][8], symbol[64];
    struct rng rng;
    rng_init(&rng, "bpe", 7, "words", 0);
    struct bpe b;
    bpe_init(&b);
    b.bytes = true;
    for (int i = 0; i < 8; i++)
        token(&b, (char[]){(char)('a' + i), 0}, i);
    for (int i = 0; i < 8; i++)
        for (int k = 0; k < 8; k++) {
            rank[i][k] = rng_below(&rng, 2) ? (uint32_t)rng_below(&rng, 20) : BPE_NONE;
            char left[] = {(char)('a' + i), 0}, right[] = {(char)('a' + k), 0},
                 both[] = {left[0], right[0], 0};
            if (rank[i][k] == BPE_NONE) continue;
            token(&b, both, 8 + 8 * i + k);
            merge(&b, left, right, rank[i][k]);
        }
    bpe_seal(&b);
    struct bpe_scratch s = {0};
    for (int round = 0; round < 500; round++) {
        char word[64];
        size_t size = 1 + (size_t)rng_below(&rng, 60);
        for (size_t i = 0; i < size; i++) {
            symbol[i] = (uint32_t)rng_below(&rng, 8);
            word[i] = (char)('a' + symbol[i]);
        }
        size_t count = join_slowly(symbol, size, rank);
        ok(bpe_encode(&s, &b, word, (uint32_t)size));
        cr_assert_eq(s.count, count, "round %d", round);
        for (size_t i = 0; i < count; i++)
            cr_assert_eq(s.id[i], symbol[i], "round %d token %zu", round, i);
    }
    bpe_scratch_close(&s);
    bpe_close(&b);
}
