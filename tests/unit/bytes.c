/* A growing buffer respects its maximum, ends in a zero byte, and keeps its content on failure. */
#include "base/bytes.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

Test(bytes, grows_to_its_maximum_and_no_further)
{
    struct bytes b = {.max = 1000};
    for (int i = 0; i < 100; i++)
        ok(bytes_append(&b, "0123456789", 10));
    cr_expect_eq(b.size, 1000);
    cr_expect_eq(b.data[1000], 0);
    refused(bytes_append(&b, "x", 1), ERR_LIMIT, "at most 1000 bytes");
    refused(bytes_printf(&b, "%d", 1), ERR_LIMIT, "at most 1000 bytes");
    ok(bytes_append(&b, "", 0));
    cr_expect_eq(b.size, 1000);
    bytes_clear(&b);
    cr_expect(b.size == 0 && b.data[0] == 0);
    ok(bytes_printf(&b, "%s-%d", "a", 7));
    cr_expect_str_eq((char *)b.data, "a-7");
    refused(bytes_append(&b, "x", SIZE_MAX), ERR_LIMIT, "");
    cr_expect_str_eq((char *)b.data, "a-7");
    bytes_close(&b);
    cr_expect(b.data == NULL && b.max == 1000);
}

Test(bytes, an_empty_append_makes_a_text)
{
    struct bytes b = {.max = 10};
    ok(bytes_append(&b, NULL, 0));
    cr_assert_not_null(b.data);
    cr_expect_str_eq((char *)b.data, "");
    bytes_close(&b);
}

Test(bytes, sizes_multiply_and_add_with_overflow_seen)
{
    size_t n = 7;
    cr_expect(!size_mul(&n, SIZE_MAX, 2));
    cr_expect(!size_add(&n, SIZE_MAX, 1));
    cr_expect(size_mul(&n, 6, 7) && n == 42);
    cr_expect(size_add(&n, SIZE_MAX - 1, 1) && n == SIZE_MAX);
}
