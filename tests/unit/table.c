/* Columns line up, whatever is in the cells. */
#include "client/output/table.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static void expect_written(const struct table *t, const char *want)
{
    struct bytes out = {.max = 1 << 20};
    ok(table_write(&out, t));
    cr_expect_str_eq((const char *)out.data, want);
    bytes_close(&out);
}

Test(table, sets_text_left_and_numbers_right)
{
    struct table t;
    table_begin(&t, "lrl");
    ok(table_row(&t, (const char *const[]){"name", "rank", "method"}));
    ok(table_row(&t, (const char *const[]){"b", "16", "flora"}));
    ok(table_cell(&t, "%s-%d", "longer", 7));
    ok(table_cell(&t, "%d", 4));
    ok(table_cell(&t, "%s", ""));
    expect_written(&t, "name      rank  method\n"
                       "b           16  flora\n"
                       "longer-7     4  \n");
    table_close(&t);
}

Test(table, counts_characters_not_bytes)
{
    struct table t;
    table_begin(&t, "lr");
    ok(table_row(&t, (const char *const[]){"\xc3\xa9t\xc3\xa9", "1"}));
    ok(table_row(&t, (const char *const[]){"abcd", "22"}));
    expect_written(&t, "\xc3\xa9t\xc3\xa9    1\nabcd  22\n");
    table_close(&t);
}

Test(table, grows_and_is_empty_at_first)
{
    struct table t;
    table_begin(&t, "rr");
    struct bytes out = {.max = 1 << 20};
    ok(table_write(&out, &t));
    cr_expect_eq(out.size, 0);
    for (int i = 0; i < 1000; i++)
        ok(table_cell(&t, "%d", i));
    ok(table_write(&out, &t));
    cr_expect_eq(out.size, 500 * 9);
    cr_expect(strstr((const char *)out.data, "998  999\n") != NULL);
    bytes_close(&out);
    table_close(&t);
    table_close(&t);
}
