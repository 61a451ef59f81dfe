/* Half and bfloat16 against the compiler's own _Float16 and against arithmetic,
 * over every value. */
#include "base/dtype.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float of_bits(uint32_t u)
{
    float f;
    memcpy(&f, &u, 4);
    return f;
}

Test(dtype, every_half_reads_as_the_compilers)
{
    for (uint32_t h = 0; h < 65536; h++) {
        _Float16 half;
        uint16_t bits = (uint16_t)h;
        memcpy(&half, &bits, 2);
        float want = (float)half, got = f32_from_f16(bits);
        if (isnan(want))
            cr_assert(isnan(got), "%04x", h);
        else
            cr_assert_eq(bits_of(got), bits_of(want), "%04x: %a, expected %a", h, (double)got,
                         (double)want);
    }
}

/* Nearest by distance in double, ties to the even last bit: the definition, not the bit trick. */
static uint16_t nearest_bf16(float x)
{
    uint16_t down = (uint16_t)(bits_of(x) >> 16); /* towards zero */
    double a = f32_from_bf16(down), b;
    uint16_t up = (uint16_t)(down + 1);
    b = (up & 0x7fff) == 0x7f80 ? copysign(0x1p128, x) : (double)f32_from_bf16(up);
    double below = fabs((double)x - a), above = fabs(b - (double)x);
    if (below == above) return (down & 1) ? up : down;
    return below < above ? down : up;
}

Test(dtype, rounds_to_bfloat16_to_nearest_even)
{
    for (uint32_t h = 0; h < 65536; h++) {
        static const uint32_t offset[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
        for (int i = 0; i < 6; i++) {
            float x = of_bits(h << 16 | offset[i]);
            uint16_t got = bf16_from_f32(x);
            if (isnan(x))
                cr_assert(isnan(f32_from_bf16(got)), "%08x", bits_of(x));
            else if (isinf(x))
                cr_assert_eq(got, h);
            else
                cr_assert_eq(got, nearest_bf16(x), "%a: %04x", (double)x, got);
        }
        if (!isnan(f32_from_bf16((uint16_t)h)))
            cr_assert_eq(bf16_from_f32(f32_from_bf16((uint16_t)h)), h);
    }
}

Test(dtype, counts_bytes_of_plain_and_block_types)
{
    size_t n = 99;
    cr_expect(dtype_bytes(&n, DTYPE_F32, 3) && n == 12);
    cr_expect(dtype_bytes(&n, DTYPE_F4, 4) && n == 2);
    cr_expect(dtype_bytes(&n, DTYPE_F6_E2M3, 8) && n == 6);
    cr_expect(dtype_bytes(&n, DTYPE_Q4_0, 64) && n == 36);
    cr_expect(dtype_bytes(&n, DTYPE_Q4_1, 32) && n == 20);
    cr_expect(dtype_bytes(&n, DTYPE_Q5_0, 32) && n == 22);
    cr_expect(dtype_bytes(&n, DTYPE_Q8_0, 32) && n == 34);
    cr_expect(dtype_bytes(&n, DTYPE_Q4_K, 256) && n == 144);
    cr_expect(dtype_bytes(&n, DTYPE_Q6_K, 512) && n == 420);
    cr_expect(dtype_bytes(&n, DTYPE_Q6_K, 0) && n == 0);
    n = 99;
    cr_expect(!dtype_bytes(&n, DTYPE_Q4_K, 128) && !dtype_bytes(&n, DTYPE_F4, 3));
    cr_expect(!dtype_bytes(&n, DTYPE_F64, SIZE_MAX / 4) && !dtype_bytes(&n, DTYPE_NONE, 1));
    cr_expect(!dtype_bytes(&n, DTYPE_OTHER_BLOCK, 32));
    cr_expect_eq(n, 99, "the output was touched");
}

Test(dtype, converts_unaligned_data_and_refuses_other_types)
{
    uint8_t raw[33];
    double wide[2] = {1.5, -3e38};
    float out[2];
    memcpy(raw + 1, wide, 16);
    ok(dtype_to_f32(out, raw + 1, DTYPE_F64, 2));
    cr_expect(out[0] == 1.5f && out[1] == -3e38f);
    uint16_t half[2] = {0x3c00, 0xc000};
    memcpy(raw + 1, half, 4);
    ok(dtype_to_f32(out, raw + 1, DTYPE_F16, 2));
    cr_expect(out[0] == 1 && out[1] == -2);
    memcpy(raw + 1, out, 8);
    out[0] = out[1] = 0;
    ok(dtype_to_f32(out, raw + 1, DTYPE_F32, 2));
    cr_expect(out[0] == 1 && out[1] == -2);
    refused(dtype_to_f32(out, raw, DTYPE_I32, 2), ERR_INPUT,
            "type I32: expected F32, F16, BF16 or F64");
    refused(dtype_to_f32(out, raw, DTYPE_Q4_K, 2), ERR_INPUT, "Q4_K");
}
