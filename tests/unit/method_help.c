#include "client/command/method_help.h"

#include "agg/round/method_options.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

Test(method_help, names_every_method_and_option_in_lines_that_fit)
{
    struct bytes text = {.max = 1 << 16};
    size_t count = 0;
    const struct method_option *option = method_options_table(&count);
    ok(method_help(&text));
    const char *all = (const char *)text.data;
    for (const char *const *name = method_names(); *name; name++)
        cr_expect_not_null(strstr(all, method_find(*name)->summary), "%s", *name);
    for (size_t i = 0; i < count; i++)
        cr_expect_not_null(strstr(all, option[i].key), "%s", option[i].key);
    for (const char *line = all; *line;) {
        size_t n = strcspn(line, "\n");
        cr_expect_leq(n, 100, "%.*s", (int)n, line);
        line += n + (line[n] == '\n');
    }
    bytes_close(&text);
}

Test(method_help, lists_for_aggregate_the_methods_that_combine_adapters)
{
    struct bytes text = {.max = 1 << 16};
    ok(method_help_aggregate(&text));
    for (const char *const *name = method_names(); *name; name++) {
        const struct method_aggregate *a = &method_find(*name)->aggregate;
        bool shown = strstr((const char *)text.data, a->text) != NULL;
        cr_expect_eq(shown, a->way != METHOD_AGGREGATE_RUN_ONLY, "%s", *name);
    }
    bytes_close(&text);
}
