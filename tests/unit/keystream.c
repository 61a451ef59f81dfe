/* Words of known keys are those of `openssl enc -chacha20` (key 00 01 .. 1f, zero iv). */
#include "privacy/noise/keystream.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

Test(keystream, is_chacha20_whose_first_bytes_become_the_next_key)
{
    struct keystream k = {.used = KEYSTREAM_WORDS};
    uint8_t before[32];
    for (int i = 0; i < 32; i++)
        k.key[i] = (uint8_t)i;
    memcpy(before, k.key, 32);
    cr_expect_eq(keystream_u32(&k), 0xe7cc232b);
    cr_expect_eq(keystream_u32(&k), 0xab2360a2);
    cr_expect_eq(k.word[1023], 0x77373c67);
    cr_expect_neq(memcmp(before, k.key, 32), 0, "the key that made them is gone");
    for (int i = 2; i < KEYSTREAM_WORDS; i++)
        (void)keystream_u32(&k);
    cr_expect_eq(keystream_u32(&k), 0x9ca5412d);
    cr_expect_eq(keystream_u32(&k), 0x8e1ae490);
    cr_expect_eq(k.word[1023], 0xf76b7b9b);
}

Test(keystream, forgets_what_it_has_given)
{
    struct keystream *k = NULL;
    ok(keystream_open(&k));
    for (int i = 0; i < 100; i++)
        (void)keystream_u32(k);
    for (int i = 0; i < 100; i++)
        cr_expect_eq(k->word[i], 0);
    keystream_close(k);
    keystream_close(NULL);
}

Test(keystream, no_two_are_alike)
{
    struct keystream *a = NULL, *b = NULL;
    ok(keystream_open(&a));
    ok(keystream_open(&b));
    int same = 0;
    for (int i = 0; i < 64; i++)
        same += keystream_u32(a) == keystream_u32(b);
    cr_expect_lt(same, 3, "chance 1e-23");
    keystream_close(a);
    keystream_close(b);
}

Test(keystream, takes_a_new_key_after_a_million_refills)
{
    struct keystream a = {.used = KEYSTREAM_WORDS}, b = a;
    cr_expect_eq(keystream_u32(&a), keystream_u32(&b));
    a.refills = b.refills = 1 << 20;
    a.used = b.used = KEYSTREAM_WORDS;
    (void)keystream_u32(&a);
    (void)keystream_u32(&b);
    cr_expect_neq(memcmp(a.key, b.key, 32), 0);
    cr_expect_eq(a.refills, 1);
}

Test(keystream, a_forked_child_draws_other_words_than_its_parent)
{
    struct keystream *k = NULL;
    uint32_t ours[8], theirs[8];
    int pipes[2], status = 0;
    ok(keystream_open(&k));
    (void)keystream_u32(k); /* words are there that both would have */
    cr_assert_eq(pipe(pipes), 0);
    pid_t child = fork();
    cr_assert_geq(child, 0);
    for (int i = 0; i < 8; i++)
        ours[i] = keystream_u32(k);
    if (child == 0) _exit(write(pipes[1], ours, sizeof ours) == sizeof ours ? 0 : 1);
    cr_assert_eq(read(pipes[0], theirs, sizeof theirs), (ssize_t)sizeof theirs);
    waitpid(child, &status, 0);
    int same = 0;
    for (int i = 0; i < 8; i++)
        same += ours[i] == theirs[i];
    cr_expect_lt(same, 3, "chance 1e-27");
    keystream_close(k);
}

Test(keystream, numbers_below_a_bound_are_even)
{
    static const uint32_t bounds[] = {2, 3, 6, 7, 100};
    enum { N = 200000 };
    struct keystream *k = NULL;
    ok(keystream_open(&k));
    for (int b = 0; b < 5; b++) {
        double seen[100] = {0}, chi = 0, expected = N / (double)bounds[b];
        for (int i = 0; i < N; i++)
            seen[keystream_below(k, bounds[b])]++;
        for (uint32_t i = 0; i < bounds[b]; i++)
            chi += (seen[i] - expected) * (seen[i] - expected) / expected;
        double freedom = bounds[b] - 1, f = 2 / (9 * freedom);
        cr_expect_lt(chi, freedom * pow(1 - f + 6 * sqrt(f), 3), "below %u: %g, chance 1e-9",
                     bounds[b], chi);
    }
    cr_expect_eq(keystream_below(k, 1), 0);
    keystream_close(k);
}

/* Lemire's bound: of 2^32 words exactly 2^32 mod 3 = 1 is uneven, and must be drawn again. */
Test(keystream, draws_again_where_a_word_would_favour_a_number)
{
    struct keystream k = {.used = KEYSTREAM_WORDS - 2};
    k.word[KEYSTREAM_WORDS - 2] = 0; /* product 0: the one word too many */
    k.word[KEYSTREAM_WORDS - 1] = UINT32_MAX;
    cr_expect_eq(keystream_below(&k, 3), 2);
    cr_expect_eq(k.used, KEYSTREAM_WORDS);
}
