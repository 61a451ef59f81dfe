#include "kernels/quant.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { VALUES = 2048 };

static size_t read_whole(uint8_t *out, size_t most, const char *name, const char *ending)
{
    char path[1024];
    snprintf(path, sizeof path, "%s/../shared/data/ggml-quant-vectors/%s%s", FEDLORA_SOURCE_DIR,
             name, ending);
    FILE *f = fopen(path, "rb");
    if (f == NULL) return 0;
    size_t size = fread(out, 1, most, f);
    fclose(f);
    return size;
}

static void check_vector(const char *name, enum dtype t)
{
    static uint8_t packed[VALUES * 4], expected[VALUES * 4];
    static float got[VALUES];
    size_t size = read_whole(packed, sizeof packed, name, ".bin");
    if (size == 0) cr_skip_test("no ../shared/data/ggml-quant-vectors");
    cr_assert_eq(read_whole(expected, sizeof expected, name, ".dequant.f32"), sizeof expected);
    quant_to_f32(got, packed, t, VALUES);
    cr_assert_eq(memcmp(got, expected, sizeof got), 0, "%s: bits differ", name);
    /* and at an odd address */
    static uint8_t moved[VALUES * 4 + 1];
    memcpy(moved + 1, packed, size);
    memset(got, 0, sizeof got);
    quant_to_f32(got, moved + 1, t, VALUES);
    cr_assert_eq(memcmp(got, expected, sizeof got), 0, "%s unaligned: bits differ", name);
}

/* Tensors of llama.cpp. */
static const struct {
    const char *name;
    enum dtype dtype;
} vectors[] = {
    {"f16", DTYPE_F16},       {"bf16", DTYPE_BF16},     {"q4_0", DTYPE_Q4_0}, {"q4_1", DTYPE_Q4_1},
    {"q5_0", DTYPE_Q5_0},     {"q5_1", DTYPE_Q5_1},     {"q8_0", DTYPE_Q8_0}, {"q2_K", DTYPE_Q2_K},
    {"q3_K", DTYPE_Q3_K},     {"q4_K", DTYPE_Q4_K},     {"q5_K", DTYPE_Q5_K}, {"q6_K", DTYPE_Q6_K},
    {"iq4_nl", DTYPE_IQ4_NL}, {"iq4_xs", DTYPE_IQ4_XS},
};
Test(quant, tensors_have_the_bits_of_ggml)
{
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++)
        check_vector(vectors[i].name, vectors[i].dtype);
}

/* Random blocks of all block formats with the values of the package gguf.
 * tests/golden/make_quants.py has written the file. */
Test(quant, random_blocks_have_the_bits_of_the_package_gguf)
{
    enum { RANDOM_VALUES = 512 };
    static uint8_t block[RANDOM_VALUES * 4];
    static float expected[RANDOM_VALUES], got[RANDOM_VALUES];
    char name[9] = "";
    int formats = 0;
    FILE *f = fopen(FEDLORA_SOURCE_DIR "/tests/golden/quants.bin", "rb");
    cr_assert_not_null(f);
    for (; fread(name, 8, 1, f) == 1; formats++) {
        enum dtype t = DTYPE_Q4_0;
        size_t size = 0;
        while (t < DTYPE_OTHER_BLOCK && strcmp(dtype_name(t), name) != 0)
            t++;
        cr_assert(quant_known(t), "%s", name);
        cr_assert(dtype_bytes(&size, t, RANDOM_VALUES));
        cr_assert_eq(fread(block, size, 1, f), 1);
        cr_assert_eq(fread(expected, sizeof expected, 1, f), 1);
        quant_to_f32(got, block, t, RANDOM_VALUES);
        cr_expect_eq(memcmp(got, expected, sizeof got), 0, "%s: bits differ", name);
    }
    fclose(f);
    cr_expect_eq(formats, DTYPE_OTHER_BLOCK - DTYPE_Q4_0, "every block format is in the file");
}

Test(quant, every_half_precision_number_is_its_value)
{
    for (uint32_t h = 0; h < 65536; h++) {
        uint16_t half = (uint16_t)h;
        float got;
        quant_to_f32(&got, &half, DTYPE_F16, 1);
        uint32_t exponent = h >> 10 & 31, fraction = h & 1023;
        double magnitude = exponent == 31  ? (fraction ? NAN : INFINITY)
                           : exponent == 0 ? ldexp((double)fraction, -24)
                                           : ldexp(1024.0 + (double)fraction, (int)exponent - 25);
        if (isnan(magnitude)) {
            cr_assert(isnan(got), "%04x", h);
            continue;
        }
        cr_assert_eq((double)got, h >> 15 ? -magnitude : magnitude, "%04x", h);
        cr_assert_eq(signbit(got) != 0, h >> 15 != 0, "%04x", h);
    }
}

Test(quant, other_types_are_not_known)
{
    cr_assert(quant_known(DTYPE_F32) && quant_known(DTYPE_Q6_K));
    cr_assert_not(quant_known(DTYPE_OTHER_BLOCK));
    cr_assert_not(quant_known(DTYPE_I32));
    cr_assert_not(quant_known(DTYPE_NONE));
}
