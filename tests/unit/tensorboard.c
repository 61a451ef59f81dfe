/* Event files of TensorBoard, against published vectors and a record made by TensorFlow's format
 * description by hand. tests/e2e/sweep.sh reads whole files with a parser of its own. */
#include "sim/tensorboard.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

/* RFC 3720, appendix B.4, and the usual check value. */
Test(tensorboard, computes_the_crc_of_castagnoli)
{
    uint8_t zeros[32] = {0}, ones[32];
    memset(ones, 0xff, sizeof ones);
    cr_assert_eq(tensorboard_crc("123456789", 9), 0xe3069283);
    cr_assert_eq(tensorboard_crc(zeros, 32), 0x8a9136aa);
    cr_assert_eq(tensorboard_crc(ones, 32), 0x62a8ab43);
    cr_assert_eq(tensorboard_crc("", 0), 0);
}

Test(tensorboard, encodes_an_event)
{
    static const uint8_t expected[] = {
        0x09, 0,    0,    0, 0,    0, 0, 0xf8, 0x3f, /* 1: 1.5 */
        0x10, 0xac, 0x02,                            /* 2: 300 */
        0x2a, 0x0a,                                  /* 5: 10 bytes */
        0x0a, 0x08,                                  /* 1: 8 bytes */
        0x0a, 0x01, 'x',                             /* 1: "x" */
        0x15, 0,    0,    0, 0x40,                   /* 2: 2.0 */
    };
    const struct tensorboard_value value[] = {{"nan", NAN}, {"x", 2}};
    struct bytes out = {.max = 1 << 10};
    const struct tensorboard_event event = {
        .wall_s = 1.5, .step = 300, .value = value, .values = 2};
    cr_assert_not(err_is(tensorboard_add(&out, &event)));
    cr_assert_eq(out.size, sizeof expected + 16);
    cr_assert_eq(out.data[0], sizeof expected);
    cr_assert_eq(memcmp(out.data + 12, expected, sizeof expected), 0);
    bytes_close(&out);
}
