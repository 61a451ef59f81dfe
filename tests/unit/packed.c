#include "coordinator/store/packed.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static void expect_same(const char *text)
{
    struct bytes packed = {.max = PACKED_TEXT_BYTES_MAX};
    struct arena arena = {0};
    const char *back = NULL;
    ok(packed_text(&packed, text));
    ok(packed_open(&back, packed.data, packed.size, &arena));
    cr_expect_str_eq(back, text);
    arena_close(&arena);
    bytes_close(&packed);
}

Test(packed, gives_back_every_text)
{
    char *long_one = calloc(1, 200001);
    for (int i = 0; i < 200000; i++)
        long_one[i] = (char)('a' + i % 317 % 23);
    expect_same("");
    expect_same("{\"rank\":8}");
    expect_same(long_one);
    free(long_one);
}

Test(packed, makes_a_report_of_many_modules_small)
{
    struct bytes report = {.max = 1 << 20}, packed = {.max = 1 << 20};
    for (int i = 0; i < 200; i++)
        ok(bytes_printf(
            &report, "{\"module\":\"model.layers.%d.self_attn.q_proj\",\"rank\":8,\"error\":%.17g}",
            i, 1.0 / (i + 3)));
    ok(packed_text(&packed, (const char *)report.data));
    cr_expect_lt(packed.size, report.size / 3);
    bytes_close(&report);
    bytes_close(&packed);
}

/* A stream that is cut, continued or changed at any byte is refused, or gives the same text if the
 * byte means nothing to zlib. */
Test(packed, refuses_damaged_bytes)
{
    const char *text = "a report that is long enough to be compressed, long enough, long enough";
    struct bytes packed = {.max = 4096};
    struct arena arena = {0};
    const char *back = NULL;
    ok(packed_text(&packed, text));
    for (size_t i = 0; i < packed.size; i++) {
        cr_expect_eq(packed_open(&back, packed.data, i, &arena).kind, ERR_INPUT, "%zu bytes", i);
        packed.data[i] ^= 1;
        err e = packed_open(&back, packed.data, packed.size, &arena);
        cr_expect(e.kind == ERR_INPUT || !strcmp(back, text), "byte %zu", i);
        packed.data[i] ^= 1;
    }
    arena_close(&arena);
    bytes_close(&packed);
}
