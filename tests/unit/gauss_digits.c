/* The sampler on given digits. This object replaces privacy/noise/keystream.c, which the linker
 * then leaves out. Values whose rounding depends on one late digit must agree with exact
 * arithmetic. */
#include "privacy/noise/gauss.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

volatile unsigned keystream_forks;

void keystream_refill(struct keystream *k)
{
    (void)k;
    cr_assert_fail("the sampler asked for more digits than the test expects");
}

err keystream_open(struct keystream **out)
{
    (void)out;
    return err_make(ERR_MACHINE, "no randomness in this test");
}

void keystream_close(struct keystream *k)
{
    (void)k;
}

/* One value: a sign, k = `whole` (0 or 1), the fraction's digits. Every other decision is made at
 * the first word. */
static int64_t one(uint64_t sigma, uint32_t sign, uint32_t whole, const uint32_t *digit, unsigned n)
{
    struct keystream k = {.used = 0};
    uint32_t *w = k.word;
    int64_t value = 0;
    *w++ = sign;
    for (uint32_t i = 0; i < whole; i++)
        *w++ = 0x90000000; /* a run of length 0 below one half: success */
    *w++ = 0x40000000;
    *w++ = 0x50000000; /* a run of length 1: failure, so k is complete */
    *w++ = 0xffffffff; /* the first trial's deviate is not below x, */
    *w++ = digit[0];   /* whose first digit is asked for here: accepted */
    for (uint32_t i = 0; i < whole; i++)
        *w++ = 0xffffffff;
    for (unsigned i = 1; i < n; i++)
        *w++ = digit[i];
    uint32_t words = (uint32_t)(w - k.word);
    memmove(k.word + KEYSTREAM_WORDS - words, k.word, words * sizeof *k.word);
    k.used = KEYSTREAM_WORDS - words;
    gauss_fill(&value, 1, sigma, &k);
    cr_expect_eq(k.used, KEYSTREAM_WORDS, "%u digits were not asked for", KEYSTREAM_WORDS - k.used);
    return value;
}

Test(gauss_digits, rounds_to_the_nearest_integer)
{
    static const uint32_t quarter[2] = {0x40000000, 0}, most[2] = {0xbfffffff, 0xffffffff};
    cr_expect_eq(one(1000, 0, 0, quarter, 2), 250);
    cr_expect_eq(one(1000, 1, 0, quarter, 2), -250);
    cr_expect_eq(one(1000, 0, 1, quarter, 2), 1250);
    cr_expect_eq(one(1, 0, 0, quarter, 2), 0);
    cr_expect_eq(one(1, 1, 1, most, 2), -2);
    cr_expect_eq(one(GAUSS_SIGMA_MAX, 0, 1, quarter, 2), INT64_C(5) << 46);
    /* 2^48 (3/4 - 2^-64) = 211106232532992 - 2^-16 */
    cr_expect_eq(one(GAUSS_SIGMA_MAX, 0, 0, most, 2), INT64_C(211106232532992));
}

/* sigma = 3, x = 1/6 = 0.2AAA...: 3 x is exactly one half, whatever digit first differs decides. */
Test(gauss_digits, asks_for_digits_until_the_rounding_is_decided)
{
    uint32_t digit[16];
    for (unsigned n = 3; n <= 16; n++) {
        for (unsigned i = 0; i < n; i++)
            digit[i] = 0xaaaaaaaa;
        digit[0] = 0x2aaaaaaa;
        digit[n - 1] = 0xaaaaaaab;
        cr_expect_eq(one(3, 0, 0, digit, n), 1, "above at digit %u", n);
        digit[n - 1] = 0xaaaaaaa9;
        cr_expect_eq(one(3, 1, 0, digit, n), 0, "below at digit %u", n);
        digit[n - 1] = 0xaaaaaaab;
        cr_expect_eq(one(3, 1, 1, digit, n), -4, "above at digit %u", n);
    }
}

/* sigma = 5, x = 1/10 + j / 5, for every rounding border in the unit interval. */
Test(gauss_digits, decides_every_border_exactly)
{
    for (unsigned j = 0; j < 5; j++) {
        uint32_t digit[5];
        unsigned numerator = 1 + 2 * j; /* x = numerator / 10, digits by long division */
        uint64_t rest = numerator;
        for (int i = 0; i < 4; i++) {
            rest <<= 32;
            digit[i] = (uint32_t)(rest / 10);
            rest %= 10;
        }
        rest <<= 32;
        uint32_t last = (uint32_t)(rest / 10);
        if (rest == 0) continue; /* one half: its digits end, and any more puts it above */
        digit[4] = last + 1;
        cr_expect_eq(one(5, 0, 0, digit, 5), (int64_t)j + 1);
        digit[4] = last - 1;
        cr_expect_eq(one(5, 0, 0, digit, 5), (int64_t)j);
    }
}
