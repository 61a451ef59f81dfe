/* Known answers from rng_answers.py, which shares no code with rng.c. */
#include "base/rng.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdbool.h>
#include <string.h>

static struct rng stream(void)
{
    struct rng rng;
    rng_init(&rng, "lora_A", 7, "model.layers.0.self_attn.q_proj", 3);
    return rng;
}

Test(rng, gives_the_known_words_across_refills)
{
    static const uint32_t first[4] = {0x80682833, 0x6797cef9, 0x1f3b8f02, 0x5df3dc4b};
    struct rng rng = stream();
    uint32_t word[2000];
    for (int i = 0; i < 2000; i++)
        word[i] = rng_u32(&rng);
    cr_expect_eq(memcmp(word, first, sizeof first), 0);
    cr_expect_eq(word[127], 0x6260bd83);
    cr_expect_eq(word[128], 0x09b26241);
    cr_expect_eq(word[1999], 0x29369ab0);
    rng_init(&rng, "", UINT64_MAX, "", 0);
    cr_expect_eq(rng_u32(&rng), 0x07d561c7);
    cr_expect_eq(rng_u32(&rng), 0x671ccacd);
}

Test(rng, gives_the_known_numbers)
{
    static const double unit[3] = {0.40466016379687686, 0.3670022662547422, 0.6072666546524167};
    static const double normal[3] = {-0.6830722482888223, 1.1531549393961145, -0.45522949254811323};
    static const uint64_t below[8] = {707, 306, 274, 575, 925, 743, 126, 124};
    static const double uniform[3] = {0.00039732755976729095, -0.023834959050873294,
                                      -0.09449936434975825};
    struct rng rng = stream();
    for (int i = 0; i < 3; i++)
        cr_expect_eq(rng_unit(&rng), unit[i]);
    rng = stream();
    for (int i = 0; i < 3; i++)
        cr_expect_lt(fabs(rng_normal(&rng) - normal[i]), 1e-14);
    rng = stream();
    for (int i = 0; i < 8; i++)
        cr_expect_eq(rng_below(&rng, 1000), below[i]);
    rng = stream();
    float value[3];
    rng_fill_uniform(&rng, value, 3, 0.125);
    for (int i = 0; i < 3; i++)
        cr_expect_eq(value[i], (float)uniform[i]);
}

Test(rng, no_two_keys_share_a_stream)
{
    struct {
        const char *purpose, *label;
        uint64_t seed, index;
    } key[] = {{"ab", "c", 1, 2},
               {"a", "bc", 1, 2},
               {"ab", "c", 2, 1},
               {"ab", "c", 1, 3},
               {"ab", "", 1, 2}};
    uint32_t first[5];
    for (int i = 0; i < 5; i++) {
        struct rng rng;
        rng_init(&rng, key[i].purpose, key[i].seed, key[i].label, key[i].index);
        first[i] = rng_u32(&rng);
        for (int j = 0; j < i; j++)
            cr_expect_neq(first[i], first[j], "keys %d and %d", i, j);
    }
}

Test(rng, is_uniform_and_normal_as_it_says)
{
    enum { N = 200000, BINS = 16 };
    struct rng rng = stream();
    int bin[BINS] = {0}, seen[7] = {0};
    for (int i = 0; i < N; i++)
        bin[(int)(rng_unit(&rng) * BINS)]++;
    double chi = 0, expected = (double)N / BINS;
    for (int i = 0; i < BINS; i++)
        chi += (bin[i] - expected) * (bin[i] - expected) / expected;
    cr_expect_lt(chi, 37.7, "chi squared of 15 degrees, 1 in 1000: %g", chi);
    double sum = 0, squares = 0;
    for (int i = 0; i < N; i++) {
        double x = rng_normal(&rng);
        sum += x;
        squares += x * x;
    }
    cr_expect_lt(fabs(sum / N), 4 / sqrt(N));
    cr_expect_lt(fabs(squares / N - 1), 4 * sqrt(2.0 / N));
    for (int i = 0; i < 7000; i++)
        seen[rng_below(&rng, 7)]++;
    for (int i = 0; i < 7; i++)
        cr_expect(seen[i] > 850 && seen[i] < 1150, "%d: %d", i, seen[i]);
    cr_expect_eq(rng_below(&rng, 1), 0);
}

Test(rng, uniform_values_stay_inside_the_bound)
{
    static float value[100000];
    struct rng rng = stream();
    rng_fill_uniform(&rng, value, 100000, 0.1);
    double largest = 0;
    for (int i = 0; i < 100000; i++)
        largest = fmax(largest, fabs((double)value[i]));
    cr_expect_leq(largest, (double)0.1f);
    cr_expect_gt(largest, 0.0999);
}
