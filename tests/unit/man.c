/* Manual pages: no text of an option can become a command of roff, and no fact of a row is lost. */
#include "base/man.h"

#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

struct opts {
    const char *out;
    bool eos;
    int64_t rank;
};
static const struct option_row rows[] = {
    {.flag = "output",
     .key = "train.output",
     .letter = 'o',
     .kind = OPTION_TEXT,
     .at = offsetof(struct opts, out),
     .required = true,
     .value = "DIR",
     .help = ".so C:\\dir is not 'read' as a command"},
    {.flag = "eos",
     .key = "train.eos",
     .kind = OPTION_FLAG,
     .at = offsetof(struct opts, eos),
     .fallback = "yes",
     .help = "leave the last token out"},
    {.key = "limits.rank",
     .kind = OPTION_INT,
     .at = offsetof(struct opts, rank),
     .fallback = "16",
     .least = 1,
     .most = 0x1p53,
     .help = "rank of the factors"},
};
static const struct option_table table = {rows, 3};
static const struct option_set set = {.table = &table, .count = 1};

static struct man_page page = {.name = "x-train",
                               .section = 1,
                               .version = "1.2.3",
                               .date = "2026-11-30",
                               .purpose = "train",
                               .synopsis = "x train -o DIR",
                               .set = &set,
                               .see = "x(1)"};

/* The page as text; the caller closes `out`. */
static const char *made(struct bytes *out, const struct man_page *from)
{
    *out = (struct bytes){.max = 65536};
    cr_assert_not(err_is(man_page(out, from)));
    return (const char *)out->data;
}

static void has(const char *text, const char *part)
{
    cr_assert_not_null(strstr(text, part), "no %s in\n%s", part, text);
}

Test(man, prints_flags_values_and_facts_of_each_row_with_a_flag)
{
    struct bytes out;
    const char *text = made(&out, &page);
    has(text, ".TH X-TRAIN 1 2026-11-30 \"Fedlora 1.2.3\"");
    has(text, "\\-o\\fR, \\fB\\-\\-output\\fR \\fIDIR\\fR\n");
    has(text, "Required.\n");
    has(text, "\\-\\-no\\-eos\\fR\n\\&Leave the last token out.\n");
    cr_assert_null(strstr(text, "rank of"), "a key without a flag is not an option");
    bytes_close(&out);
}

Test(man, never_lets_a_text_become_a_command_of_roff)
{
    struct bytes out;
    const char *text = made(&out, &page);
    has(text, "\n\\&.so C:\\edir is not \\(aqread\\(aq as a command.\n");
    bytes_close(&out);
}

Test(man, prints_the_keys_of_a_file_under_their_sections)
{
    struct man_page file = page;
    struct bytes out;
    file.file = true;
    const char *text = made(&out, &file);
    has(text, ".SS [train]\n.TP\n\\fBoutput\\fR = \\fIDIR\\fR\n");
    has(text, ".SS [limits]\n.TP\n\\fBrank\\fR = \\fIN\\fR\n\\&Rank of the factors.\n");
    has(text, "From 1 to 9007199254740992.\n");
    has(text, "\\fBeos\\fR = \\fIyes|no\\fR\n");
    bytes_close(&out);
}

Test(man, reads_paragraphs_lists_and_lines_as_they_are)
{
    static const struct man_section after[] = {
        {"NOTES", "One\ntwo.\n\nThree.\n0\tDone.\n  x --y\n\n  z\nEnd.\n"}, {0}};
    struct man_page notes = page;
    struct bytes out;
    notes.after = after;
    const char *text = made(&out, &notes);
    has(text, ".SH NOTES\n\\&One\n\\&two.\n.PP\n\\&Three.\n.TP\n\\fB0\\fR\n\\&Done.\n");
    has(text, ".RS 4\n.EX\n\\&  x \\-\\-y\n\\&\n\\&  z\n.EE\n.RE\n\\&End.\n");
    bytes_close(&out);
}

Test(man, takes_the_day_from_the_environment_and_joins_the_words_of_a_name)
{
    char date[16], name[64];
    setenv("SOURCE_DATE_EPOCH", "86400", 1);
    man_date(date);
    man_name(name, sizeof name, "fedlora", "run create");
    cr_assert_str_eq(date, "1970-01-02");
    cr_assert_str_eq(name, "fedlora-run-create");
}
