#include "client/session/data_report.h"

#include "base/json.h"
#include "base/limits.h"
#include "tests/support/capture.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <string.h>

static char text[4096];
static struct data_report report;

static void print(void)
{
    data_report_print(&report);
}

static void says(const char *wanted)
{
    capture(text, sizeof text, 2, print);
    cr_expect_str_eq(text, wanted, "%s", text);
}

Test(data_report, is_one_line_where_nothing_is_wrong)
{
    const struct dataset d = {.count = 12, .tokens = 345, .learned = 120, .longest = 80};
    report = (struct data_report){.data = &d, .path = "notes.jsonl", .seq = 512};
    says("notes.jsonl: 12 rows, 345 tokens, 120 of them learned; the longest row has 80\n");
    ok(data_report_check(&report));
}

Test(data_report, names_the_first_line_of_each_kind_and_what_helps)
{
    struct dataset d = {.count = 12,
                        .tokens = 345,
                        .learned = 120,
                        .longest = 700,
                        .cut = {3, 5},
                        .unlearned = {1, 7},
                        .joined = {8, 2}};
    report = (struct data_report){.data = &d, .path = "notes.jsonl", .seq = 512};
    says("notes.jsonl: 12 rows, 345 tokens, 120 of them learned; the longest row has 700\n"
         "warning: notes.jsonl:7: 1 of 12 rows has no token to learn and does not count: the "
         "answer was cut off, or all labels are -100; --seq 700 reads them whole\n"
         "warning: notes.jsonl:5: 3 of 12 rows were cut to 512 tokens: --seq 700 reads them whole\n"
         "warning: notes.jsonl:2: in 8 of 12 rows the completion starts inside a token of the "
         "prompt, which is not learned: move the space at the end of the prompt to the completion, "
         "or use --boundary split\n");
    d = (struct dataset){.count = 3, .rewritten = {2, 1}, .left_out = {1, 3}};
    capture(text, sizeof text, 2, print);
    cr_expect(strstr(text, "warning: notes.jsonl:1: in 2 of 3 rows the chat template changes"));
    cr_expect(strstr(text, "warning: notes.jsonl:3: in 1 of 3 rows the chat template leaves out"));
    d = (struct dataset){.count = 12, .longest = 700, .cut = {3, 5}, .joined = {8, 2}};
    report.run = "triage"; /* a member cannot change these options */
    capture(text, sizeof text, 2, print);
    cr_expect(strstr(text, "run triage reads 512 tokens of a row"), "%s", text);
    cr_expect(strstr(text, "or ask for a run with --boundary split instead of triage"), "%s", text);
    report.run = NULL;
    report.without_lines = true;
    d.longest = LIMIT_SEQUENCE + 1;
    capture(text, sizeof text, 2, print);
    cr_expect(strstr(text, "warning: notes.jsonl: 3 of 12 rows were cut to 512 tokens: shorten"),
              "%s", text);
}

Test(data_report, refuses_a_file_without_a_row_that_teaches)
{
    const struct dataset d = {.count = 2, .unlearned = {2, 4}};
    report = (struct data_report){.data = &d, .path = "notes.jsonl"};
    refused(data_report_check(&report), ERR_INPUT,
            "notes.jsonl:4: none of the 2 rows has a token to learn: all labels are -100, or the "
            "row ends with the user's turn");
}

Test(data_report, adds_files_and_writes_the_numbers_as_json)
{
    static const char wanted[] =
        "{\"learned\":7,\"longest\":9,\"longest_line\":0,\"rows\":5,\"rows_cut\":1,"
        "\"rows_cut_line\":0,\"rows_joined\":2,\"rows_joined_line\":0,\"rows_left_out\":0,"
        "\"rows_rewritten\":3,\"rows_unlearned\":3,"
        "\"rows_unlearned_line\":0,\"rows_with_bos\":0,\"rows_with_eos\":4,\"tokens\":30}";
    const struct dataset a = {.count = 2,
                              .tokens = 10,
                              .learned = 3,
                              .cut = {.rows = 1},
                              .longest = 9,
                              .unlearned = {1, 3},
                              .rewritten = {3, 1},
                              .has_eos = {4, 1}};
    const struct dataset b = {.count = 3,
                              .tokens = 20,
                              .learned = 4,
                              .unlearned = {.rows = 2},
                              .longest = 8,
                              .joined = {2, 6}};
    struct dataset sum = {0};
    struct bytes out = {.max = 4096};
    data_report_add(&sum, &a);
    data_report_add(&sum, &b);
    json_t *json = data_report_json(&sum);
    ok(json_write(&out, json));
    cr_expect_eq(out.size, sizeof wanted - 1);
    cr_expect(!memcmp(out.data, wanted, out.size), "%.*s", (int)out.size, (const char *)out.data);
    json_decref(json);
    bytes_close(&out);
}
