/* Options from defaults, files and command lines; every refusal names its place and the nearest
 * name. */
#include "base/option.h"

#include "base/file.h"
#include "tests/support/support.h"

#include <criterion/criterion.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

struct opts {
    int64_t rank;
    double lr;
    bool json, shuffle;
    uint64_t memory, wait_ms;
    const char *base;
    int schedule;
    struct option_list member;
};

static const char *const schedules[] = {"constant", "linear", "cosine", NULL};
static const struct option_row rows[] = {
    {.flag = "rank",
     .key = "train.rank",
     .kind = OPTION_INT,
     .at = offsetof(struct opts, rank),
     .fallback = "16",
     .least = 1,
     .most = 4096,
     .help = "rank of the LoRA factors"},
    {.flag = "lr",
     .key = "train.lr",
     .kind = OPTION_NUM,
     .at = offsetof(struct opts, lr),
     .fallback = "2e-4",
     .least = 0,
     .most = 1,
     .help = "learning rate"},
    {.flag = "shuffle",
     .key = "train.shuffle",
     .kind = OPTION_FLAG,
     .at = offsetof(struct opts, shuffle),
     .fallback = "yes",
     .help = "rows in random order"},
    {.flag = "schedule",
     .key = "train.schedule",
     .kind = OPTION_CHOICE,
     .at = offsetof(struct opts, schedule),
     .fallback = "linear",
     .choices = schedules,
     .help = "how the learning rate moves"},
};
static const struct option_row common[] = {
    {.flag = "json",
     .kind = OPTION_FLAG,
     .sectioned = true,
     .at = offsetof(struct opts, json),
     .help = "JSON"},
    {.flag = "base",
     .key = "base",
     .letter = 'b',
     .kind = OPTION_TEXT,
     .required = true,
     .at = offsetof(struct opts, base),
     .value = "PATH",
     .help = "the base model"},
    {.flag = "memory",
     .key = "machine.memory",
     .kind = OPTION_SIZE,
     .at = offsetof(struct opts, memory),
     .help = "memory to use"},
    {.flag = "wait",
     .key = "machine.wait",
     .kind = OPTION_DURATION,
     .at = offsetof(struct opts, wait_ms),
     .fallback = "90s",
     .help = "how long"},
    {.flag = "member",
     .key = "machine.member",
     .kind = OPTION_LIST,
     .at = offsetof(struct opts, member),
     .help = "a member"},
};
static const struct option_table tables[] = {{rows, sizeof rows / sizeof *rows},
                                             {common, sizeof common / sizeof *common}};
static const struct option_set set = {.table = tables, .count = 2};

static struct arena arena;
static struct opts o;
static struct option_list rest;
static char dir[SUPPORT_PATH_BYTES], path[SUPPORT_PATH_BYTES];

static void begin(void)
{
    arena = (struct arena){0};
    o = (struct opts){0};
    rest = (struct option_list){0};
    ok(option_defaults(&o, &set, &arena));
    support_dir_make(dir);
    ok(file_join(path, sizeof path, dir, "f.ini"));
}

static void end(void)
{
    arena_close(&arena);
    support_dir_remove(dir);
}

TestSuite(option, .init = begin, .fini = end);

#define ARGS(...)                                                                                  \
    option_read_args(&o, &set, sizeof((char *[]){__VA_ARGS__}) / sizeof(char *),                   \
                     (char *[]){__VA_ARGS__}, &rest, &arena)

static err read_text(const char *text)
{
    TRY(file_write(path, text, strlen(text), true));
    return option_read_file(&o, &set, path, &arena);
}

Test(option, defaults_come_from_the_table)
{
    cr_expect_eq(o.rank, 16);
    cr_expect_eq(o.lr, 2e-4);
    cr_expect(o.shuffle && !o.json);
    cr_expect_eq(o.schedule, 1);
    cr_expect_eq(o.wait_ms, 90000);
    cr_expect_null(o.base);
}

Test(option, reads_every_spelling_of_the_command_line)
{
    ok(ARGS("a", "--rank", "8", "--lr=1e-3", "-b", "m.gguf", "--no-shuffle", "--json",
            "--memory=2GiB", "--wait", "2h", "--schedule", "cosine", "-", "--member", "x,y",
            "--member=z", "--", "--rank"));
    cr_expect_eq(o.rank, 8);
    cr_expect_eq(o.lr, 1e-3);
    cr_expect_str_eq(o.base, "m.gguf");
    cr_expect(!o.shuffle && o.json);
    cr_expect_eq(o.memory, 2ull << 30);
    cr_expect_eq(o.wait_ms, 7200000);
    cr_expect_eq(o.schedule, 2);
    cr_assert_eq(o.member.count, 2);
    cr_expect_str_eq(o.member.item[0], "x,y");
    cr_expect_str_eq(o.member.item[1], "z");
    cr_assert_eq(rest.count, 3);
    cr_expect_str_eq(rest.item[0], "a");
    cr_expect_str_eq(rest.item[1], "-");
    cr_expect_str_eq(rest.item[2], "--rank");
    ok(ARGS("-bother", "--json=no"));
    cr_expect_str_eq(o.base, "other");
    cr_expect(!o.json);
}

Test(option, suggests_the_nearest_name)
{
    refused(ARGS("--rnak", "8"), ERR_INPUT, "unknown option --rnak; did you mean --rank?");
    refused(ARGS("--sched=cosine"), ERR_INPUT, "did you mean --schedule?");
    refused(ARGS("--schedule=cosin"), ERR_INPUT, "did you mean cosine?");
    refused(ARGS("-x"), ERR_INPUT, "unknown option -x");
    err e = ARGS("--zzzzzzzz");
    cr_expect_str_eq(e.text, "unknown option --zzzzzzzz");
}

Test(option, names_the_flag_the_value_and_what_was_expected)
{
    refused(ARGS("--rank", "0"), ERR_INPUT, "--rank: 0 is out of range: expected 1 to 4096");
    refused(ARGS("--rank", "x"), ERR_INPUT, "--rank: \"x\" is not a whole number");
    refused(ARGS("--lr", "nan"), ERR_INPUT, "--lr: \"nan\" is not a number");
    refused(ARGS("--rank"), ERR_INPUT, "--rank needs a value");
    refused(ARGS("--json=perhaps"), ERR_INPUT, "expected yes or no");
    refused(ARGS("--no-rank"), ERR_INPUT, "unknown option --no-rank");
    refused(ARGS("--memory", "12 parsecs"), ERR_INPUT, "--memory: \"12 parsecs\" is not a size");
    refused(ARGS("--schedule=x"), ERR_INPUT, "expected one of constant, linear, cosine");
}

Test(option, a_file_gives_values_and_the_command_line_wins)
{
    ok(read_text("# comment\nbase = m\n\n[train]\nrank = 4\nlr=0.5 ; inline\n[machine]\n"
                 "member = a\nmember = b\nwait = 5m\n"));
    cr_expect_eq(o.rank, 4);
    cr_expect_eq(o.lr, 0.5);
    cr_expect_eq(o.wait_ms, 300000);
    cr_expect_str_eq(o.base, "m");
    cr_expect_eq(o.member.count, 2);
    ok(ARGS("--rank=5", "--member=c"));
    cr_expect_eq(o.rank, 5);
    cr_expect_eq(o.lr, 0.5);
    cr_assert_eq(o.member.count, 1, "a list on the command line replaces the file's");
    cr_expect_str_eq(o.member.item[0], "c");
}

Test(option, names_file_and_line)
{
    refused(read_text("[train]\nrank = 4\nrnak = 3\n"), ERR_INPUT,
            "f.ini:3: unknown key train.rnak; did you mean train.rank?");
    refused(read_text("[train]\n\n\nrank = many\n"), ERR_INPUT, "f.ini:4: train.rank: \"many\"");
    refused(read_text("[train]\nrank\n"), ERR_INPUT, "f.ini:2: expected [section] or key = value");
    refused(read_text("[train\nrank = 1\n"), ERR_INPUT, "f.ini:1: expected [section]");
    refused(read_text("rank = 1\n"), ERR_INPUT, "f.ini:1: unknown key rank");
    refused(option_read_file(&o, &set, "/nowhere/f.ini", &arena), ERR_INPUT,
            "/nowhere/f.ini: no such file");
}

static bool is_of_others(const char *key)
{
    return strcmp(key, "other.key") == 0 || strcmp(key, "train.theirs") == 0;
}

Test(option, skips_the_keys_of_others_in_a_file_and_still_finds_mistakes)
{
    struct option_set shared = set;
    shared.others = is_of_others;
    const char *text = "[other]\nkey = x\n[train]\nrank = 4\ntheirs = 5\n";
    ok(file_write(path, text, strlen(text), true));
    ok(option_read_file(&o, &shared, path, &arena));
    cr_expect_eq(o.rank, 4);
    text = "[other]\nkey = x\nkeys = y\n";
    ok(file_write(path, text, strlen(text), true));
    refused(option_read_file(&o, &shared, path, &arena), ERR_INPUT,
            "f.ini:3: unknown key other.keys");
    refused(option_assign(&o, &shared, "other.key=1", &arena), ERR_INPUT, "unknown key other.key");
}

Test(option, reads_one_section_alone)
{
    struct option_set one = set;
    one.only = "machine";
    const char *text = "[train]\nrank = 4\nnonsense = 1\n[machine]\nwait = 5m\n";
    ok(file_write(path, text, strlen(text), true));
    ok(option_read_file(&o, &one, path, &arena));
    cr_expect_eq(o.rank, 16);
    cr_expect_eq(o.wait_ms, 300000);
}

Test(option, gives_some_rows_a_second_key_in_the_section_of_their_command)
{
    struct option_set of_join = set;
    of_join.section = "join";
    const char *text = "[join]\njson = yes\n";
    ok(file_write(path, text, strlen(text), true));
    refused(option_read_file(&o, &set, path, &arena), ERR_INPUT, "unknown key join.json");
    ok(option_read_file(&o, &of_join, path, &arena));
    cr_expect(o.json);
    text = "[join]\nbase = m\n"; /* a row without the second key */
    ok(file_write(path, text, strlen(text), true));
    refused(option_read_file(&o, &of_join, path, &arena), ERR_INPUT, "unknown key join.base");
}

Test(option, takes_lines_longer_than_the_ini_librarys_own_bound)
{
    static char text[8000];
    int n = snprintf(text, sizeof text, "base = ");
    memset(text + n, 'x', 5000);
    memcpy(text + n + 5000, "\n[train]\nrank = 9\n", 19);
    ok(read_text(text));
    cr_expect_eq(strlen(o.base), 5000);
    cr_expect_eq(o.rank, 9);
    static char longer[5 << 20];
    memset(longer, 'y', sizeof longer - 1);
    refused(read_text(longer), ERR_INPUT, "f.ini:1: the line is too long");
}

Test(option, assigns_one_key)
{
    ok(option_assign(&o, &set, "train.rank=7", &arena));
    cr_expect_eq(o.rank, 7);
    refused(option_assign(&o, &set, "train.rank", &arena), ERR_INPUT, "expected section.key=value");
    refused(option_assign(&o, &set, "train.lrr=1", &arena), ERR_INPUT, "did you mean train.lr?");
}

Test(option, says_which_required_option_is_missing)
{
    refused(option_check(&o, &set), ERR_INPUT, "--base is missing: the base model");
    ok(ARGS("--base", "m"));
    ok(option_check(&o, &set));
}

Test(option, help_has_every_flag_its_default_and_no_wide_line)
{
    struct bytes help = {.max = 1 << 16};
    ok(option_help(&help, &set));
    const char *text = (const char *)help.data;
    cr_expect(strstr(text, "--rank N") && strstr(text, "(default 16)"), "%s", text);
    cr_expect(strstr(text, "-b, --base PATH") && strstr(text, "(required)"), "%s", text);
    cr_expect(strstr(text, "--schedule constant|linear|cosine"), "%s", text);
    cr_expect(strstr(text, "--no-shuffle"), "%s", text);
    for (const char *line = text; *line;) {
        size_t size = strcspn(line, "\n");
        cr_expect_leq(size, 100, "%.*s", (int)size, line);
        line += size + (line[size] == '\n');
    }
    bytes_close(&help);
}

Test(option, a_sample_reads_back_as_the_defaults)
{
    struct bytes sample = {.max = 1 << 16};
    ok(option_sample(&sample, &set));
    struct opts defaults = o;
    o.rank = 1;
    o.lr = 0;
    o.shuffle = false;
    ok(read_text((const char *)sample.data));
    cr_expect_eq(o.rank, defaults.rank);
    cr_expect_eq(o.lr, defaults.lr);
    cr_expect_eq(o.shuffle, defaults.shuffle);
    cr_expect_eq(o.schedule, defaults.schedule);
    bytes_close(&sample);
}

Test(option, writes_the_values_that_are_not_defaults)
{
    static char base[40000];
    struct bytes text = {.max = 1 << 16};
    struct opts defaults = o;
    memset(base, 'm', sizeof base - 1);
    ok(ARGS("--rank", "7", "--lr", "0.1", "--no-shuffle", "--schedule", "cosine", "--base", base));
    ok(option_write(&text, &(struct option_write){&o, &defaults, &set}));
    cr_expect(strstr((const char *)text.data, "lr = 0.1\n"), "%s", (const char *)text.data);
    cr_expect_not(strstr((const char *)text.data, "memory"), "%s", (const char *)text.data);
    struct opts given = o;
    o = defaults;
    ok(read_text((const char *)text.data));
    cr_expect_eq(o.rank, 7);
    cr_expect_eq(o.lr, given.lr);
    cr_expect_eq(o.shuffle, false);
    cr_expect_eq(o.schedule, given.schedule);
    cr_expect_str_eq(o.base, base, "all of a long text");
    bytes_close(&text);
}
