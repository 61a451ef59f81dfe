/* One report is printed in two forms, as JSON and as tables. */
#include "client/output/report.h"

#include "base/json.h"
#include "tests/support/capture.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <string.h>

static char text[65536];
static struct report_options how;

static json_t *document(void)
{
    json_t *modules = json_array();
    for (int i = 0; i < 5; i++)
        json_array_append_new(
            modules, json_pack("{s:s, s:i}", "name", i ? "q" : "down_proj", "rank", i * 100));
    return json_pack("{s:s, s:b, s:{s:f}, s:[i,i], s:o, s:n}", "kind", "adapter", "is_tied", 1,
                     "rope", "theta_base", 1e-5, "shape", 3, 4, "modules", modules, "nothing");
}

static void print(void)
{
    ok(report_print(document(), &how));
}

Test(report, is_one_json_document)
{
    how = (struct report_options){.json = true};
    capture(text, sizeof text, 1, print);
    json_t *back = NULL, *want = document();
    ok(json_parse(&back, text, strlen(text), "output"));
    cr_expect(json_equal(back, want), "%s", text);
    cr_expect(strchr(text, '\n') == text + strlen(text) - 1);
    json_decref(back);
    json_decref(want);
}

Test(report, is_lines_and_tables_for_people)
{
    how = (struct report_options){.rows_max = 3};
    capture(text, sizeof text, 1, print);
    cr_expect_str_eq(text, "kind          adapter\n"
                           "is tied       yes\n"
                           "rope          \n"
                           "  theta base  1e-05\n"
                           "shape         3 4\n"
                           "nothing       none\n"
                           "\nmodules (5)\n"
                           "name       rank\n"
                           "down_proj     0\n"
                           "q           100\n"
                           "q           200\n"
                           "... 2 more; --verbose shows all\n");
    how.rows_max = 0;
    capture(text, sizeof text, 1, print);
    cr_expect(strstr(text, "q           400\n") && !strstr(text, "more"), "%s", text);
}

Test(report, a_document_that_could_not_be_made_is_an_error)
{
    refused(report_print(NULL, &how), ERR_MACHINE, "no memory");
}
