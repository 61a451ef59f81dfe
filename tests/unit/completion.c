/* Completions: words that the shell would read in another way stay text. tests/e2e/manual.sh asks
 * the shells themselves. */
#include "base/completion.h"

#include <criterion/criterion.h>
#include <string.h>

struct opts {
    int mode;
    const char *in;
    int64_t n;
};
static const char *const modes[] = {"fast", "slow", NULL};
static const struct option_row rows[] = {
    {.flag = "mode",
     .kind = OPTION_CHOICE,
     .at = offsetof(struct opts, mode),
     .choices = modes,
     .help = "a member's mode: [fast]"},
    {.flag = "in",
     .letter = 'i',
     .kind = OPTION_TEXT,
     .at = offsetof(struct opts, in),
     .value = "FILE",
     .help = "input"},
    {.flag = "n", .kind = OPTION_INT, .at = offsetof(struct opts, n), .help = "count"},
};
static const struct option_table table = {rows, 3};
static const struct program_command commands[] = {
    {.name = "run one", .purpose = "first", .set = {.table = &table, .count = 1}},
    {.name = "run two", .purpose = "second", .set = {.table = &table, .count = 1}},
};
static const struct program program = {.name = "x", .command = commands, .count = 2};

static void has(enum completion_shell shell, const char *part)
{
    struct bytes out = {.max = 65536};
    cr_assert_not(err_is(completion_script(&out, shell, &program)));
    cr_assert_not_null(strstr((const char *)out.data, part), "no %s in\n%s", part, out.data);
    bytes_close(&out);
}

Test(completion, gives_bash_each_word_option_and_kind_of_value)
{
    has(COMPLETION_BASH, "local first='run '");
    has(COMPLETION_BASH, "run) second='one two '");
    has(COMPLETION_BASH, "'run one')\n        options=' --mode --in --n'");
    has(COMPLETION_BASH, "--mode) kind='words fast slow'");
    has(COMPLETION_BASH, "--in|-i) kind='file'");
    has(COMPLETION_BASH, "--n) kind='none'");
}

Test(completion, quotes_help_for_the_tables_of_zsh_and_fish)
{
    has(COMPLETION_ZSH, "'--mode[a member'\\''s mode\\: \\[fast\\]]:value:(fast slow)'");
    has(COMPLETION_ZSH, "'-i[input]:value:_files'");
    has(COMPLETION_FISH, "-l mode -x -a 'fast slow' -d 'a member'\\''s mode: [fast]'");
    has(COMPLETION_FISH, "-l in -s i -r -F -d 'input'");
}
