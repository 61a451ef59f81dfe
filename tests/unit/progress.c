/* Progress away from a terminal: plain lines, few of them, none when quiet. */
#include "client/output/progress.h"

#include "tests/support/capture.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

static char text[8192];

static void many_updates(void)
{
    struct progress p;
    progress_begin(&p, false, "training", "tokens");
    for (uint64_t i = 1; i <= 1000; i++)
        progress_update(&p, i, 1000, i * 100, "loss 2.5");
    p.shown_ms -= 10000; /* as if the last line were ten seconds old */
    p.begun_ms -= 10000;
    progress_update(&p, 250, 1000, 20000, "loss 2.5");
    progress_end(&p, "done");
    progress_update(&p, 1000, 1000, 1, NULL);
    progress_end(&p, "again");
}

static void quiet_updates(void)
{
    struct progress p, zeroed = {0};
    progress_begin(&p, true, "training", "tokens");
    p.shown_ms -= 10000;
    progress_update(&p, 1, 2, 3, NULL);
    progress_end(&p, "done");
    progress_update(&zeroed, 1, 2, 3, NULL);
    progress_end(&zeroed, NULL);
}

static void unknown_total(void)
{
    struct progress p;
    progress_begin(&p, false, "reading", NULL);
    p.shown_ms -= 10000;
    progress_update(&p, 7, 0, 0, NULL);
}

/* A short transfer, and one whose first 40 MB came 20 s ago, after 10 MB of an earlier attempt. */
static void transfers(void)
{
    struct progress p;
    progress_begin_bytes(&p, false, "sending the update");
    p.shown_ms -= 20000;
    p.begun_ms -= 20000;
    progress_update(&p, 50000000, 90000000, 40000000, NULL);
    progress_end(&p, NULL);
    progress_begin_bytes(&p, false, "downloading the state");
    p.shown_ms -= 40000;
    p.begun_ms -= 40000;
    progress_update(&p, 50000000, 90000000, 40000000, NULL);
    progress_end(&p, "interrupted");
}

Test(progress, prints_sizes_of_transfers_that_take_long)
{
    capture(text, sizeof text, 2, transfers);
    cr_expect_str_eq(text, "downloading the state  50.0 of 90.0 MB (56 %)  1.0 MB/s  40s left\n"
                           "downloading the state  interrupted  40s\n");
}

Test(progress, is_a_plain_line_every_few_seconds)
{
    capture(text, sizeof text, 2, many_updates);
    const char *second = strchr(text, '\n');
    cr_assert_not_null(second);
    cr_expect(strncmp(text, "training  250/1000 (25 %)  loss 2.5  ", 37) == 0, "%s", text);
    cr_expect(strstr(text, " tokens/s  ") && strstr(text, " left\n"), "%s", text);
    cr_expect(strncmp(second + 1, "training  done  10", 18) == 0, "%s", text);
    cr_expect_eq(strchr(second + 1, '\n') - text, (long)strlen(text) - 1, "more than two lines: %s",
                 text);
    cr_expect_null(strpbrk(text, "\r\033"));
}

Test(progress, says_nothing_when_quiet_or_never_begun)
{
    capture(text, sizeof text, 2, quiet_updates);
    cr_expect_str_eq(text, "");
}

Test(progress, needs_no_total)
{
    capture(text, sizeof text, 2, unknown_total);
    cr_expect_str_eq(text, "reading  7\n");
}

Test(progress, leaves_out_parts_that_do_not_fit_before_it_cuts)
{
    char line[PROGRESS_LINE_BYTES];
    const struct progress_parts parts = {"training", "25/100 (25 %)", "loss 2.5", "90 rows/s",
                                         "5s left"};
    const struct progress_parts greek = {.what = "\xce\xb1\xce\xb2\xce\xb3"};
    const struct {
        size_t width;
        const char *line;
    } row[] = {
        {80, "training  25/100 (25 %)  loss 2.5  90 rows/s  5s left"},
        {53, "training  25/100 (25 %)  loss 2.5  90 rows/s  5s left"},
        {52, "training  25/100 (25 %)  loss 2.5  5s left"},
        {41, "training  25/100 (25 %)  loss 2.5"},
        {32, "training  25/100 (25 %)"},
        {10, "training  "},
        {0, ""},
    };
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        progress_fit(line, &parts, row[i].width);
        cr_expect_str_eq(line, row[i].line, "%zu: %s", row[i].width, line);
    }
    progress_fit(line, &greek, 2);
    cr_expect_str_eq(line, "\xce\xb1\xce\xb2", "a character is cut: %s", line);
}
