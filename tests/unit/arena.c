/* Memory from an arena is zeroed, aligned and bounded, and blocks do not overlap. */
#include "base/arena.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdint.h>
#include <string.h>

Test(arena, gives_zeroed_aligned_memory_that_does_not_overlap)
{
    struct arena arena = {0};
    uint8_t *taken[500];
    size_t size[500];
    for (int i = 0; i < 500; i++) {
        size[i] = (size_t)(i * 7919 % 1000) * (i % 50 == 0 ? 300 : 1);
        ok(arena_take(&taken[i], &arena, size[i], 1));
        cr_assert_eq((uintptr_t)taken[i] % 64, 0);
        for (size_t j = 0; j < size[i]; j++)
            cr_assert_eq(taken[i][j], 0);
        memset(taken[i], i & 0xff, size[i]);
    }
    for (int i = 0; i < 500; i++)
        for (size_t j = 0; j < size[i]; j++)
            cr_assert_eq(taken[i][j], i & 0xff, "%d was written over", i);
    arena_close(&arena);
    cr_expect(arena.last == NULL && arena.bytes_used == 0);
    arena_close(&arena);
}

Test(arena, keeps_its_bound_and_refuses_overflow)
{
    struct arena arena = {.bytes_max = 1024};
    char *p = (char *)1;
    refused(arena_take(&p, &arena, 1025, 1), ERR_LIMIT, "exceed the limit of 1024");
    refused(arena_take(&p, &arena, SIZE_MAX / 2, 3), ERR_LIMIT, "cannot be addressed");
    refused(arena_take(&p, &arena, SIZE_MAX - 10, 1), ERR_LIMIT, "cannot be addressed");
    cr_expect_eq(p, (char *)1, "the output was touched");
    for (int i = 0; i < 16; i++)
        ok(arena_take(&p, &arena, 64, 1));
    refused(arena_take(&p, &arena, 1, 1), ERR_LIMIT, "exceed the limit of");
    arena_close(&arena);
    ok(arena_take(&p, &arena, 1000, 1));
    arena_close(&arena);
#ifndef __SANITIZE_ADDRESS__ /* which ends a program that asks for so much */
    arena.bytes_max = 0;
    refused(arena_take(&p, &arena, SIZE_MAX / 4, 1), ERR_MACHINE, "memory:");
    arena_close(&arena);
#endif
}

Test(arena, copies_text_with_its_zero)
{
    struct arena arena = {0};
    const char *text = NULL;
    ok(arena_text(&text, &arena, "hello", 3));
    cr_expect_str_eq(text, "hel");
    ok(arena_text(&text, &arena, NULL, 0));
    cr_expect_str_eq(text, "");
    arena_close(&arena);
}
